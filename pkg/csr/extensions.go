package csr

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"

	"birthmark/pkg/cms"
)

// Apply adds the extensions to req that the CA wished for, with the CA's values (RFC
// 9908, 3.2), as far as they are harmless: a certificate issued as requested lets its
// key do only what a device does. Nobody between device and CA shall be able to make
// the device ask for more. Harmless are
//
//   - subjectAltName and certificatePolicies
//   - keyUsage without keyCertSign and cRLSign
//   - extKeyUsage without those by which others come to trust the device: any usage,
//     signing of code, OCSP and time stamps, and certificate management, with which it
//     could pose as an EST server (RFC 7030, 3.6.1)
//   - basicConstraints that say: not a CA
//
// Others are passed over. What req has already stays as it is, and a renewal gets no
// names that the present certificate does not have (RFC 7030, 4.2.2).
func (a Attrs) Apply(req *Request) {
	for _, e := range a.extensions {
		has := slices.ContainsFunc(req.Extensions, func(r pkix.Extension) bool { return r.Id.Equal(e.Id) })
		if !has && !(req.renewal && e.Id.Equal(oidSubjectAltName)) {
			req.Extensions = append(req.Extensions, e)
		}
	}
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// harmless says which extensions are, and with which values, DER.
var harmless = map[string]func(value []byte) bool{
	"2.5.29.15": isDeviceKeyUsage,
	"2.5.29.17": isSequence,
	"2.5.29.19": func(value []byte) bool { return bytes.Equal(value, []byte{0x30, 0x00}) }, // cA is FALSE by default
	"2.5.29.32": isSequence,
	"2.5.29.37": isDeviceExtKeyUsage,
}

// A wishedExtension is one as in RFC 5280, 4.1, whatever the size of the numbers in
// its identifier.
type wishedExtension struct {
	ID       asn1.RawValue
	Critical bool `asn1:"optional"`
	Value    []byte
}

// harmlessExtensions reads a list of extensions, of which each may stand there once,
// and returns the harmless ones. In examples of drafts of RFC 9908 one extension
// stands there without a list around it.
func harmlessExtensions(der []byte) (list []pkix.Extension, err error) {
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
