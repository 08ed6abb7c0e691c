package installer

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"

	"birthmark/pkg/cms"
	"birthmark/pkg/fota"
)

// Files of the folders in Server.Trust, PEM. Of the first two the first that is there
// counts; the CRLs of all folders are put together, for they can only take away.
const (
	anchorsFile = "anchors.pem"     // where chains end
	issuersFile = "signing-cas.pem" // CAs whose leaves may sign
	crlsFile    = "crls.pem"

	trustLimit = 2 << 20 // bytes of a file
	blockLimit = 32      // certificates, or CRLs, in a file
)

// trust reads whom to believe. Without anchors, issuers or CRLs that is nobody, which is
// refused here, and not after the peer was asked for something.
func (s *Server) trust() (*cms.Trust, error) {
	no := func(code string, err error) error { return &fota.Refusal{Stage: fota.StageChain, Code: code, Err: err} }
	t := &cms.Trust{Grace: s.Grace, Now: s.Clock.Now(), Build: s.Clock.Verify}
	var err error
	if t.Anchors, err = certificates(s.Trust, anchorsFile); err != nil {
		return nil, no("anchors", err)
	}
	if t.Issuers, err = certificates(s.Trust, issuersFile); err != nil {
		return nil, no("issuers", err)
	}
	for _, folder := range s.Trust {
		more, err := readPEM(filepath.Join(folder, crlsFile), "X509 CRL", cms.ReadCRL)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, no("crl", err)
		}
		t.CRLs = append(t.CRLs, more...)
	}
	if t.CRLs == nil {
		return nil, no("crl", fmt.Errorf("there is no %s in %s", crlsFile, strings.Join(s.Trust, " or ")))
	}
	return t, nil
}

func certificates(folders []string, name string) ([]*x509.Certificate, error) {
	for _, folder := range folders {
		certs, err := readPEM(filepath.Join(folder, name), "CERTIFICATE", x509.ParseCertificate)
		if !errors.Is(err, fs.ErrNotExist) {
			return certs, err
		}
	}
	return nil, fmt.Errorf("there is no %s in %s", name, strings.Join(folders, " or "))
}

// readPEM reads a file of one thing or more, of one type, with nothing but text between
// them (RFC 7468, 2). The decoder passes over what it cannot read; here that is an error.
func readPEM[T any](path, kind string, parse func(der []byte) (T, error)) ([]T, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, err
	}
	var all []T
	rest := text
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != kind || len(block.Headers) > 0 {
			return nil, fmt.Errorf("%s holds a %q, want only %q", path, block.Type, kind)
		}
		one, err := parse(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: number %d in it: %w", path, len(all)+1, err)
		}
		all = append(all, one)
	}
	switch begun := bytes.Count(text, []byte("-----BEGIN")); {
	case begun == 0:
		return nil, fmt.Errorf("there is nothing in %s", path)
	case begun != len(all):
		return nil, fmt.Errorf("%s begins %d times, and %d were read", path, begun, len(all))
	case begun > blockLimit:
		return nil, fmt.Errorf("%s holds %d, limit %d", path, begun, blockLimit)
	}
	return all, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, trustLimit+1))
	if err != nil {
		return nil, err
	}
	if len(text) > trustLimit {
		return nil, fmt.Errorf("%s has more than %d bytes", path, trustLimit)
	}
	return text, nil
}

// newestCRL is the number of the newest CRL of issuer (RFC 5280, 5.2.3); nil if none has
// one. One with a critical extension does not speak of all certificates (package cms).
func newestCRL(issuer *x509.Certificate, crls []*x509.RevocationList) (newest *big.Int) {
	for _, crl := range crls {
		partial := false
		for _, e := range crl.Extensions {
			partial = partial || e.Critical
		}
		if !partial && crl.Number != nil && bytes.Equal(crl.RawIssuer, issuer.RawSubject) && crl.CheckSignatureFrom(issuer) == nil &&
			(newest == nil || crl.Number.Cmp(newest) > 0) {
			newest = crl.Number
		}
	}
	return newest
}

func keyID(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}
