package csr

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"

	"birthmark/pkg/cms"
)

const (
	attrsSizeLimit = 64 << 10 // bytes of CSR attributes
	attrsLimit     = 128      // of them, and of extensions
	attrOIDLimit   = 64       // octets of an object identifier; none that is known is longer
)

// Attrs are a CA's wishes for a request. The zero Attrs wish for nothing.
type Attrs struct {
	// ChallengePassword: the CA wants proof that the request was made for the TLS
	// connection over which it comes (RFC 7030, 3.5).
	ChallengePassword bool

	subject    nameTemplate     // nil if all names are welcome
	extensions []pkix.Extension // harmless ones only
	keys       []string         // kinds of key, in the CA's order
	signatures []string         // kinds of key that wished signatures come from
}

// Kinds of key, as [Attrs.Algorithm] names them. Besides them, anyEC leaves the
// curve open, and another is one that we do not have.
const (
	p256    = "P-256"
	p384    = "P-384"
	rsa2048 = "RSA-2048"
	anyEC   = "EC"
	another = ""
)

// What CAs wish with.
const (
	attrChallengePassword = "1.2.840.113549.1.9.7"       // RFC 2985, 5.4.1
	attrExtensionRequest  = "1.2.840.113549.1.9.14"      // RFC 2985, 5.4.2
	attrTemplate          = "1.2.840.113549.1.9.16.2.61" // RFC 9908, 3.4
	attrExtensionTemplate = "1.2.840.113549.1.9.16.2.62" // the same; within a template only
	keyEC                 = "1.2.840.10045.2.1"
	keyRSA                = "1.2.840.113549.1.1.1"
)

var (
	curves = map[string]string{
		"1.2.840.10045.3.1.7": p256,
		"1.3.132.0.34":        p384,
	}
	signatures = map[string]string{
		"1.2.840.10045.4.3.2":   p256,    // ecdsa-with-SHA256
		"1.2.840.10045.4.3.3":   p384,    // ecdsa-with-SHA384
		"1.2.840.113549.1.1.11": rsa2048, // sha256WithRSAEncryption
	}
)

// Algorithm is the kind of key that the CA wishes for, "P-256", "P-384" or
// "RSA-2048": the first of its list that we have. A wish for elliptic curves in
// general is one for P-256, or for P-384 if the CA wants to see SHA-384; one for RSA
// in general is for 2048 bits. Where only a signature is wished for, the key is one
// that makes it.
//
// It is not ok if the CA has no such wish, or only for keys that we do not have, RSA
// of 4096 bits for example. Then the device sends what it has: the CA may take it, and
// if not, its refusal is plainer than one of ours could be.
func (a Attrs) Algorithm() (algorithm string, ok bool) {
	wishes := a.keys
	if len(wishes) == 0 {
		wishes = a.signatures
	}
	for _, kind := range wishes {
		switch {
		case kind == anyEC && slices.Contains(a.signatures, p384):
			return p384, true
		case kind == anyEC:
			return p256, true
		case kind != another:
			return kind, true
		}
	}
	return "", false
}

// ParseAttrs reads CSR attributes (RFC 7030, 4.5.2; RFC 9908, 3.2). What it does not
// know it passes over; no bytes, and none in a SEQUENCE, are no wishes.
//
// Where there is a template (RFC 9908, 3.4), its wishes are the only ones: it makes
// everything beside it void (section 4 there), whatever that is.
func ParseAttrs(der []byte) (Attrs, error) {
	a, err := parseAttrs(der)
	if err != nil {
		return Attrs{}, fmt.Errorf("cannot read CSR attributes: %w", err)
	}
	return a, nil
}

func parseAttrs(der []byte) (a Attrs, err error) {
	if len(der) == 0 {
		return a, nil
	}
	if len(der) > attrsSizeLimit {
		return a, fmt.Errorf("%d bytes, limit %d", len(der), attrsSizeLimit)
	}
	if err := cms.CheckDER(der); err != nil {
		return a, err
	}
	var items []asn1.RawValue
	if _, err := asn1.Unmarshal(der, &items); err != nil {
		return a, err
	}
	if len(items) > attrsLimit {
		return a, fmt.Errorf("%d attributes, limit %d", len(items), attrsLimit)
	}
	wishes := make([]wish, len(items))
	for i, item := range items {
		if wishes[i], err = parseWish(item); err != nil {
			return a, err
		}
	}
	isTemplate := func(w wish) bool { return w.kind == attrTemplate }
	if i := slices.IndexFunc(wishes, isTemplate); i >= 0 {
		if slices.ContainsFunc(wishes[i+1:], isTemplate) {
			return a, errors.New("more than one template")
		}
		return parseTemplate(wishes[i].values)
	}
	// There is one list of extensions at most (RFC 9908, 3.2). The examples of RFC 7030
	// had object identifiers in its place; without a value they are no use.
	var lists []asn1.RawValue
	for _, w := range wishes {
		if w.kind == attrExtensionRequest {
			lists = append(lists, slices.DeleteFunc(w.values, isOID)...)
		}
		a.add(w)
	}
	if len(lists) > 1 {
		return a, errors.New("more than one list of extensions")
	}
	if len(lists) == 1 {
		a.extensions, err = harmlessExtensions(lists[0].FullBytes, false)
	}
	return a, err
}

// A wish is one element of CSR attributes. An OBJECT IDENTIFIER that stands alone
// and an attribute without values say the same.
type wish struct {
	kind   string // dotted
	values []asn1.RawValue
}

func parseWish(item asn1.RawValue) (w wish, err error) {
	if isOID(item) {
		return wish{kind: dotted(item)}, nil
	}
	var attr struct {
		Type   asn1.RawValue
		Values []asn1.RawValue `asn1:"set"`
	}
	if _, err := asn1.Unmarshal(item.FullBytes, &attr); err != nil || !isOID(attr.Type) {
		return w, errors.New("an element is neither an object identifier nor an attribute")
	}
	return wish{dotted(attr.Type), attr.Values}, nil
}

func isOID(v asn1.RawValue) bool {
	return v.Class == asn1.ClassUniversal && v.Tag == asn1.TagOID
}

// dotted is an object identifier in dotted form, or "" if it is none that could be
// known. Numbers may be larger than encoding/asn1 takes.
func dotted(v asn1.RawValue) string {
	var oid x509.OID
	if !isOID(v) || len(v.Bytes) > attrOIDLimit || oid.UnmarshalBinary(v.Bytes) != nil {
		return ""
	}
	return oid.String()
}

// add notes a wish that is not about extensions.
func (a *Attrs) add(w wish) {
	switch {
	case w.kind == attrChallengePassword:
		a.ChallengePassword = true
	case w.kind == keyEC && len(w.values) == 0:
		a.keys = append(a.keys, anyEC)
	case w.kind == keyEC:
		for _, v := range w.values {
			a.keys = append(a.keys, curves[dotted(v)])
		}
	case w.kind == keyRSA && len(w.values) == 0:
		a.keys = append(a.keys, rsa2048)
	case w.kind == keyRSA:
		for _, v := range w.values {
			a.keys = append(a.keys, rsaOf(v))
		}
	case curves[w.kind] != another: // libest wishes for a curve so, without the key
		a.keys = append(a.keys, curves[w.kind])
	case signatures[w.kind] != another:
		a.signatures = append(a.signatures, signatures[w.kind])
	}
}

// rsaOf is the kind of RSA key of which size is the INTEGER.
func rsaOf(size asn1.RawValue) string {
	var bits int
	if _, err := asn1.Unmarshal(size.FullBytes, &bits); err != nil || bits != 2048 {
		return another
	}
	return rsa2048
}
