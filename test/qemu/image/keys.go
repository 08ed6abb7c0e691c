package image

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// Keys are the maker's for Secure Boot (UEFI 2.10, 32.3): the platform's key, one
// that may change the others, and one that signs what is started. Foreign is nobody's
// that the device knows.
type Keys struct {
	PK, KEK, DB, Foreign Key
}

// keysIn reads the keys in a folder, and makes those that are missing: a release
// signed later is to start on devices of today.
func keysIn(dir string) (k Keys, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return k, err
	}
	for name, key := range map[string]*Key{"PK": &k.PK, "KEK": &k.KEK, "db": &k.DB, "foreign": &k.Foreign} {
		if *key, err = keyIn(filepath.Join(dir, name+".pem"), name); err != nil {
			return k, fmt.Errorf("cannot have the key %s: %w", name, err)
		}
	}
	return k, nil
}

func keyIn(path, name string) (Key, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if text, err = newKey(name); err == nil {
			err = os.WriteFile(path, text, 0o600)
		}
	}
	if err != nil {
		return Key{}, err
	}
	private, rest := pem.Decode(text)
	public, _ := pem.Decode(rest)
	if private == nil || public == nil {
		return Key{}, fmt.Errorf("%s does not hold a key and a certificate", path)
	}
	var k Key
	key, err := x509.ParsePKCS8PrivateKey(private.Bytes)
	if err != nil {
		return Key{}, err
	}
	k.Private, _ = key.(*rsa.PrivateKey)
	if k.Certificate, err = x509.ParseCertificate(public.Bytes); err != nil {
		return Key{}, err
	}
	if k.Private == nil || !k.Private.PublicKey.Equal(k.Certificate.PublicKey) {
		return Key{}, fmt.Errorf("key and certificate in %s are no RSA pair", path)
	}
	return k, nil
}

// newKey makes a key and its certificate, in PEM. Firmware does not look at dates;
// people do.
func newKey(name string) ([]byte, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "Virtual device " + name},
		NotBefore:    time.Now().Add(-24 * time.Hour), NotAfter: time.Now().AddDate(20, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})...), nil
}
