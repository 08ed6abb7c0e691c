package cms

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// What a maker may do, as he has reasons to. openssl is of the same opinion about all of
// it, and ReadSigned only returns what another reader understands in the same way.
func TestGoodMessagesAreAccepted(t *testing.T) {
	h := house()
	code := x509.ExtKeyUsageCodeSigning
	for _, tc := range []struct {
		name   string
		change func(*draft)
	}{
		{"the plainest", func(*draft) {}},
		{"a detached signature", func(d *draft) { d.detached = true }},
		{"empty content", func(d *draft) { d.embed([]byte{}) }},
		{"content that looks like attributes", func(d *draft) { d.embed(tlv(tagSet, d.attributes...)) }},
		{"no signingTime", func(d *draft) { d.drop(idSigningTime) }},
		{"a signingTime that is not one of the certificate's", func(d *draft) { d.set(idSigningTime, tlv(tagUTCTime, []byte("490101000000Z"))) }},
		{"an attribute that nobody asks for, with two values", func(d *draft) { d.set([]byte{0x2a, 3}, tlv(tagSet), tlv(tagSet)) }},
		{"digest algorithms with NULL", func(d *draft) {
			d.digestAlgorithm = identifier(sha2(1), []byte{tagNull, 0})
			d.digests = tlv(tagSet, d.digestAlgorithm)
		}},
		{"digest algorithms with and without NULL", func(d *draft) { d.digests = tlv(tagSet, identifier(sha2(1), []byte{tagNull, 0})) }},
		{"sha256WithRSAEncryption", func(d *draft) {
			d.by(rsaSigner())
			d.signatureAlgorithm = identifier(pkcs1(11), []byte{tagNull, 0})
		}},
		{"rsaEncryption without NULL", func(d *draft) { d.by(rsaSigner()); d.signatureAlgorithm = identifier(idRSA) }},
		{"an RSA key as long as may be, nearly", as(h.firmware.signer("Long", newManyPrimes(rsaMost-300)))},
		{"RSASSA-PSS with as much salt as digest", func(d *draft) { d.byPSS(rsaSigner(), 32) }},
		{"RSASSA-PSS with more", func(d *draft) { d.byPSS(rsaSigner(), 127) }},
		{"RSASSA-PSS with all there is room for", func(d *draft) {
			d.signatureAlgorithm = pss(identifier(sha2(1)), mgf1(sha2(1)), tlv(tagInteger, []byte{0, 0xde}), nil)
			d.byKeeping(rsaSigner(), &rsa.PSSOptions{SaltLength: 256 - 32 - 2, Hash: crypto.SHA256})
		}},

		{"only the signer's certificate", func(d *draft) { d.certs = d.certs[:1] }},
		{"certificates in another order", func(d *draft) { slices.Reverse(d.certs) }},
		{"the root among them", func(d *draft) { d.certs = append(d.certs, h.root.cert.Raw) }},
		{"sixteen of them", func(d *draft) {
			for len(d.certs) < signedCertificateLimit {
				d.certs = append(d.certs, h.root.signer("Another", keys["P-256"]()).cert.Raw)
			}
		}},
		{"the sibling of the issuing CA among them", func(d *draft) { d.certs = append(d.certs, h.other.cert.Raw) }},
		{"a CA between the issuing one and the root", func(d *draft) {
			policy := h.root.issue("Policy CA", keys["P-384"](), nil)
			issuing := policy.issue("Issuing CA", keys["P-256"](), nil)
			d.by(issuing.signer("Signer", keys["P-256"]()))
			d.certs = [][]byte{d.certs[0], issuing.cert.Raw, policy.cert.Raw}
			d.trust.Issuers = []*x509.Certificate{h.firmware.cert, issuing.cert}
			d.trust.CRLs = append(d.trust.CRLs, policy.revokes(nil), issuing.revokes(nil))
		}},
		{"an issuing CA that was renewed", func(d *draft) {
			renewed := h.root.issue("Firmware CA", h.firmware.key, nil)
			d.trust.Issuers = append(d.trust.Issuers, renewed.cert)
		}},
		{"an issuing CA for code", func(d *draft) {
			ca := h.root.issue("Code CA", keys["P-256"](), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{code} })
			d.by(ca.signer("Signer", keys["P-256"]()))
			d.certs[1] = ca.cert.Raw
			d.trust.Issuers = []*x509.Certificate{ca.cert}
			d.trust.CRLs = append(d.trust.CRLs, ca.revokes(nil))
		}},
		{"an issuing CA that is an anchor itself", func(d *draft) {
			d.trust.Anchors = []*x509.Certificate{h.firmware.cert}
			d.trust.CRLs = d.trust.CRLs[1:]
		}},
		{"a root signed with SHA-1, by itself", func(d *draft) {
			var nobody *party
			root := nobody.issue("Old root", h.root.key, func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 })
			ca := root.issue("CA of an old root", keys["P-256"](), nil)
			d.by(ca.signer("Signer", keys["P-256"]()))
			d.certs[1] = ca.cert.Raw
			d.trust.Anchors = append(d.trust.Anchors, root.cert)
			d.trust.Issuers = []*x509.Certificate{ca.cert}
			d.trust.CRLs = append(d.trust.CRLs, root.revokes(nil), ca.revokes(nil))
		}},
		{"a signer for mail too", as(h.firmware.issue("Signer", keys["P-256"](), nil, code, x509.ExtKeyUsageEmailProtection))},
		{"a signer for what is wanted instead of code", func(d *draft) {
			d.by(h.firmware.issue("Signer", keys["P-256"](), nil, x509.ExtKeyUsageTimeStamping))
			d.trust.Usage = x509.ExtKeyUsageTimeStamping
		}},

		{"a CRL that is too old, within grace", func(d *draft) {
			d.trust.CRLs[1] = h.firmware.revokes(func(c *x509.RevocationList) { c.NextUpdate = now.Add(-23 * time.Hour) })
		}},
		{"a CRL of tomorrow", func(d *draft) {
			d.trust.CRLs[1] = h.firmware.revokes(func(c *x509.RevocationList) { c.ThisUpdate = now.AddDate(0, 0, 1) })
		}},
		{"CRLs that revoke others", func(d *draft) {
			d.trust.CRLs = []*x509.RevocationList{h.root.revokes(nil, h.other.cert), h.firmware.revokes(nil, rsaSigner().cert)}
		}},
		{"a forged CRL beside the right ones", func(d *draft) {
			d.trust.CRLs = append([]*x509.RevocationList{h.namesake.revokes(nil, signer().cert)}, d.trust.CRLs...)
		}},
		{"an old CRL beside a new one", func(d *draft) {
			d.trust.CRLs = append([]*x509.RevocationList{h.firmware.revokes(func(c *x509.RevocationList) {
				c.ThisUpdate, c.NextUpdate = now.AddDate(-1, 0, 0), now.AddDate(0, -11, 0)
			})}, d.trust.CRLs...)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := draftOf(signer())
			tc.change(d)
			der := d.der()
			if stage, err := judge(der, d.shown, d.trust); err != nil {
				t.Errorf("refused at stage %q: %v", stage, err)
			}
			if err := opensslVerifies(t, der, d); err != nil {
				t.Errorf("openssl refuses it: %v", err)
			}
		})
	}
}

// byKeeping is by, but for the algorithm.
func (d *draft) byKeeping(signer *party, opts crypto.SignerOpts) {
	algorithm := d.signatureAlgorithm
	d.by(signer)
	d.signatureAlgorithm = algorithm
	d.signWith(signer, opts)
}

// That attributes must be there is not for form's sake: this message, which nobody
// signed, is one that openssl believes.
func TestOpenSSLBelievesAttributesAsContent(t *testing.T) {
	d := draftOf(signer())
	attributesAsContent(d)
	if err := opensslVerifies(t, d.der(), d); err != nil {
		t.Errorf("openssl refuses it, so the forgery proves nothing: %v", err)
	}
}

// opensslVerifies asks openssl about a message, its content and a chain to who is known
// to the draft's device.
func opensslVerifies(t *testing.T, der []byte, d *draft) error {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		must(os.WriteFile(path, b, 0o600))
		return path
	}
	var known []byte
	for _, c := range slices.Concat(d.trust.Anchors, d.trust.Issuers) {
		known = append(known, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	args := []string{"cms", "-verify", "-inform", "DER", "-binary", "-in", write("message", der), "-out", os.DevNull, "-purpose", "any",
		"-partial_chain", "-attime", fmt.Sprint(now.Unix()), "-CAfile", write("known", known)}
	if d.detached {
		args = append(args, "-content", write("content", d.shown))
	}
	if out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// Whatever the second reader might find otherwise is noticed.
func TestReadersHaveToAgree(t *testing.T) {
	two := draftOf(signer())
	two.more = signerOf(two)
	other := house().other.cert
	for _, tc := range []struct {
		name   string
		der    []byte
		change func(*Signed, *signerInfo)
	}{
		{"another number of signers", two.der(), func(*Signed, *signerInfo) {}},
		{"other content", nil, func(s *Signed, _ *signerInfo) { s.Content = []byte("other") }},
		{"no content", nil, func(s *Signed, _ *signerInfo) { s.Content = nil }},
		{"one certificate more", nil, func(s *Signed, _ *signerInfo) { s.Certificates = append(s.Certificates, other) }},
		{"another certificate", nil, func(s *Signed, _ *signerInfo) { s.Certificates[1] = other }},
		{"another signer", nil, func(s *Signed, _ *signerInfo) { s.Signer = other }},
		{"another digest", nil, func(s *Signed, _ *signerInfo) { s.Digest = make([]byte, 32) }},
		{"another signature", nil, func(_ *Signed, i *signerInfo) { i.signature = i.signature[1:] }},
		{"nothing that is a message", []byte{tagNull, 0}, func(*Signed, *signerInfo) {}},
	} {
		d := draftOf(signer())
		der := d.der()
		s, err := ReadSigned(der)
		must(err)
		parts, err := takeApart(der, plainData)
		must(err)
		info, err := readSignerInfo(parts.signer, plainData)
		must(err)
		if err := agree(der, s, info); err != nil {
			t.Fatal(err)
		}
		if tc.der != nil {
			der = tc.der
		}
		tc.change(s, info)
		var r *Refusal
		if err := agree(der, s, info); !errors.As(err, &r) || r.Code != "ambiguous" {
			t.Errorf("%s: %v, want a refusal with the code ambiguous", tc.name, err)
		}
	}
}

// Why a chain cannot be built is for whoever asks, a device that wants to know the time
// for example.
func TestRefusalsHoldTheirReason(t *testing.T) {
	d := draftOf(signer())
	d.by(house().firmware.issue("Old", keys["P-256"](), func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Hour) }, x509.ExtKeyUsageCodeSigning))
	_, err := judge(d.der(), nil, d.trust)
	var invalid x509.CertificateInvalidError
	if !errors.As(err, &invalid) || invalid.Reason != x509.Expired {
		t.Errorf("%v, want an x509.CertificateInvalidError", err)
	}
}

func TestSignedSharesNoMemoryWithTheMessage(t *testing.T) {
	der := draftOf(signer()).der()
	s, err := ReadSigned(der)
	if err != nil {
		t.Fatal(err)
	}
	digest := bytes.Clone(s.Digest)
	clear(der)
	if string(s.Content) != manifest || !bytes.Equal(s.Digest, digest) || !bytes.Equal(s.Signer.Raw, signer().cert.Raw) {
		t.Error("what was read changed with the buffer that it was read from")
	}
}

// One flipped bit may be in a certificate that nobody uses. Nothing that is returned
// and vouched for may change with it.
func TestNoFlippedBitIsBelieved(t *testing.T) {
	der := draftOf(signer()).der()
	believed := 0
	for i := range der {
		flipped := bytes.Clone(der)
		flipped[i] ^= 1 << (i % 8)
		s, err := ReadSigned(flipped)
		if err != nil {
			continue
		}
		believed++
		if string(s.Content) != manifest || !s.Signer.Equal(signer().cert) {
			if _, err := trust().Verify(s); err == nil {
				t.Errorf("bit %d of byte %d flipped: content %q of %q is believed", i%8, i, s.Content, s.Signer.Subject)
			}
		}
	}
	if certs := len(signer().cert.Raw) + len(house().firmware.cert.Raw); believed > certs {
		t.Errorf("%d of %d flipped bits are believed, want no more than there are in certificates, %d", believed, len(der), certs)
	}
	for n := range der {
		if _, err := ReadSigned(der[:n]); err == nil {
			t.Fatalf("the first %d bytes of %d are believed", n, len(der))
		}
	}
}

// The most work that somebody without any key can make: a message as long as may be, of
// elements as small as can be, which both readers have to take apart.
func TestReadSignedWorksNoMoreThanTheSizeAllows(t *testing.T) {
	d := draftOf(signer())
	d.set([]byte{0x2a, 3}, bytes.Repeat([]byte{tagNull, 0}, (SignedLimit-2048)/2))
	d.sign = func([]byte) []byte { return make([]byte, 70) }
	der := d.der()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := ReadSigned(der)
	runtime.ReadMemStats(&after)
	if err == nil {
		t.Error("it is believed")
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
		t.Errorf("%d bytes of memory for a message of %d, want 16 MiB at most: %v", n, len(der), err)
	} else {
		t.Logf("%d bytes of memory for a message of %d: %v", n, len(der), err)
	}
}

func TestNoFlippedBitOfACRLIsBelieved(t *testing.T) {
	s, err := ReadSigned(draftOf(signer()).der())
	if err != nil {
		t.Fatal(err)
	}
	tr := trust()
	der := tr.CRLs[1].Raw
	for i := range der {
		flipped := bytes.Clone(der)
		flipped[i] ^= 1 << (i % 8)
		crl, err := ReadCRL(flipped)
		if err != nil {
			continue
		}
		tr.CRLs[1] = crl
		if _, err := tr.Verify(s); err == nil {
			t.Errorf("bit %d of byte %d of a CRL flipped, and it is believed", i%8, i)
		}
	}
}

func TestReadCRLRefuses(t *testing.T) {
	der := house().root.revokes(nil).Raw
	for _, tc := range []struct {
		name string
		der  []byte
		want string
	}{
		{"nothing", nil, "not DER"},
		{"bytes after the end", append(bytes.Clone(der), 0), "after the end"},
		{"half of one", der[:len(der)/2], "not DER"},
		{"a certificate", house().root.cert.Raw, "x509"},
		{"more than the limit", tlv(tagSequence, make([]byte, CRLLimit)), "limit"},
	} {
		if crl, err := ReadCRL(tc.der); err == nil || crl != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want an error about %q", tc.name, err, tc.want)
		}
	}
}

// Next to the signatures that have to be verified, one of which twice, nothing costs much.
func TestVerifyingCostsLittleMoreThanItsSignatures(t *testing.T) {
	h := house()
	signer := h.firmware.signer("Signer", keys["RSA-4096"]())
	d := draftOf(signer)
	der := d.der()
	key, signature := signer.cert.PublicKey.(*rsa.PublicKey), d.sign(nil)
	fastest := func(work func() error) time.Duration {
		least := time.Hour
		for range 20 {
			start := time.Now()
			if err := work(); err != nil {
				t.Fatal(err)
			}
			least = min(least, time.Since(start))
		}
		return least
	}
	signatures := fastest(func() error {
		return errors.Join(rsa.VerifyPKCS1v15(key, crypto.SHA256, sum(crypto.SHA256, nil), signature),
			signer.cert.CheckSignatureFrom(h.firmware.cert), h.firmware.cert.CheckSignatureFrom(h.root.cert),
			d.trust.CRLs[0].CheckSignatureFrom(h.root.cert), d.trust.CRLs[1].CheckSignatureFrom(h.firmware.cert))
	})
	whole := fastest(func() error { _, err := judge(der, nil, d.trust); return err })
	if whole > 4*signatures {
		t.Errorf("%v, of which the signatures take %v; want four times that at most", whole, signatures)
	}
	t.Logf("%v, of which the signatures take %v", whole, signatures)
}

func BenchmarkReadSigned(b *testing.B) {
	for _, kind := range []string{"RSA-4096", "P-256", "P-384", "P-521"} {
		d := draftOf(house().firmware.signer("Signer", keys[kind]()))
		der := d.der()
		b.Run(kind, func(b *testing.B) {
			for b.Loop() {
				if stage, err := judge(der, nil, d.trust); err != nil {
					b.Fatal(stage, err)
				}
			}
		})
	}
}
