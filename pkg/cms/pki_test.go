package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// now is when these tests happen.
var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// A party has a key and a certificate for it.
type party struct {
	key  crypto.Signer
	cert *x509.Certificate
}

var serial = big.NewInt(0x80) // begins with a sign bit

// issue makes a certificate of a party for a key. It is one of a CA if there is no
// purpose, and a signer's otherwise, before change.
func (p *party) issue(name string, key crypto.Signer, change func(*x509.Certificate), usage ...x509.ExtKeyUsage) *party {
	serial = new(big.Int).Add(serial, big.NewInt(1))
	t := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.AddDate(-1, 0, 0),
		NotAfter:              now.AddDate(1, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           usage,
		BasicConstraintsValid: true,
	}
	if usage == nil {
		t.IsCA, t.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	}
	if change != nil {
		change(t)
	}
	parent := t
	if p == nil {
		p = &party{key: key}
	} else {
		parent = p.cert
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), p.key)
	must(err)
	return &party{key, parse(der)}
}

// signer is a certificate for code signing.
func (p *party) signer(name string, key crypto.Signer) *party {
	return p.issue(name, key, nil, x509.ExtKeyUsageCodeSigning)
}

// revokes is a CRL of a CA.
func (p *party) revokes(change func(*x509.RevocationList), certs ...*x509.Certificate) *x509.RevocationList {
	t := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now.AddDate(0, 0, -1), NextUpdate: now.AddDate(0, 0, 6)}
	for _, c := range certs {
		t.RevokedCertificateEntries = append(t.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: now.AddDate(0, 0, -2)})
	}
	if change != nil {
		change(t)
	}
	der, err := x509.CreateRevocationList(rand.Reader, t, p.cert, p.key)
	must(err)
	crl, err := ReadCRL(der)
	must(err)
	return crl
}

func parse(der []byte) *x509.Certificate {
	c, err := x509.ParseCertificate(der)
	must(err)
	return c
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func ecKey(curve elliptic.Curve) crypto.Signer {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	must(err)
	return key
}

func rsaKey(bits int) crypto.Signer {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	must(err)
	return key
}

// keys are of every kind that a signer may have. They are made once.
var keys = map[string]func() crypto.Signer{
	"RSA-2048": sync.OnceValue(func() crypto.Signer { return rsaKey(2048) }),
	"RSA-3072": sync.OnceValue(func() crypto.Signer { return rsaKey(3072) }),
	"RSA-4096": sync.OnceValue(func() crypto.Signer { return rsaKey(4096) }),
	"P-256":    sync.OnceValue(func() crypto.Signer { return ecKey(elliptic.P256()) }),
	"P-384":    sync.OnceValue(func() crypto.Signer { return ecKey(elliptic.P384()) }),
	"P-521":    sync.OnceValue(func() crypto.Signer { return ecKey(elliptic.P521()) }),
}

func edKey() crypto.Signer {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	must(err)
	return key
}

// house is a root with two issuing CAs, of which one is for firmware, and one that only
// has its name.
var house = sync.OnceValue(func() (h struct{ root, firmware, other, namesake *party }) {
	var none *party
	h.root = none.issue("Root", ecKey(elliptic.P384()), nil)
	h.firmware = h.root.issue("Firmware CA", ecKey(elliptic.P256()), nil)
	h.other = h.root.issue("Other CA", ecKey(elliptic.P256()), nil)
	h.namesake = none.issue("Firmware CA", ecKey(elliptic.P256()), nil)
	return h
})

// trust is what a device of that house believes.
func trust() *Trust {
	h := house()
	return &Trust{
		Anchors: []*x509.Certificate{h.root.cert},
		Issuers: []*x509.Certificate{h.firmware.cert},
		CRLs:    []*x509.RevocationList{h.root.revokes(nil), h.firmware.revokes(nil)},
		Grace:   24 * time.Hour,
		Now:     now,
		Build:   buildAt(now),
	}
}

// buildAt does what a clock would that stands at a moment.
func buildAt(at time.Time) func(*x509.Certificate, []*x509.Certificate, []*x509.Certificate, ...x509.ExtKeyUsage) ([]*x509.Certificate, error) {
	return func(leaf *x509.Certificate, intermediates, roots []*x509.Certificate, usage ...x509.ExtKeyUsage) ([]*x509.Certificate, error) {
		o := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: at, KeyUsages: usage}
		for _, c := range roots {
			o.Roots.AddCert(c)
		}
		for _, c := range intermediates {
			o.Intermediates.AddCert(c)
		}
		chains, err := leaf.Verify(o)
		if err != nil {
			return nil, err
		}
		return chains[0], nil
	}
}

// opensslSigns has openssl sign content as RAUC does, with more certificates in the
// message and other flags.
func opensslSigns(tb testing.TB, content []byte, signer *party, with []*party, flags ...string) []byte {
	tb.Helper()
	dir := tb.TempDir()
	key, err := x509.MarshalPKCS8PrivateKey(signer.key)
	must(err)
	write := func(name, kind string, der ...[]byte) string {
		var b []byte
		for _, d := range der {
			b = append(b, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: d})...)
		}
		path := filepath.Join(dir, name)
		must(os.WriteFile(path, b, 0o600))
		return path
	}
	args := []string{"cms", "-sign", "-outform", "DER", "-binary", "-nosmimecap",
		"-signer", write("signer", "CERTIFICATE", signer.cert.Raw), "-inkey", write("key", "PRIVATE KEY", key)}
	if with != nil {
		var ders [][]byte
		for _, p := range with {
			ders = append(ders, p.cert.Raw)
		}
		args = append(args, "-certfile", write("others", "CERTIFICATE", ders...))
	}
	openssl := exec.Command("openssl", append(args, flags...)...)
	var stderr bytes.Buffer
	openssl.Stdin, openssl.Stderr = bytes.NewReader(content), &stderr
	der, err := openssl.Output()
	if err != nil {
		tb.Fatalf("openssl %s: %v\n%s", args, err, stderr.Bytes())
	}
	return der
}

// manyPrimes is an RSA key whose modulus is a product of small primes: quickly made,
// however long, and worth nothing.
type manyPrimes struct {
	public  rsa.PublicKey
	private *big.Int
}

func newManyPrimes(bits int) *manyPrimes {
	const each = 256 // bits of a prime
	one, n, phi := big.NewInt(1), big.NewInt(1), big.NewInt(1)
	for n.BitLen() < bits {
		p, err := rand.Prime(rand.Reader, each)
		must(err)
		n.Mul(n, p)
		phi.Mul(phi, p.Sub(p, one))
	}
	d := new(big.Int).ModInverse(big.NewInt(65537), phi)
	if d == nil { // one of the primes was bad luck
		return newManyPrimes(bits)
	}
	return &manyPrimes{rsa.PublicKey{N: n, E: 65537}, d}
}

func (k *manyPrimes) Public() crypto.PublicKey { return &k.public }

// Sign makes a signature of PKCS #1 v1.5 with SHA-256 (RFC 8017, 8.2.1 and 9.2).
func (k *manyPrimes) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	info := tlv(tagSequence, identifier(sha2(1), []byte{tagNull, 0}), tlv(tagOctetString, digest))
	padding := bytes.Repeat([]byte{0xff}, k.public.Size()-len(info)-3)
	message := slices.Concat([]byte{0, 1}, padding, []byte{0}, info)
	s := new(big.Int).Exp(new(big.Int).SetBytes(message), k.private, k.public.N)
	return s.FillBytes(make([]byte, k.public.Size())), nil
}
