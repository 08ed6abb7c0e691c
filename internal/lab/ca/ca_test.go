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
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func mustOpen(tb testing.TB, dir string) *CA {
	tb.Helper()
	c, err := Open(dir, "Test")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// newRequest asks for what tmpl says.
func newRequest(tb testing.TB, key crypto.Signer, tmpl *x509.CertificateRequest) *x509.CertificateRequest {
	tb.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		tb.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		tb.Fatal(err)
	}
	return csr
}

func named(cn string) *x509.CertificateRequest {
	return &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}
}

func mustIssue(tb testing.TB, c *CA, csr *x509.CertificateRequest, p Profile) *x509.Certificate {
	tb.Helper()
	cert, err := c.Issue(csr, p)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}

// records reads what is on disk now.
func records(tb testing.TB, dir string) (list []Record) {
	tb.Helper()
	f, err := os.Open(filepath.Join(dir, "issued.jsonl"))
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	if _, err := readRecords(f, func(r *Record) error { list = append(list, *r); return nil }); err != nil {
		tb.Fatal(err)
	}
	return list
}

func TestOpenMakesAHierarchyOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	c := mustOpen(t, dir)
	for _, tc := range []struct {
		name   string
		cert   *x509.Certificate
		parent *x509.Certificate
		path   int
	}{
		{"Test Root CA", c.Root(), c.Root(), 1},
		{"Test Issuing CA", c.Issuing(), c.Root(), 0},
	} {
		if tc.cert.Subject.CommonName != tc.name || !tc.cert.IsCA || tc.cert.MaxPathLen != tc.path ||
			tc.cert.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
			t.Errorf("%s: got %v, CA %v, path length %d, key usage %b", tc.name, tc.cert.Subject, tc.cert.IsCA, tc.cert.MaxPathLen, tc.cert.KeyUsage)
		}
		if err := tc.cert.CheckSignatureFrom(tc.parent); err != nil {
			t.Errorf("%s is not signed by %v: %v", tc.name, tc.parent.Subject, err)
		}
	}
	for _, name := range []string{"root.key", "issuing.key", "issued.jsonl"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, mode %v, want one that only its owner reads", name, err, info.Mode())
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	// The root's key may leave once it has signed the issuing CA.
	if err := os.Remove(filepath.Join(dir, "root.key")); err != nil {
		t.Fatal(err)
	}
	again := mustOpen(t, dir)
	if !again.Root().Equal(c.Root()) || !again.Issuing().Equal(c.Issuing()) {
		t.Error("opened again, the CA has other certificates")
	}
}

func TestOpenFinishesWhatAPowerCutLeft(t *testing.T) {
	for _, left := range [][]string{
		{"issued.jsonl"},
		{"issued.jsonl", "root.key"},
		{"issued.jsonl", "root.key", "root.pem"},
		{"issued.jsonl", "root.key", "root.pem", "issuing.key"},
		{"issued.jsonl", "root.key", "root.pem", "issuing.key", "issuing.pem.new"},
	} {
		dir := t.TempDir()
		c := mustOpen(t, dir)
		c.Close()
		before := map[string][]byte{}
		for _, name := range left {
			before[name], _ = os.ReadFile(filepath.Join(dir, name)) // a draft may hold anything
		}
		os.RemoveAll(dir)
		os.Mkdir(dir, 0o700)
		for name, text := range before {
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c = mustOpen(t, dir)
		mustIssue(t, c, newRequest(t, newKey(t), named("dev-1")), Device(0))
		c.Close()
		for _, name := range left[1:] {
			if text, err := os.ReadFile(filepath.Join(dir, name)); err == nil && !bytes.Equal(text, before[name]) {
				t.Errorf("with %v there, Open replaced %s", left, name)
			}
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	other := t.TempDir()
	mustOpen(t, other)
	for _, tc := range []struct {
		name   string
		damage func(dir string) error
		want   string
	}{
		{"an issuing CA without its root", func(dir string) error { return os.Remove(filepath.Join(dir, "root.pem")) }, "root.pem is not"},
		{"an issuing CA without its key", func(dir string) error { return os.Remove(filepath.Join(dir, "issuing.key")) }, "issuing.key"},
		{"another issuing key", func(dir string) error {
			return os.Rename(filepath.Join(dir, "root.key"), filepath.Join(dir, "issuing.key"))
		}, "not the key of"},
		{"a root that has no key", func(dir string) error {
			return os.Rename(filepath.Join(dir, "issuing.pem"), filepath.Join(dir, "root.pem"))
		}, "match"},
		{"another root", func(dir string) error {
			return os.Rename(filepath.Join(other, "root.pem"), filepath.Join(dir, "root.pem"))
		}, "not signed by root.pem"},
		{"no PEM", func(dir string) error { return os.WriteFile(filepath.Join(dir, "root.pem"), []byte("hello"), 0o600) }, "no PEM"},
	} {
		dir := t.TempDir()
		mustOpen(t, dir).Close()
		if err := tc.damage(dir); err != nil {
			t.Fatal(err)
		}
		c, err := Open(dir, "Test")
		if err == nil {
			c.Close()
			t.Errorf("%s: opened, want an error with %q", tc.name, tc.want)
		} else if !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %q, want %q in it", tc.name, err, tc.want)
		}
	}
	dir := t.TempDir()
	mustOpen(t, dir)
	if c, err := Open(dir, "Test"); err == nil {
		c.Close()
		t.Error("opened twice at once, want the second one refused")
	}
}

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

func TestServerIsKeptUntilItIsOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := mustOpen(t, dir)
		server := func(hosts ...string) *tls.Certificate {
			t.Helper()
			cert, err := c.Server("est", hosts...)
			if err != nil {
				t.Fatal(err)
			}
			return cert
		}
		first := server()
		for _, host := range []string{"localhost", "127.0.0.1", "::1"} {
			if err := first.Leaf.VerifyHostname(host); err != nil {
				t.Error(err)
			}
		}
		if first.Leaf.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth || len(first.Leaf.ExtKeyUsage) != 1 || len(first.Certificate) != 2 {
			t.Errorf("extended key usages %v, chain of %d, want a server's and its CA's", first.Leaf.ExtKeyUsage, len(first.Certificate))
		}
		if CheckDeviceID(first.Leaf.Subject.CommonName) == nil {
			t.Errorf("the server's name %q could be a device's", first.Leaf.Subject.CommonName)
		}
		<-time.After(59 * 24 * time.Hour)
		c.Close()
		c = mustOpen(t, dir)
		if again := server(); !again.Leaf.Equal(first.Leaf) {
			t.Error("after 59 days and a restart there is another certificate")
		}
		<-time.After(2 * 24 * time.Hour)
		second := server()
		if second.Leaf.Equal(first.Leaf) || second.Leaf.PublicKey.(*ecdsa.PublicKey).Equal(first.Leaf.PublicKey) {
			t.Error("after 61 days of 90 the certificate or its key is still the same")
		}
		if third := server("lab.example", "192.0.2.1"); third.Leaf.VerifyHostname("lab.example") != nil || third.Leaf.VerifyHostname("192.0.2.1") != nil {
			t.Errorf("asked for another host, got %v and %v", third.Leaf.DNSNames, third.Leaf.IPAddresses)
		}
		if text, err := os.ReadFile(filepath.Join(dir, "server-est.pem")); err != nil {
			t.Error(err)
		} else if _, err := tls.X509KeyPair(text, text); err != nil {
			t.Errorf("another program cannot use the file: %v", err)
		}
		third := server()
		other := mustOpen(t, t.TempDir())
		if err := os.WriteFile(other.path("server-est.pem"), encodeCertificates(third.Leaf), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Server("est"); err == nil {
			t.Error("a file without a key is used")
		}
		if err := os.Rename(c.path("server-est.pem"), other.path("server-est.pem")); err != nil {
			t.Fatal(err)
		}
		if cert, err := other.Server("est"); err != nil || cert.Leaf.CheckSignatureFrom(other.Issuing()) != nil {
			t.Errorf("another CA's file: got %v, want a certificate of this one", err)
		}
		if _, err := c.Server("../est"); err == nil {
			t.Error("a server's file can lie outside of the CA's folder")
		}
	})
}

func TestOperatorIsAClient(t *testing.T) {
	c := mustOpen(t, t.TempDir())
	cert, err := c.Operator()
	if err != nil {
		t.Fatal(err)
	}
	if got := cert.Leaf; got.Subject.String() != "CN=operator" || got.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
		t.Errorf("got %v with extended key usages %v, want CN=operator, a client", got.Subject, got.ExtKeyUsage)
	}
	if len(cert.Leaf.IPAddresses) != 0 || cert.Leaf.VerifyHostname(net.IPv6loopback.String()) == nil {
		t.Error("an operator's certificate is for a host")
	}
}
