package cms

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"slices"
	"testing"

	"go.mozilla.org/pkcs7"
)

// Whatever comes in: no panic, and either a refusal with a code or a message whose
// content is what its digest says, from a buffer that may be reused.
func FuzzReadSigned(f *testing.F) {
	for _, change := range []func(*draft){
		func(*draft) {},
		func(d *draft) { d.detached = true },
		func(d *draft) { d.by(rsaSigner()) },
		func(d *draft) { d.byPSS(rsaSigner(), 32) },
		func(d *draft) { d.unsigned = tlv(tagContext1) },
		attributesAsContent,
	} {
		d := draftOf(signer())
		change(d)
		f.Add(d.der())
	}
	f.Add(file(f, "signed.p7"))
	f.Add(file(f, "detached.p7"))
	f.Fuzz(func(t *testing.T, der []byte) {
		s, err := ReadSigned(der)
		if err != nil {
			var r *Refusal
			if !errors.As(err, &r) || r.Code == "" || s != nil {
				t.Fatalf("%v, %v, want nothing and a refusal with a code", s, err)
			}
			return
		}
		if s.Signer == nil || len(s.Digest) != s.Hash.Size() || s.Content != nil && !bytes.Equal(sum(s.Hash, s.Content), s.Digest) {
			t.Fatalf("believed: %+v", s)
		}
	})
}

// What signed attributes are believed to say is what encoding/asn1 reads in them.
func FuzzAttributes(f *testing.F) {
	for _, change := range []func(*draft){
		func(*draft) {},
		func(d *draft) { d.set([]byte{0x2a, 3}, tlv(tagSet), tlv(tagSet)) },
		func(d *draft) { d.set(idContentType, tlv(tagOID, idData), tlv(tagOID, idData)) },
		func(d *draft) { d.attributes = append(d.attributes, d.attributes[2]) },
	} {
		d := draftOf(signer())
		change(d)
		slices.SortFunc(d.attributes, bytes.Compare)
		f.Add(slices.Concat(d.attributes...))
	}
	f.Fuzz(func(t *testing.T, set []byte) {
		if CheckDER(tlv(tagSet, set)) != nil {
			return // readAttributes never sees it
		}
		digest, err := readAttributes(set, plainData)
		if err != nil {
			return
		}
		var attributes []struct {
			Type   asn1.ObjectIdentifier
			Values []asn1.RawValue `asn1:"set"`
		}
		if _, err := asn1.UnmarshalWithParams(tlv(tagSet, set), &attributes, "set"); err != nil {
			return // types or tags that it does not know; then the second reader refuses
		}
		types, digests := 0, 0
		for _, a := range attributes {
			switch {
			case a.Type.Equal(pkcs7.OIDAttributeContentType):
				types += len(a.Values)
			case a.Type.Equal(pkcs7.OIDAttributeMessageDigest):
				digests += len(a.Values)
				if !bytes.Equal(a.Values[0].Bytes, digest) {
					t.Fatalf("the digest is % x, not % x", a.Values[0].Bytes, digest)
				}
			}
		}
		if types != 1 || digests != 1 {
			t.Fatalf("believed with %d values of contentType and %d of messageDigest: % x", types, digests, set)
		}
		if sorted, err := asn1.MarshalWithParams(attributes, "set"); err == nil && !bytes.Equal(sorted, tlv(tagSet, set)) {
			t.Fatalf("believed, though DER is % x, not % x", sorted, set)
		}
	})
}

// The second reader gets what CheckDER let through, and never panics.
func FuzzSecondReader(f *testing.F) {
	f.Add(draftOf(signer()).der())
	f.Add(file(f, "signed.p7"))
	f.Add(file(f, "enveloped.p7"))
	f.Add(file(f, "crl.p7"))
	f.Fuzz(func(_ *testing.T, der []byte) {
		if len(der) > SignedLimit || CheckDER(der) != nil {
			return
		}
		if p, err := pkcs7.Parse(der); err == nil {
			p.GetOnlySigner()
			var digest []byte
			_ = p.UnmarshalSignedAttribute(pkcs7.OIDAttributeMessageDigest, &digest)
		}
	})
}

// A CRL is nobody's until a chain says whose: whatever it is, only the right one makes a
// signer believed.
func FuzzReadCRL(f *testing.F) {
	root, firmware := house().root.revokes(nil), house().firmware.revokes(nil)
	f.Add(firmware.Raw)
	f.Add(house().firmware.revokes(nil, signer().cert).Raw)
	f.Add(house().namesake.revokes(nil).Raw)
	s, err := ReadSigned(draftOf(signer()).der())
	must(err)
	f.Fuzz(func(t *testing.T, der []byte) {
		crl, err := ReadCRL(der)
		if err != nil {
			return
		}
		tr := trust()
		tr.CRLs = append(tr.CRLs[:0], root, crl)
		if _, err := tr.Verify(s); err == nil && !bytes.Equal(crl.RawTBSRevocationList, firmware.RawTBSRevocationList) {
			t.Fatalf("believed because of a CRL that the CA never made: % x", der)
		}
	})
}
