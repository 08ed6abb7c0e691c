package sign

import (
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"

	"birthmark/internal/lab/ca"
	"birthmark/pkg/clock"
	"birthmark/pkg/cms"
	"birthmark/pkg/fota/bundle"
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
	s, err := lab(filepath.Join(dir, "firmware"), "Firmware")
	if err != nil {
		return Signer{}, fmt.Errorf("cannot use the code-signing CA in %s: %w", dir, err)
	}
	return s, nil
}

func lab(dir, name string) (_ Signer, err error) {
	c, err := ca.Open(dir, name)
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
		"anchors.pem":      pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Root().Raw}),
		bundle.IssuersFile: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Issuing().Raw}),
		bundle.CRLsFile:    crls,
	} {
		if err := store.WriteFile(file(name), text, 0o644); err != nil {
			return Signer{}, err
		}
	}
	return Signer{
		Certificate: file("signer.pem"), Key: file("signer.pem"), Intermediates: []string{file("issuing.pem")},
		Anchors: file(bundle.AnchorsFile), SigningCAs: file(bundle.IssuersFile), CRLs: file(bundle.CRLsFile),
	}, nil
}

// trust is what a device with these files believes, today.
func (s Signer) trust() (*cms.Trust, error) {
	t, err := bundle.TrustFiles{Anchors: []string{s.Anchors}, Issuers: []string{s.SigningCAs}, CRLs: []string{s.CRLs}}.Read()
	if err != nil {
		return nil, refused(err)
	}
	now := clock.Host()
	t.Now, t.Build = now.Now(), now.Verify
	return t, nil
}
