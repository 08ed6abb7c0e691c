package csr

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
	"encoding/asn1"
	"errors"
	"io"
	"math/big"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

func ecKey(tb testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func rsaKey(tb testing.TB, bits int) *rsa.PrivateKey {
	tb.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// openssl runs openssl on input, and returns what it says.
func openssl(t *testing.T, input []byte, args ...string) string {
	t.Helper()
	cmd := exec.Command("openssl", args...)
	cmd.Stdin = bytes.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func must(tb testing.TB, der []byte, err error) []byte {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

func commonName(tb testing.TB, id string) []byte {
	der, err := CommonName(id)
	return must(tb, der, err)
}

func TestBuildWithEveryKindOfKey(t *testing.T) {
	subject := commonName(t, "dev-1")
	san := pkix.Extension{Id: oidSubjectAltName, Critical: true, Value: []byte("\x30\x07\x82\x05dev-1")}
	for _, tc := range []struct {
		name string
		key  crypto.Signer
		want x509.SignatureAlgorithm
	}{
		{"P-256", ecKey(t, elliptic.P256()), x509.ECDSAWithSHA256},
		{"P-384", ecKey(t, elliptic.P384()), x509.ECDSAWithSHA384},
		{"RSA-2048", rsaKey(t, 2048), x509.SHA256WithRSA},
	} {
		for _, extensions := range [][]pkix.Extension{nil, {san}} {
			der, err := Build(Request{Subject: subject, Extensions: extensions}, tc.key)
			if err != nil {
				t.Errorf("%s: %v", tc.name, err)
				continue
			}
			parsed, err := x509.ParseCertificateRequest(der)
			if err != nil {
				t.Errorf("%s: %v", tc.name, err)
				continue
			}
			if err := parsed.CheckSignature(); err != nil || parsed.SignatureAlgorithm != tc.want {
				t.Errorf("%s: signed with %v, %v, want %v", tc.name, parsed.SignatureAlgorithm, err, tc.want)
			}
			if !bytes.Equal(parsed.RawSubject, subject) || parsed.Version != 0 {
				t.Errorf("%s: subject % x, version %d, want % x, 0", tc.name, parsed.RawSubject, parsed.Version, subject)
			}
			if !slices.EqualFunc(parsed.Extensions, extensions, sameExtension) {
				t.Errorf("%s: extensions %v, want %v", tc.name, parsed.Extensions, extensions)
			}
			if got := openssl(t, der, "req", "-inform", "DER", "-verify", "-noout"); !strings.Contains(got, "verify OK") {
				t.Errorf("%s: openssl says %q, want verify OK", tc.name, got)
			}
		}
	}
}

func sameExtension(a, b pkix.Extension) bool {
	return a.Id.Equal(b.Id) && a.Critical == b.Critical && bytes.Equal(a.Value, b.Value)
}

// The request of crypto/x509, where that can write it, is the same up to the
// signature.
func TestBuildWritesWhatOthersWrite(t *testing.T) {
	for name, key := range map[string]crypto.Signer{
		"P-256": ecKey(t, elliptic.P256()), "P-384": ecKey(t, elliptic.P384()), "RSA-2048": rsaKey(t, 2048),
	} {
		tmpl := &x509.CertificateRequest{RawSubject: commonName(t, "dev-1"), DNSNames: []string{"dev-1.example"}}
		theirs, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := x509.ParseCertificateRequest(theirs)
		if err != nil {
			t.Fatal(err)
		}
		ours, err := Build(Request{Subject: parsed.RawSubject, Extensions: parsed.Extensions}, key)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := unsigned(t, ours), unsigned(t, theirs); !bytes.Equal(got, want) {
			t.Errorf("%s: % x\nwant % x", name, got, want)
		}
	}
}

// unsigned is a request with an empty signature.
func unsigned(t *testing.T, der []byte) []byte {
	t.Helper()
	var req certificationRequest
	if _, err := asn1.Unmarshal(der, &req); err != nil {
		t.Fatal(err)
	}
	req.Signature = asn1.BitString{}
	return mustMarshal(t, req)
}

// A signer is a key that signs with something else: another key, or not at all.
type signer struct {
	public crypto.PublicKey
	sign   func(digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

func (s signer) Public() crypto.PublicKey { return s.public }
func (s signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.sign(digest, opts)
}

func TestBuildRefuses(t *testing.T) {
	errBusy := errors.New("busy")
	ec := ecKey(t, elliptic.P256())
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// Shorter than crypto/rsa would make one.
	short := signer{public: &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2046), E: 65537}}
	subject := commonName(t, "dev-1")
	san := pkix.Extension{Id: oidSubjectAltName, Value: []byte("\x30\x07\x82\x05dev-1")}
	for _, tc := range []struct {
		name string
		req  Request
		key  crypto.Signer
		want string
	}{
		{"no subject", Request{}, ec, "subject"},
		{"a subject that is no DER", Request{Subject: []byte("CN=dev-1")}, ec, "subject"},
		{"two subjects", Request{Subject: slices.Concat(subject, subject)}, ec, "subject"},
		{"a subject that is no name", Request{Subject: []byte{0x02, 0x01, 0x05}}, ec, "RDNSequence"},
		{"an extension twice", Request{Subject: subject, Extensions: []pkix.Extension{san, san}}, ec, "duplicate"},
		{"names that nobody can read", Request{Subject: subject, Extensions: []pkix.Extension{{Id: oidSubjectAltName, Value: []byte{0x30, 0x02, 0x87, 0x00}}}}, ec, "IP address"},
		{"a key on P-521", Request{Subject: subject}, ecKey(t, elliptic.P521()), "P-521"},
		{"an Ed25519 key", Request{Subject: subject}, ed, "ed25519"},
		{"a short RSA key", Request{Subject: subject}, short, "2047 bits"},
		{"a key that does not sign", Request{Subject: subject}, signer{ec.Public(), func([]byte, crypto.SignerOpts) ([]byte, error) {
			return nil, errBusy
		}}, "busy"},
		{"a key that signs something else", Request{Subject: subject}, signer{ec.Public(), func(_ []byte, opts crypto.SignerOpts) ([]byte, error) {
			return ec.Sign(rand.Reader, make([]byte, 32), opts)
		}}, "verification"},
		{"another key's signature", Request{Subject: subject}, signer{ec.Public(), func(digest []byte, opts crypto.SignerOpts) ([]byte, error) {
			return ecKey(t, elliptic.P256()).Sign(rand.Reader, digest, opts)
		}}, "verification"},
	} {
		der, err := Build(tc.req, tc.key)
		if err == nil || der != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %d bytes, %v, want an error about %q", tc.name, len(der), err, tc.want)
		}
	}
	_, err = Build(Request{Subject: subject}, signer{ec.Public(), func([]byte, crypto.SignerOpts) ([]byte, error) { return nil, errBusy }})
	if !errors.Is(err, errBusy) {
		t.Errorf("got %v, want the key's own error within", err)
	}
}

// The digest is made here: a key in hardware sees nothing else.
func TestBuildHandsADigestToTheKey(t *testing.T) {
	ec := ecKey(t, elliptic.P256())
	var digest []byte
	der, err := Build(Request{Subject: commonName(t, "dev-1")}, signer{ec.Public(), func(d []byte, opts crypto.SignerOpts) ([]byte, error) {
		if opts.HashFunc() != crypto.SHA256 {
			t.Errorf("hash %v, want SHA-256", opts.HashFunc())
		}
		digest = d
		return ec.Sign(rand.Reader, d, opts)
	}})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	if want := sha256.Sum256(parsed.RawTBSCertificateRequest); !bytes.Equal(digest, want[:]) {
		t.Errorf("the key got % x, want % x", digest, want)
	}
}

// oddCertificate has names that crypto/x509 would not write so itself.
func oddCertificate(tb testing.TB, extensions ...pkix.Extension) *x509.Certificate {
	tb.Helper()
	key := ecKey(tb, elliptic.P256())
	subject := mustMarshal(tb, pkix.RDNSequence{
		rdn(asn1.ObjectIdentifier{2, 5, 4, 10}, asn1.TagT61String, "Acme"),
		rdn(oidCommonName, asn1.TagPrintableString, "dev-1"),
		rdn(oidCommonName, asn1.TagUTF8String, "dev-1"),
	})
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(7), RawSubject: subject, ExtraExtensions: extensions,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}

func mustMarshal(tb testing.TB, v any) []byte {
	der, err := asn1.Marshal(v)
	return must(tb, der, err)
}

// RFC 7030, 4.2.2: subject and SAN are identical to those of the certificate. Some
// servers compare bytes.
func TestRenewalRepeatsTheNamesByteForByte(t *testing.T) {
	// Names that a parser would sort, merge or lose.
	odd := []byte("\x30\x1d\x82\x05dev-1\x82\x05dev-1\xa0\x0d\x06\x03\x2a\x03\x04\xa0\x06\x0c\x04name")
	for _, tc := range []struct {
		name string
		san  []pkix.Extension
	}{
		{"no SAN", nil},
		{"a SAN", []pkix.Extension{{Id: oidSubjectAltName, Value: odd}}},
		{"a critical SAN", []pkix.Extension{{Id: oidSubjectAltName, Critical: true, Value: odd}}},
	} {
		current := oddCertificate(t, tc.san...)
		der, err := Build(Renewal(current), ecKey(t, elliptic.P384()))
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		parsed, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if !bytes.Equal(parsed.RawSubject, current.RawSubject) {
			t.Errorf("%s: subject % x, want % x", tc.name, parsed.RawSubject, current.RawSubject)
		}
		if !slices.EqualFunc(parsed.Extensions, tc.san, sameExtension) {
			t.Errorf("%s: extensions %v, want %v", tc.name, parsed.Extensions, tc.san)
		}
		for _, e := range tc.san {
			raw := mustMarshal(t, e)
			if !bytes.Contains(current.Raw, raw) || !bytes.Contains(der, raw) {
				t.Errorf("%s: the extension is not the same bytes in certificate and request", tc.name)
			}
		}
	}
}
