package sign

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"

	bt "birthmark/pkg/fota/bundle/bundletest"
)

// files are those of a CA that is not the lab's.
func files(t *testing.T, dir string, pki *bt.PKI, by *bt.Signer) Signer {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(by.Key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		return put(t, filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	s := Signer{
		Certificate: write("cert.pem", "CERTIFICATE", by.Cert.Raw), Key: write("key.pem", "PRIVATE KEY", key),
		Anchors: write("root.pem", "CERTIFICATE", pki.Root.Cert.Raw), SigningCAs: write("ca.pem", "CERTIFICATE", pki.Issuing.Cert.Raw),
		CRLs: crls(t, filepath.Join(dir, "crls.pem"), bt.CRL(t, pki.Root, nil), bt.CRL(t, pki.Issuing, nil)),
	}
	for _, above := range by.Above {
		s.Intermediates = append(s.Intermediates, write("above.pem", "CERTIFICATE", above.Raw))
	}
	return s
}

func crls(t *testing.T, path string, lists ...[]byte) string {
	t.Helper()
	var text []byte
	for _, der := range lists {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
	}
	return put(t, path, text)
}

func forMail(c *x509.Certificate) {
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection}
}

// TestACAOfOnesOwn: files in place of a lab, with a key of another kind.
func TestACAOfOnesOwn(t *testing.T) {
	pki := bt.NewPKI(t, "P-256", "RSA-3072")
	by := files(t, t.TempDir(), pki, pki.Signer)
	out := filepath.Join(t.TempDir(), "a.raucb")
	record, err := Firmware(t.Context(), release(t), by, out, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if want := "CN=Releases,O=Acme"; record.Signer.Subject != want {
		t.Errorf("signed by %s, want %s", record.Signer.Subject, want)
	}
}

func TestALabKeepsItsSigner(t *testing.T) {
	dir := t.TempDir()
	by := mustLab(t, dir)
	read := func() (texts [5][]byte) {
		for i, path := range []string{by.Certificate, by.Intermediates[0], by.Anchors, by.SigningCAs, by.CRLs} {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			texts[i] = text
		}
		return texts
	}
	before := read()
	// As a power cut might have left it, between one file and the next.
	for _, name := range []string{"anchors.pem", "crls.pem"} {
		if err := os.Remove(filepath.Join(dir, "firmware", name)); err != nil {
			t.Fatal(err)
		}
	}
	if again := mustLab(t, dir); again.Certificate != by.Certificate {
		t.Errorf("got %v, want %v", again, by)
	}
	for i, text := range read() {
		if !bytes.Equal(text, before[i]) {
			t.Errorf("file %d is another one the second time", i)
		}
	}
}

// TestWhoCanReadIt: keys are for their owner, what a device is given is for everybody.
func TestWhoCanReadIt(t *testing.T) {
	dir := t.TempDir()
	mustLab(t, dir)
	for name, want := range map[string]os.FileMode{
		"root.key": 0o600, "issuing.key": 0o600, "signer.pem": 0o600,
		"anchors.pem": 0o644, "signing-cas.pem": 0o644, "crls.pem": 0o644,
	} {
		if info, err := os.Stat(filepath.Join(dir, "firmware", name)); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v, want mode %v", name, info, err, want)
		}
	}
}
