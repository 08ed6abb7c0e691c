package sign

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"birthmark/internal/config"
	"birthmark/internal/lab/ca"
	"birthmark/pkg/clock"
	"birthmark/pkg/cms"
	"birthmark/pkg/store"
)

// A Signer is the files of a code-signing CA, all PEM.
type Signer struct {
	// Certificate and Key are the signer's; each may be a URL of PKCS #11 instead (RFC
	// 7512). A key is not encrypted: nobody is asked for a password.
	Certificate, Key string
	// Intermediates are CAs between the signer and the root, which go into the bundle.
	Intermediates []string

	// What a device is given: where chains end, who may issue signers, what is revoked.
	Anchors, SigningCAs, CRLs string
}

// Lab returns the signer of the lab in the folder dir. What is missing of folder, CA,
// certificates and CRLs is made, and what is old is renewed. The lab may be up or not.
func Lab(dir string) (Signer, error) {
	s, err := lab(filepath.Join(dir, "firmware"))
	if err != nil {
		return Signer{}, fmt.Errorf("cannot use the code-signing CA in %s: %w", dir, err)
	}
	return s, nil
}

func lab(dir string) (_ Signer, err error) {
	c, err := ca.Open(dir, "Firmware")
	if err != nil {
		return Signer{}, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if _, err := c.Signer(); err != nil {
		return Signer{}, err
	}
	lists, err := c.CRLs()
	if err != nil {
		return Signer{}, err
	}
	var crls []byte
	for _, list := range lists {
		crls = append(crls, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list.Raw})...)
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	for name, text := range map[string][]byte{
		"anchors.pem":     pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Root().Raw}),
		"signing-cas.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Issuing().Raw}),
		"crls.pem":        crls,
	} {
		if err := store.WriteFile(file(name), text, 0o644); err != nil {
			return Signer{}, err
		}
	}
	return Signer{
		Certificate: file("signer.pem"), Key: file("signer.pem"), Intermediates: []string{file("issuing.pem")},
		Anchors: file("anchors.pem"), SigningCAs: file("signing-cas.pem"), CRLs: file("crls.pem"),
	}, nil
}

// trust is what a device with these files believes, today.
func (s Signer) trust() (*cms.Trust, error) {
	now := clock.Host()
	t := &cms.Trust{Now: now.Now(), Build: now.Verify}
	var err error
	if t.Anchors, err = config.ReadCertificates(s.Anchors); err != nil {
		return nil, err
	}
	if t.Issuers, err = config.ReadCertificates(s.SigningCAs); err != nil {
		return nil, err
	}
	t.CRLs, err = readCRLs(s.CRLs)
	return t, err
}

// readCRLs reads a file with one CRL or more.
func readCRLs(path string) ([]*x509.RevocationList, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	lists, err := cms.ReadCRLs(text)
	if err != nil {
		return nil, fmt.Errorf("cannot use %s: %w", path, err)
	}
	return lists, nil
}
