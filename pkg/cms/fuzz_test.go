package cms

import (
	"bytes"
	"errors"
	"testing"
	"time"

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

// A message costs a device little: less than 5 ms is the aim for RSA of 4096 bits.
// What is asserted leaves room for a busy machine.
func TestVerifyingTakesLittleTime(t *testing.T) {
	d := draftOf(house().firmware.signer("Signer", keys["RSA-4096"]()))
	der := d.der()
	least := time.Hour
	for range 20 {
		start := time.Now()
		if stage, err := judge(der, nil, d.trust); err != nil {
			t.Fatal(stage, err)
		}
		least = min(least, time.Since(start))
	}
	if least > 20*time.Millisecond {
		t.Errorf("the fastest of 20 took %v, want 5 ms, or 20 ms on a slow machine", least)
	}
}
