package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
