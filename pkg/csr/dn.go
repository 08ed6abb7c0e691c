package csr

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	dnLimit  = 1024 // bytes of a name as a string
	rdnLimit = 32   // attributes in a name
	idLimit  = 64   // characters of a device id: what X.520 gives a common name
	oidLimit = 16   // numbers in a dotted object identifier
)

var oidCommonName = asn1.ObjectIdentifier{2, 5, 4, 3}

// CommonName is the subject of a device: one CN, which is its id. An id is 1 to 64
// of A-Z, a-z, 0-9, "_" and "-", so that it also is a level of an MQTT topic, a
// label of a host name but for its length, and a file name.
func CommonName(id string) ([]byte, error) {
	if len(id) < 1 || len(id) > idLimit {
		return nil, fmt.Errorf("device id %.80q has %d characters, want 1 to %d", id, len(id), idLimit)
	}
	if i := strings.IndexFunc(id, func(r rune) bool { return !isAlphanumeric(r) && r != '_' && r != '-' }); i >= 0 {
		return nil, fmt.Errorf("device id %q: want A-Z, a-z, 0-9, _ and - only", id)
	}
	return marshalName(pkix.RDNSequence{rdn(oidCommonName, asn1.TagUTF8String, id)})
}

// A nameType is a kind of attribute in a name. Limits are in characters, from RFC
// 5280, appendix A.1, and X.520; string types from RFC 5280, 4.1.2.4 and A.1.
type nameType struct {
	name     string
	oid      asn1.ObjectIdentifier
	tag      int
	min, max int
}

var nameTypes = []nameType{
	{"CN", oidCommonName, asn1.TagUTF8String, 1, 64},
	{"serialNumber", asn1.ObjectIdentifier{2, 5, 4, 5}, asn1.TagPrintableString, 1, 64},
	{"C", asn1.ObjectIdentifier{2, 5, 4, 6}, asn1.TagPrintableString, 2, 2},
	{"L", asn1.ObjectIdentifier{2, 5, 4, 7}, asn1.TagUTF8String, 1, 128},
	{"ST", asn1.ObjectIdentifier{2, 5, 4, 8}, asn1.TagUTF8String, 1, 128},
	{"STREET", asn1.ObjectIdentifier{2, 5, 4, 9}, asn1.TagUTF8String, 1, 128},
	{"O", asn1.ObjectIdentifier{2, 5, 4, 10}, asn1.TagUTF8String, 1, 64},
	{"OU", asn1.ObjectIdentifier{2, 5, 4, 11}, asn1.TagUTF8String, 1, 64},
	{"DC", asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 25}, asn1.TagIA5String, 1, 63},
	{"UID", asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}, asn1.TagUTF8String, 1, 256},
	{"emailAddress", asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, asn1.TagIA5String, 1, 255},
}

// ParseDN reads a name as people write it, RFC 4514, for example
//
//	CN=dev-1,OU=Pumps\, large,O=Acme,C=DE
//
// and returns it as DER. As that RFC has it (2.1), the string begins with what
// stands last in the certificate: here the country comes first in DER. It is how
// openssl prints names with -nameopt rfc2253, how LDAP and crypto/x509 do, and the
// reverse of what openssl's -subj takes.
//
// Types are CN, serialNumber, C, L, ST, STREET, O, OU, DC, UID and emailAddress, in
// any case, or dotted object identifiers. Spaces around types and values are passed
// over; one that belongs to a value is escaped. Not taken are an RDN of several
// values ("CN=a+OU=b"), values in hex ("CN=#0c0161"), control characters, and
// what does not fit the type: its length, or the characters of its string type.
func ParseDN(s string) ([]byte, error) {
	der, err := parseDN(s)
	if err != nil {
		return nil, fmt.Errorf("cannot read name %.80q: %w", s, err)
	}
	return der, nil
}

func parseDN(s string) ([]byte, error) {
	if len(s) > dnLimit {
		return nil, fmt.Errorf("it has %d bytes, limit %d", len(s), dnLimit)
	}
	var name pkix.RDNSequence
	for more := true; more; {
		kind, rest, ok := strings.Cut(s, "=")
		if !ok {
			return nil, fmt.Errorf("%.80q is not of the form TYPE=VALUE", s)
		}
		t, err := findNameType(strings.Trim(kind, " "))
		if err != nil {
			return nil, err
		}
		var value string
		if value, s, more, err = cutValue(rest); err == nil {
			err = t.check(value)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.name, err)
		}
		if len(name) == rdnLimit {
			return nil, fmt.Errorf("it has more than %d attributes", rdnLimit)
		}
		name = append(name, rdn(t.oid, t.tag, value))
	}
	slices.Reverse(name)
	return marshalName(name)
}

// findNameType knows a type by its name or its object identifier. Of one that is
// not in the table, values are UTF8String.
func findNameType(kind string) (nameType, error) {
	unknown := nameType{name: kind, tag: asn1.TagUTF8String, min: 1, max: 256}
	if kind != "" && kind[0] >= '0' && kind[0] <= '9' {
		var err error
		if unknown.oid, err = parseOID(kind); err != nil {
			return nameType{}, err
		}
	}
	for _, t := range nameTypes {
		if strings.EqualFold(kind, t.name) || t.oid.Equal(unknown.oid) {
			return t, nil
		}
	}
	if unknown.oid == nil {
		return nameType{}, fmt.Errorf("%.80q is no attribute type that is known here", kind)
	}
	return unknown, nil
}

func parseOID(s string) (oid asn1.ObjectIdentifier, err error) {
	for part := range strings.SplitSeq(s, ".") {
		n, err := strconv.ParseUint(part, 10, 30)
		if err != nil || part != strconv.FormatUint(n, 10) || len(oid) == oidLimit {
			return nil, fmt.Errorf("%.80q is no object identifier", s)
		}
		oid = append(oid, int(n))
	}
	if len(oid) < 2 || oid[0] > 2 || oid[0] < 2 && oid[1] > 39 {
		return nil, fmt.Errorf("%.80q is no object identifier", s)
	}
	return oid, nil
}

// cutValue takes a value off s, up to the comma after it (RFC 4514, 2.4 and 3).
func cutValue(s string) (value, rest string, more bool, err error) {
	s = strings.TrimLeft(s, " ")
	if strings.HasPrefix(s, "#") {
		return "", "", false, errors.New(`values in hex are not taken; a "#" that begins a value is written "\#"`)
	}
	var v []byte
	end := 0 // of v, as far as trailing spaces belong to it
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == ',':
			return string(v[:end]), s[i+1:], true, nil
		case c == '+':
			return "", "", false, errors.New(`an RDN of several values is not taken; a "+" in a value is written "\+"`)
		case strings.IndexByte(`";<>`, c) >= 0:
			return "", "", false, fmt.Errorf(`%q in a value is written "\%c"`, string(c), c)
		case c == '\\':
			b, n, err := unescape(s[i+1:])
			if err != nil {
				return "", "", false, err
			}
			v, i = append(v, b), i+n
			end = len(v)
		default:
			v = append(v, c)
			if c != ' ' {
				end = len(v)
			}
		}
	}
	return string(v[:end]), "", false, nil
}

// unescape reads what follows a backslash: a special character, or an octet as two
// hex digits. It says how much it took.
func unescape(s string) (octet byte, n int, err error) {
	if s != "" && strings.IndexByte(` "#+,;<=>\`, s[0]) >= 0 {
		return s[0], 1, nil
	}
	if len(s) >= 2 {
		if b, err := hex.DecodeString(s[:2]); err == nil {
			return b[0], 2, nil
		}
	}
	return 0, 0, errors.New("a backslash stands before a special character or two hex digits")
}

// check holds a value against its type.
func (t nameType) check(value string) error {
	if !utf8.ValidString(value) {
		return errors.New("the value is not UTF-8")
	}
	if n := utf8.RuneCountInString(value); n < t.min || n > t.max {
		return fmt.Errorf("the value has %d characters, want %d to %d", n, t.min, t.max)
	}
	for _, r := range value {
		if unicode.IsControl(r) || t.tag == asn1.TagIA5String && r >= utf8.RuneSelf || t.tag == asn1.TagPrintableString && !isPrintable(r) {
			return fmt.Errorf("the value cannot have the character %q", r)
		}
	}
	return nil
}

// isPrintable reports whether a PrintableString can have r (X.680, 41.4).
func isPrintable(r rune) bool {
	return isAlphanumeric(r) || strings.ContainsRune(" '()+,-./:=?", r)
}

func isAlphanumeric(r rune) bool {
	return 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z' || '0' <= r && r <= '9'
}

func rdn(oid asn1.ObjectIdentifier, tag int, value string) pkix.RelativeDistinguishedNameSET {
	return pkix.RelativeDistinguishedNameSET{{Type: oid, Value: asn1.RawValue{Tag: tag, Bytes: []byte(value)}}}
}

func marshalName(name pkix.RDNSequence) ([]byte, error) { return asn1.Marshal(name) }
