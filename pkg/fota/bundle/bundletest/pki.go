package bundletest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Keys are made once a run for each kind and holder: RSA takes its time.
var keys sync.Map // of func() (crypto.Signer, error), by kind and holder

// Key returns the key of a holder, of a kind: "P-256", "P-384", "P-521", "P-224",
// "RSA-1024" to "RSA-4096".
func Key(t testing.TB, kind, holder string) crypto.Signer {
	t.Helper()
	curves := map[string]elliptic.Curve{"P-224": elliptic.P224(), "P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()}
	sizes := map[string]int{"RSA-1024": 1024, "RSA-2048": 2048, "RSA-3072": 3072, "RSA-4096": 4096}
	made, _ := keys.LoadOrStore(kind+" "+holder, sync.OnceValues(func() (crypto.Signer, error) {
		if c := curves[kind]; c != nil {
			return ecdsa.GenerateKey(c, rand.Reader)
		}
		return rsa.GenerateKey(rand.Reader, sizes[kind])
	}))
	key, err := made.(func() (crypto.Signer, error))()
	if err != nil {
		t.Fatalf("cannot make a %s key: %v", kind, err)
	}
	return key
}

// A Signer has a key and what is said about it.
type Signer struct {
	Key  crypto.Signer
	Cert *x509.Certificate
	// Above are the certificates of the CAs above, without the root's.
	Above []*x509.Certificate
}

var serial int64 = 1000 // of certificates; tests of a package run one after another

// Issue makes a certificate for a key, by ca, or by itself if there is none. The
// change, which may be nil, is made to the template last.
func Issue(t testing.TB, ca *Signer, key crypto.Signer, name string, change func(*x509.Certificate)) *Signer {
	t.Helper()
	serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial),
		Subject:      pkix.Name{Organization: []string{"Acme"}, CommonName: name},
		NotBefore:    time.Now().Add(-24 * time.Hour).Truncate(time.Second),
		NotAfter:     time.Now().Add(365 * 24 * time.Hour).Truncate(time.Second),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},

		BasicConstraintsValid: true,
	}
	if change != nil {
		change(template)
	}
	s := &Signer{Key: key}
	parent, by := template, key
	if ca != nil {
		parent, by = ca.Cert, ca.Key
		if string(ca.Cert.RawIssuer) != string(ca.Cert.RawSubject) {
			s.Above = append([]*x509.Certificate{ca.Cert}, ca.Above...)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		t.Fatalf("cannot make a certificate for %s: %v", name, err)
	}
	if s.Cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return s
}

// CA is a change for [Issue] that makes a CA of it.
func CA(c *x509.Certificate) {
	c.IsCA, c.KeyUsage, c.ExtKeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign, nil
}

// A PKI is a central code-signing CA: a root, the issuing CA that is pinned, the signer
// of releases.
type PKI struct {
	Root, Issuing, Signer *Signer
}

// NewPKI makes a PKI with keys of one kind for the CAs, and of another for the signer.
func NewPKI(t testing.TB, ca, signer string) *PKI {
	t.Helper()
	p := &PKI{}
	p.Root = Issue(t, nil, Key(t, ca, "root"), "Code Root", CA)
	p.Issuing = Issue(t, p.Root, Key(t, ca, "issuing"), "Code Signing CA", CA)
	p.Signer = Issue(t, p.Issuing, Key(t, signer, "signer"), "Releases", nil)
	return p
}

// CRL is ca's list of revoked certificates, DER, of today. The change, which may be
// nil, is made to the template last.
func CRL(t testing.TB, ca *Signer, change func(*x509.RevocationList), revoked ...*Signer) []byte {
	t.Helper()
	serial++
	template := &x509.RevocationList{
		Number:     big.NewInt(serial),
		ThisUpdate: time.Now().Add(-time.Hour).Truncate(time.Second),
		NextUpdate: time.Now().Add(24 * time.Hour).Truncate(time.Second),
	}
	for _, r := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: r.Cert.SerialNumber, RevocationTime: template.ThisUpdate})
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, ca.Cert, ca.Key)
	if err != nil {
		t.Fatalf("cannot make a CRL: %v", err)
	}
	return der
}

// files writes key and certificates in PEM and returns their names.
func (s *Signer) files(t testing.TB, dir string) (key, cert string, above []string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(s.Key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	key, cert = write("key.pem", private), write("cert.pem", PEM(s.Cert))
	for i, c := range s.Above {
		above = append(above, write(fmt.Sprintf("above%d.pem", i), PEM(c)))
	}
	return key, cert, above
}

// PEM is certificates one after the other.
func PEM(certs ...*x509.Certificate) []byte {
	var b []byte
	for _, c := range certs {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return b
}
