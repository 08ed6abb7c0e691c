package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestIssueSaysWhatTheProfileSays(t *testing.T) {
	c := mustOpen(t, t.TempDir())
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	in := func(d time.Duration) time.Time { return time.Now().Add(d) }
	for _, tc := range []struct {
		name    string
		key     crypto.Signer
		profile Profile
		cn      string
		end     time.Time
	}{
		{"an IDevID", newKey(t), Birth(), "dev-1", time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)},
		{"an LDevID", newKey(t), Device(0), "dev-1", in(90 * 24 * time.Hour)},
		{"a short LDevID", newKey(t), Device(time.Minute), "dev-2", in(time.Minute)},
		{"a P-384 key", p384, Device(0), "dev-3", in(90 * 24 * time.Hour)},
		{"an RSA key", rsaKey, Device(0), "dev-4", in(90 * 24 * time.Hour)},
		{"a life longer than the CA's", newKey(t), Device(1000000 * time.Hour), "dev-5", c.Issuing().NotAfter},
		{"a person", newKey(t), Operator(), "operator", in(90 * 24 * time.Hour)},
	} {
		csr := newRequest(t, tc.key, &x509.CertificateRequest{Subject: pkix.Name{CommonName: tc.cn, Organization: []string{"Test"}},
			ExtraExtensions: []pkix.Extension{ // wishes that are not granted
				{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}, // CA:TRUE
				{Id: []int{2, 5, 29, 15}, Critical: true, Value: []byte{0x03, 0x02, 0x02, 0x04}},       // keyCertSign
			}})
		cert := mustIssue(t, c, csr, tc.profile)
		pool, intermediates := x509.NewCertPool(), x509.NewCertPool()
		pool.AddCert(c.Root())
		intermediates.AddCert(c.Issuing())
		if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, Intermediates: intermediates,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		if cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage != x509.KeyUsageDigitalSignature || len(cert.ExtKeyUsage) != 1 {
			t.Errorf("%s: CA %v, key usage %b, %d extended ones; want an end entity that signs, and is a client", tc.name, cert.IsCA, cert.KeyUsage, len(cert.ExtKeyUsage))
		}
		if d := cert.NotAfter.Sub(tc.end).Abs(); d > 5*time.Second {
			t.Errorf("%s: ends at %v, want %v", tc.name, cert.NotAfter, tc.end)
		}
		if d := time.Since(cert.NotBefore) - skew; d < 0 || d > 5*time.Second {
			t.Errorf("%s: begins at %v, want an hour ago", tc.name, cert.NotBefore)
		}
		if !bytes.Equal(cert.RawSubject, csr.RawSubject) {
			t.Errorf("%s: subject is %v, want %v, byte for byte", tc.name, cert.Subject, csr.Subject)
		}
		if n := cert.SerialNumber.BitLen(); n < 90 || n > 128 {
			t.Errorf("%s: serial number of %d bits, want 128 random ones", tc.name, n)
		}
		if len(cert.SubjectKeyId) == 0 || !bytes.Equal(cert.AuthorityKeyId, c.Issuing().SubjectKeyId) {
			t.Errorf("%s: key identifiers %x under %x, want one, and the issuing CA's", tc.name, cert.SubjectKeyId, cert.AuthorityKeyId)
		}
	}
}

func TestIssueCopiesAlternativeNamesByteForByte(t *testing.T) {
	c := mustOpen(t, t.TempDir())
	uri, _ := url.Parse("urn:dev:mac:0024befffe804ff1")
	csr := newRequest(t, newKey(t), &x509.CertificateRequest{Subject: pkix.Name{CommonName: "dev-1"}, URIs: []*url.URL{uri}, DNSNames: []string{"dev-1.example"}})
	cert := mustIssue(t, c, csr, Device(0))
	var got []byte
	for _, e := range cert.Extensions {
		if e.Id.Equal(oidAltNames) {
			got = e.Value
		}
	}
	if want := altNames(csr); !bytes.Equal(got, want) || want == nil {
		t.Errorf("subjectAltName is %x, want %x", got, want)
	}
}

func TestIssueRefuses(t *testing.T) {
	dir := t.TempDir()
	c := mustOpen(t, dir)
	good := newKey(t)
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	forged := newRequest(t, good, named("dev-1"))
	forged.RawTBSCertificateRequest = bytes.Replace(forged.RawTBSCertificateRequest, []byte("dev-1"), []byte("dev-2"), 1)
	sha1 := newRequest(t, good, named("dev-1"))
	sha1.SignatureAlgorithm = x509.ECDSAWithSHA1
	for _, tc := range []struct {
		name    string
		csr     *x509.CertificateRequest
		profile Profile
		want    string
	}{
		{"a request signed by nobody", forged, Device(0), "not signed by its own key"},
		{"a request signed with SHA-1", sha1, Device(0), "SHA1"},
		{"a P-224 key", newRequest(t, p224, named("dev-1")), Device(0), "P-224"},
		{"a P-521 key", newRequest(t, p521, named("dev-1")), Device(0), "P-521"},
		{"an Ed25519 key", newRequest(t, ed, named("dev-1")), Device(0), "neither"},
		{"an RSA key of 1024 bits", newRequest(t, weak, named("dev-1")), Device(0), "1024 bits"},
		{"no name", newRequest(t, good, named("")), Device(0), "0 common names"},
		{"two names", newRequest(t, good, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "dev-1",
			ExtraNames: []pkix.AttributeTypeAndValue{{Type: oidCommonName, Value: "dev-1"}, {Type: oidCommonName, Value: "dev-2"}}}}), Device(0), "2 common names"},
		{"a dot", newRequest(t, good, named("dev.1")), Device(0), "device id"},
		{"a topic's wildcard", newRequest(t, good, named("+")), Device(0), "device id"},
		{"a line's end", newRequest(t, good, named("dev-1\n")), Device(0), "device id"},
		{"65 letters", newRequest(t, good, named(strings.Repeat("a", 65))), Device(0), "device id"},
		{"a device called operator", newRequest(t, good, named("operator")), Device(0), "not the name of a device"},
		{"one born as Operator", newRequest(t, good, named("Operator")), Birth(), "not the name of a device"},
		{"a person called like a device", newRequest(t, good, named("dev-1")), Operator(), "is not \"operator\""},
		{"a person with alternative names", newRequest(t, good, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "operator"}, DNSNames: []string{"a"}}), Operator(), "alternative names"},
		{"a long subject", newRequest(t, good, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "dev-1", Organization: []string{strings.Repeat("a", namesLimit)}}}), Device(0), "bytes"},
	} {
		_, err := c.Issue(tc.csr, tc.profile)
		var refused *RefusedError
		if !errors.As(err, &refused) || !strings.Contains(refused.Reason, tc.want) {
			t.Errorf("%s: got %v, want a refusal with %q", tc.name, err, tc.want)
		}
	}
	if n := len(records(t, dir)); n != 0 {
		t.Errorf("%d certificates recorded, want none", n)
	}
}

func TestIssueRecordsBeforeItReturns(t *testing.T) {
	dir := t.TempDir()
	c := mustOpen(t, dir)
	csr := newRequest(t, newKey(t), named("dev-1"))
	cert := mustIssue(t, c, csr, Birth())
	list := records(t, dir)
	if len(list) != 1 {
		t.Fatalf("%d records, want 1", len(list))
	}
	spki := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	r := list[0]
	if r.Subject != "CN=dev-1" || r.Serial != hex.EncodeToString(cert.SerialNumber.Bytes()) || r.SPKI != hex.EncodeToString(spki[:]) ||
		!r.NotAfter.Equal(cert.NotAfter) || r.Profile != "birth" || !bytes.Equal(r.Certificate, cert.Raw) {
		t.Errorf("recorded %+v for serial %x", r, cert.SerialNumber)
	}
}

func TestTheSameRequestGetsTheSameCertificate(t *testing.T) {
	dir := t.TempDir()
	c := mustOpen(t, dir)
	key := newKey(t)
	first := mustIssue(t, c, newRequest(t, key, named("dev-1")), Device(0))
	c.Close()
	c = mustOpen(t, dir) // a restart changes nothing
	if again := mustIssue(t, c, newRequest(t, key, named("dev-1")), Device(0)); !again.Equal(first) {
		t.Error("asked again, the device got another certificate")
	}
	for _, tc := range []struct {
		name    string
		csr     *x509.CertificateRequest
		profile Profile
	}{
		{"another key", newRequest(t, newKey(t), named("dev-1")), Device(0)},
		{"another name", newRequest(t, key, named("dev-2")), Device(0)},
		{"another alternative name", newRequest(t, key, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "dev-1"}, DNSNames: []string{"a"}}), Device(0)},
		{"another profile", newRequest(t, key, named("dev-1")), Birth()},
	} {
		if cert := mustIssue(t, c, tc.csr, tc.profile); cert.Equal(first) {
			t.Errorf("%s got the same certificate", tc.name)
		}
	}
	if n := len(records(t, dir)); n != 5 {
		t.Errorf("%d records, want 5", n)
	}
}

func TestARenewalIsAlwaysNew(t *testing.T) {
	dir := t.TempDir()
	c := mustOpen(t, dir)
	csr := newRequest(t, newKey(t), named("dev-1"))
	last := mustIssue(t, c, csr, Device(0))
	for range 2 {
		next, err := c.Renew(csr, Device(0))
		if err != nil {
			t.Fatal(err)
		}
		if next.Equal(last) {
			t.Fatal("renewed, the device got the certificate that it had")
		}
		last = next
	}
	if again := mustIssue(t, c, csr, Device(0)); !again.Equal(last) {
		t.Error("after renewals an enrolment got another certificate than the newest")
	}
	var refused *RefusedError
	if _, err := c.Renew(csr, Birth()); !errors.As(err, &refused) {
		t.Errorf("a birth certificate was renewed: %v", err)
	}
	if _, err := c.Renew(newRequest(t, newKey(t), named("operator")), Device(0)); !errors.As(err, &refused) {
		t.Errorf("a renewal was not checked: %v", err)
	}
}

func TestAnEndedCertificateIsNotGivenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := mustOpen(t, dir)
		csr := newRequest(t, newKey(t), named("dev-1"))
		first := mustIssue(t, c, csr, Device(time.Hour))
		<-time.After(59 * time.Minute)
		if again := mustIssue(t, c, csr, Device(time.Hour)); !again.Equal(first) {
			t.Error("a minute before its end, the device got another certificate")
		}
		<-time.After(time.Minute)
		second := mustIssue(t, c, csr, Device(time.Hour))
		if second.Equal(first) {
			t.Error("the device got a certificate that has ended")
		}
		<-time.After(time.Hour)
		c.Close()
		c = mustOpen(t, dir)
		if third := mustIssue(t, c, csr, Device(time.Hour)); third.Equal(second) || third.Equal(first) {
			t.Error("after a restart the device got a certificate that has ended")
		}
	})
}

func TestManyAtOnceAreAllRecordedAndOnlyOnce(t *testing.T) {
	dir := t.TempDir()
	c := mustOpen(t, dir)
	const devices, tries = 40, 5
	var all sync.WaitGroup
	var got [devices][tries]*x509.Certificate
	for d := range devices {
		csr := newRequest(t, newKey(t), named("dev-"+string(rune('A'+d%26))+string(rune('A'+d/26))))
		for n := range tries {
			all.Go(func() {
				cert, err := c.Issue(csr, Device(0))
				if err != nil {
					t.Error(err)
				}
				got[d][n] = cert
			})
		}
	}
	all.Wait()
	for d := range devices {
		for n := range tries {
			if !got[d][n].Equal(got[d][0]) {
				t.Errorf("device %d got two certificates at once", d)
			}
		}
	}
	seen := map[string]bool{}
	for _, r := range records(t, dir) {
		seen[r.Subject] = true
	}
	if n := len(records(t, dir)); n != devices || len(seen) != devices {
		t.Errorf("%d records of %d devices, want %d", n, len(seen), devices)
	}
}
