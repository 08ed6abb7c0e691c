package csr

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"

	"birthmark/pkg/cms"
)

// Apply gives req the name that the CA wished for in a template, where the device has
// what to fill its holes with (RFC 9908, 3.4). The common name stays, whatever the CA
// wishes.
//
// It then adds the extensions that the CA wished for, with the CA's values (RFC 9908,
// 3.2) or where it left that open with a device's, as far as they are harmless: a
// certificate issued as requested lets its key do only what a device does. Nobody
// between device and CA shall be able to make the device ask for more. Harmless are
//
//   - subjectAltName and certificatePolicies
//   - keyUsage without keyCertSign and cRLSign
//   - extKeyUsage without those by which others come to trust the device: any usage,
//     signing of code, OCSP and time stamps, and certificate management, with which it
//     could pose as an EST server (RFC 7030, 3.6.1)
//   - basicConstraints that say: not a CA
//
// Others are passed over. What req has already stays as it is, and a renewal keeps the
// names that the present certificate has (RFC 7030, 4.2.2).
func (a Attrs) Apply(req *Request) {
	if a.subject != nil && !req.renewal {
		// A subject that is none stays, for Build to complain about.
		if filled, err := a.subject.fill(req.Subject); err == nil {
			req.Subject = filled
		}
	}
	for _, e := range a.extensions {
		has := slices.ContainsFunc(req.Extensions, func(r pkix.Extension) bool { return r.Id.Equal(e.Id) })
		if !has && !(req.renewal && e.Id.Equal(oidSubjectAltName)) {
			req.Extensions = append(req.Extensions, e)
		}
	}
}

const subjectAltNameType = "2.5.29.17"

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// harmless says which extensions are, and with which values, DER.
var harmless = map[string]func(value []byte) bool{
	"2.5.29.15":        isDeviceKeyUsage,
	subjectAltNameType: isSequence,
	"2.5.29.19":        func(value []byte) bool { return bytes.Equal(value, []byte{0x30, 0x00}) }, // cA is FALSE by default
	"2.5.29.32":        isSequence,
	"2.5.29.37":        isDeviceExtKeyUsage,
}

// A device's values for extensions whose value a template leaves open: to sign, as a
// client of TLS, and not as a CA.
var deviceValues = map[string][]byte{
	"2.5.29.15": {0x03, 0x02, 0x07, 0x80},
	"2.5.29.19": {0x30, 0x00},
	"2.5.29.37": {0x30, 0x0a, 0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02},
}

// A wishedExtension is one as in RFC 5280, 4.1, whatever the size of the numbers in
// its identifier. Within a template its value may be left open (RFC 9908, 3.4).
type wishedExtension struct {
	ID       asn1.RawValue
	Critical bool   `asn1:"optional"`
	Value    []byte `asn1:"optional"`
}

// harmlessExtensions reads a list of extensions, of which each may stand there once,
// and returns the harmless ones. In examples of drafts of RFC 9908 one extension
// stands there without a list around it.
func harmlessExtensions(der []byte, template bool) (list []pkix.Extension, err error) {
	var all []wishedExtension
	if _, err := asn1.Unmarshal(der, &all); err != nil {
		var one wishedExtension
		if _, alone := asn1.Unmarshal(der, &one); alone != nil {
			return nil, fmt.Errorf("extensions: %w", err)
		}
		all = []wishedExtension{one}
	}
	if len(all) > attrsLimit {
		return nil, fmt.Errorf("%d extensions, limit %d", len(all), attrsLimit)
	}
	seen := map[string]bool{}
	for _, e := range all {
		if seen[string(e.ID.FullBytes)] {
			return nil, fmt.Errorf("extension %s occurs twice", dotted(e.ID))
		}
		seen[string(e.ID.FullBytes)] = true
		allows := harmless[dotted(e.ID)]
		switch {
		case e.Value == nil && !template:
			return nil, fmt.Errorf("extensions: %s has no value", dotted(e.ID))
		case e.Value == nil:
			e.Value = deviceValues[dotted(e.ID)]
		case dotted(e.ID) == subjectAltNameType:
			e.Value = withoutHoles(e.Value)
		}
		if allows == nil || cms.CheckDER(e.Value) != nil || !allows(e.Value) {
			continue
		}
		var id asn1.ObjectIdentifier
		if _, err := asn1.Unmarshal(e.ID.FullBytes, &id); err != nil {
			return nil, err
		}
		list = append(list, pkix.Extension{Id: id, Critical: e.Critical, Value: e.Value})
	}
	return list, nil
}

// withoutHoles is a GeneralNames without those names that the CA leaves to the client:
// an address of no bytes, and a directory name of no parts (RFC 9908, 3.4). A device has
// no such names. Nothing is left where there were no others.
func withoutHoles(value []byte) []byte {
	var names []asn1.RawValue
	if rest, err := asn1.Unmarshal(value, &names); err != nil || len(rest) > 0 {
		return value
	}
	n := len(names)
	names = slices.DeleteFunc(names, func(n asn1.RawValue) bool {
		return n.Class == asn1.ClassContextSpecific && (n.Tag == 7 && len(n.Bytes) == 0 || n.Tag == 4 && bytes.Equal(n.Bytes, []byte{0x30, 0x00}))
	})
	switch {
	case len(names) == n:
		return value
	case len(names) == 0:
		return nil
	}
	filled, err := asn1.Marshal(names)
	if err != nil {
		return value
	}
	return filled
}

func isSequence(value []byte) bool { return value[0] == 0x30 }

// isDeviceKeyUsage: RFC 5280, 4.2.1.3.
func isDeviceKeyUsage(value []byte) bool {
	const keyCertSign, cRLSign = 5, 6
	var bits asn1.BitString
	rest, err := asn1.Unmarshal(value, &bits)
	return err == nil && len(rest) == 0 && bits.At(keyCertSign) == 0 && bits.At(cRLSign) == 0
}

// notOfDevices are the usages of keys that others rely on (RFC 5280, 4.2.1.12; RFC
// 6402, 2.10).
var notOfDevices = []asn1.ObjectIdentifier{
	{2, 5, 29, 37, 0},            // any
	{1, 3, 6, 1, 5, 5, 7, 3, 3},  // code signing
	{1, 3, 6, 1, 5, 5, 7, 3, 8},  // time stamping
	{1, 3, 6, 1, 5, 5, 7, 3, 9},  // OCSP signing
	{1, 3, 6, 1, 5, 5, 7, 3, 27}, // CMC CA
	{1, 3, 6, 1, 5, 5, 7, 3, 28}, // CMC RA
}

func isDeviceExtKeyUsage(value []byte) bool {
	var usages []asn1.ObjectIdentifier
	rest, err := asn1.Unmarshal(value, &usages)
	return err == nil && len(rest) == 0 && !slices.ContainsFunc(usages, func(u asn1.ObjectIdentifier) bool {
		return slices.ContainsFunc(notOfDevices, u.Equal)
	})
}
