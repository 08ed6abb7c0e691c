// Package attest judges what a TPM says about itself and its keys: the side of
// the registration authority. It does no I/O but for reading a folder of root
// certificates, and needs no TPM.
//
// [VerifyEK] decides whether an endorsement key is that of a real TPM: its
// certificate leads to a chip maker whose roots the caller believes, and is one for
// endorsement keys. [ReadRoots] reads such roots from a folder. Standard: TCG EK
// Credential Profile for TPM Family 2.0, version 2.5, called the profile below.
//
// That somebody has the private part of the key is not shown by its certificate.
// Nor is a certificate looked up in anybody's revocation list: chip makers' lists
// are reached over the network.
package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	certificateLimit = 8 << 10 // bytes of an EK certificate; the largest seen have 2,000
	extraLimit       = 64      // intermediate certificates that are looked at
	rsaBitsMin       = 2048
	rsaBitsMax       = 4096
)

var (
	oidEKCertificate = asn1.ObjectIdentifier{2, 23, 133, 8, 1} // tcg-kp-EKCertificate
	oidSAN           = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// An EK is an endorsement key, and what its chip maker says about the TPM.
type EK struct {
	Key crypto.PublicKey // *rsa.PublicKey or *ecdsa.PublicKey

	// As in the certificate: the manufacturer by its number in the TCG's registry,
	// "id:" and eight hexadecimal digits; Vendor is the same as text, if it is text.
	Manufacturer, Model, Version string
	Vendor                       string

	Certificate []byte              // DER, without padding
	Chain       []*x509.Certificate // from the certificate's issuer to a root
}

// VerifyEK verifies an EK certificate as it was read from a TPM, padding included,
// at a time. It has to lead to one of roots, directly or by way of extra. The error
// says what is wrong with it; none of them is worth another try.
func VerifyEK(cert []byte, extra, roots []*x509.Certificate, at time.Time) (EK, error) {
	ek, err := verifyEK(cert, extra, roots, at)
	if err != nil {
		return EK{}, fmt.Errorf("cannot accept the EK certificate: %w", err)
	}
	return ek, nil
}

func verifyEK(cert []byte, extra, roots []*x509.Certificate, at time.Time) (ek EK, err error) {
	if at.IsZero() { // x509 would take the clock's time
		return ek, errors.New("no time to verify it at")
	}
	if ek.Certificate, err = unpad(cert); err != nil {
		return ek, err
	}
	c, err := x509.ParseCertificate(ek.Certificate)
	if err != nil {
		return ek, err
	}
	if err := checkPurpose(c); err != nil {
		return ek, err
	}
	if ek.Key, err = endorsementKey(c); err != nil {
		return ek, err
	}
	if err := readSAN(c, &ek); err != nil {
		return ek, err
	}
	chain, err := verifyChain(c, extra, roots, at)
	if err != nil {
		return ek, err
	}
	ek.Chain = chain[1:]
	return ek, nil
}

// unpad cuts off what chip makers fill an NV index up with. The certificate itself
// stays as it is: its signature is over these bytes.
func unpad(data []byte) ([]byte, error) {
	if len(data) > certificateLimit {
		return nil, fmt.Errorf("%d bytes, at most %d", len(data), certificateLimit)
	}
	var whole asn1.RawValue
	padding, err := asn1.Unmarshal(data, &whole)
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimLeft(padding, "\x00")) > 0 && len(bytes.TrimLeft(padding, "\xff")) > 0 {
		return nil, errors.New("something else follows it than padding")
	}
	return whole.FullBytes, nil
}

// checkPurpose looks at what x509.Verify does not know of, or is told to pass over.
func checkPurpose(c *x509.Certificate) error {
	switch {
	case c.Version != 3:
		return fmt.Errorf("version %d, want 3", c.Version)
	case c.IsCA, c.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return errors.New("it is that of a certificate authority")
	case !slices.ContainsFunc(c.UnknownExtKeyUsage, oidEKCertificate.Equal):
		// anyExtendedKeyUsage does not do: certificates for other things have it.
		return fmt.Errorf("its extended key usage is not that of an EK, %v", oidEKCertificate)
	}
	return nil
}

// endorsementKey is the key that the certificate is for. Old certificates name an
// RSA key RSAES-OAEP, as the profile once wanted, which x509 does not know.
func endorsementKey(c *x509.Certificate) (crypto.PublicKey, error) {
	key := c.PublicKey
	if key == nil {
		var spki struct {
			Algorithm asn1.RawValue
			Key       asn1.BitString
		}
		if rest, err := asn1.Unmarshal(c.RawSubjectPublicKeyInfo, &spki); err != nil || len(rest) > 0 {
			return nil, errors.New("it names no public key")
		}
		rsaKey, err := x509.ParsePKCS1PublicKey(spki.Key.RightAlign())
		if err != nil {
			return nil, errors.New("it is for a kind of key that no EK has")
		}
		key = rsaKey
	}
	switch key := key.(type) {
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n < rsaBitsMin || n > rsaBitsMax {
			return nil, fmt.Errorf("it is for an RSA key of %d bits, want %d to %d", n, rsaBitsMin, rsaBitsMax)
		}
	case *ecdsa.PublicKey: // x509 knows no curve that would be too small but P-224
		if n := key.Curve.Params().BitSize; n < 256 {
			return nil, fmt.Errorf("it is for a key on a curve of %d bits, want 256 at least", n)
		}
	default:
		return nil, fmt.Errorf("it is for a key of type %T", key)
	}
	return key, nil
}

// verifyChain is x509.Verify, with the subject alternative name counted as handled:
// it was read.
func verifyChain(c *x509.Certificate, extra, roots []*x509.Certificate, at time.Time) ([]*x509.Certificate, error) {
	if len(roots) == 0 {
		return nil, errors.New("there is no root certificate of a chip maker to believe")
	}
	if len(extra) > extraLimit {
		return nil, fmt.Errorf("%d intermediate certificates, at most %d", len(extra), extraLimit)
	}
	leaf := *c
	leaf.UnhandledCriticalExtensions = slices.DeleteFunc(slices.Clone(c.UnhandledCriticalExtensions), oidSAN.Equal)
	o := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(),
		CurrentTime: at,
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, // checkPurpose knows better
	}
	for _, root := range roots {
		o.Roots.AddCert(root)
	}
	for _, c := range extra {
		o.Intermediates.AddCert(c)
	}
	chains, err := leaf.Verify(o)
	if err != nil {
		return nil, err
	}
	return chains[0], nil
}
