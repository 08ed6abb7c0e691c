package enroll

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"net"
	"slices"
)

// changeLimit is how much a CA may add to a name.
const changeLimit = 16

var (
	oidCommonName = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidAltName    = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// changes holds the name in leaf against the name that was asked for. A CA may add
// attributes to the subject, and alternative names; they are returned, in words. It
// may not take anything away, nor touch the common name, which is the device's id.
func (w *wish) changes(leaf *x509.Certificate) ([]string, error) {
	subject, err := subjectChanges(w.csr.Subject.Names, leaf.Subject.Names)
	if err != nil {
		return nil, err
	}
	alt, err := altNameChanges(altNames(w.csr.Extensions), altNames(leaf.Extensions))
	if err != nil {
		return nil, err
	}
	changes := append(subject, alt...)
	if len(changes) > changeLimit {
		return nil, answerErrorf("%d additions to the name that was asked for, limit %d", len(changes), changeLimit)
	}
	return changes, nil
}

func subjectChanges(asked, got []pkix.AttributeTypeAndValue) (changes []string, err error) {
	for _, a := range asked {
		if !slices.ContainsFunc(got, func(g pkix.AttributeTypeAndValue) bool { return sameAttribute(a, g) }) {
			return nil, answerErrorf("the subject lacks %s, which was asked for", attribute(a))
		}
	}
	named := slices.ContainsFunc(asked, isCommonName)
	for _, g := range got {
		if slices.ContainsFunc(asked, func(a pkix.AttributeTypeAndValue) bool { return sameAttribute(a, g) }) {
			continue
		}
		// Of two common names, software takes either.
		if named && isCommonName(g) {
			return nil, answerErrorf("the subject has the common name %s, which was not asked for", attribute(g))
		}
		changes = append(changes, "subject: added "+attribute(g))
	}
	return changes, nil
}

// sameAttribute compares values, not their encodings: a CA may turn a
// PrintableString into a UTF8String.
func sameAttribute(a, b pkix.AttributeTypeAndValue) bool {
	return a.Type.Equal(b.Type) && fmt.Sprintf("%#v", a.Value) == fmt.Sprintf("%#v", b.Value)
}

func isCommonName(a pkix.AttributeTypeAndValue) bool { return a.Type.Equal(oidCommonName) }

// attribute writes a as RFC 4514 does.
func attribute(a pkix.AttributeTypeAndValue) string {
	return said(pkix.RDNSequence{{a}}.String())
}

// altNames is the value of the subject alternative name, a GeneralNames; nil if
// there is none.
func altNames(extensions []pkix.Extension) []byte {
	for _, e := range extensions {
		if e.Id.Equal(oidAltName) {
			return e.Value
		}
	}
	return nil
}

func altNameChanges(asked, got []byte) (changes []string, err error) {
	want, err := generalNames(asked)
	if err != nil {
		return nil, fmt.Errorf("cannot use the request: its subject alternative name: %w", err)
	}
	have, err := generalNames(got)
	if err != nil {
		return nil, answerErrorf("the certificate's subject alternative name: %v", err)
	}
	for _, n := range want {
		if !slices.ContainsFunc(have, func(h asn1.RawValue) bool { return bytes.Equal(h.FullBytes, n.FullBytes) }) {
			return nil, answerErrorf("the subject alternative name lacks %s, which was asked for", generalName(n))
		}
	}
	for _, h := range have {
		if !slices.ContainsFunc(want, func(n asn1.RawValue) bool { return bytes.Equal(n.FullBytes, h.FullBytes) }) {
			changes = append(changes, "subject alternative name: added "+generalName(h))
		}
	}
	return changes, nil
}

func generalNames(value []byte) (names []asn1.RawValue, err error) {
	if value == nil {
		return nil, nil
	}
	rest, err := asn1.Unmarshal(value, &names)
	if err == nil && len(rest) != 0 {
		err = fmt.Errorf("%d bytes after its end", len(rest))
	}
	return names, err
}

// generalName writes a GeneralName for people (RFC 5280, 4.2.1.6).
func generalName(n asn1.RawValue) string {
	switch n.Tag {
	case 1:
		return "email " + said(string(n.Bytes))
	case 2:
		return "DNS name " + said(string(n.Bytes))
	case 6:
		return "URI " + said(string(n.Bytes))
	case 7:
		return "address " + net.IP(n.Bytes).String()
	}
	return fmt.Sprintf("a name of kind %d", n.Tag)
}
