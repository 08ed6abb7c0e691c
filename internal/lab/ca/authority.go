package ca

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"time"
)

const (
	// Both CAs outlive what a device without a clock believes of dates, which is
	// 15 years from the build of its software.
	rootYears    = 30
	issuingYears = 25

	// skew is how far certificates begin in the past: the clocks of those who
	// verify them differ.
	skew = time.Hour
)

// loadAuthorities loads root and issuing CA, and makes what is missing.
func (c *CA) loadAuthorities(name string) error {
	var err error
	if c.root, err = c.loadCertificate("root.pem"); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(c.path("issuing.pem")); err == nil {
			return errors.New("issuing.pem is there, but root.pem is not")
		}
		c.root, err = c.makeAuthority("root", authority(name+" Root CA", rootYears, 1))
	}
	if err != nil {
		return err
	}
	if c.issuing, err = c.loadCertificate("issuing.pem"); errors.Is(err, fs.ErrNotExist) {
		c.issuing, err = c.makeAuthority("issuing", authority(name+" Issuing CA", issuingYears, 0))
	}
	if err != nil {
		return err
	}
	if err := c.issuing.CheckSignatureFrom(c.root); err != nil {
		return fmt.Errorf("issuing.pem is not signed by root.pem: %w", err)
	}
	if c.key, err = c.loadKey("issuing.key"); err != nil {
		return err
	}
	if !c.key.PublicKey.Equal(c.issuing.PublicKey) {
		return errors.New("issuing.key is not the key of issuing.pem")
	}
	return nil
}

// authority is what the certificate of a CA says; pathLen is how many CAs may
// stand between it and the certificate of a device.
func authority(subject string, years, pathLen int) *x509.Certificate {
	now := time.Now().UTC()
	return &x509.Certificate{
		Subject:   pkix.Name{CommonName: subject},
		NotBefore: now.Add(-skew),
		NotAfter:  now.AddDate(years, 0, 0),
		KeyUsage:  x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:      true, BasicConstraintsValid: true,
		MaxPathLen: pathLen, MaxPathLenZero: true,
	}
}

// makeAuthority makes NAME.key and then NAME.pem, under the root unless it is the
// root. A key without a certificate is what a power cut left: it is used.
func (c *CA) makeAuthority(name string, tmpl *x509.Certificate) (*x509.Certificate, error) {
	key, err := c.loadKey(name + ".key")
	if errors.Is(err, fs.ErrNotExist) {
		key, err = c.makeKey(name + ".key")
	}
	if err != nil {
		return nil, err
	}
	parent, signer := tmpl, key
	if c.root != nil {
		parent = c.root
		if signer, err = c.loadKey("root.key"); err != nil {
			return nil, err
		}
	}
	cert, err := sign(tmpl, parent, key.Public(), signer)
	if err != nil {
		return nil, err
	}
	return cert, replace(c.path(name+".pem"), encodeCertificates(cert), 0o644)
}

// sign makes a certificate of tmpl for a public key. Its serial number is 128
// random bits (RFC 5280 4.1.2.2), its key identifier the SHA-256 of the
// SubjectPublicKeyInfo (RFC 7093 section 2, method 4), by which the record and
// the passwords know a key as well.
func sign(tmpl, parent *x509.Certificate, public any, signer *ecdsa.PrivateKey) (*x509.Certificate, error) {
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256(spki)
	tmpl.SubjectKeyId = id[:]
	if tmpl.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128)); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, public, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
