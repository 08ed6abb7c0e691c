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

	trustLimit = 2 << 20 // bytes of PEM for one purpose; some 36,000 entries of CRLs
	blockLimit = 32      // certificates, or CRLs
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
	var paths []string
	for _, folder := range s.Trust {
		paths = append(paths, filepath.Join(folder, crlsFile))
	}
	if t.CRLs, err = readPEM("X509 CRL", cms.ReadCRL, paths...); err != nil {
		return nil, no("crl", err)
	}
	return t, nil
}

func certificates(folders []string, name string) (certs []*x509.Certificate, err error) {
	for _, folder := range folders {
		certs, err = readPEM("CERTIFICATE", x509.ParseCertificate, filepath.Join(folder, name))
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return certs, err
}

// readPEM reads things of one kind from those of some files that are there, with nothing
// but text between them (RFC 7468, 2). The decoder passes over what it cannot read; here
// that is an error.
func readPEM[T any](kind string, parse func(der []byte) (T, error), paths ...string) (all []T, err error) {
	from := strings.Join(paths, " and ")
	text, err := readFiles(paths)
	if err != nil {
		return nil, err
	}
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != kind || len(block.Headers) > 0 {
			return nil, fmt.Errorf("%s holds a %q, want only %q", from, block.Type, kind)
		}
		one, err := parse(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: number %d in it: %w", from, len(all)+1, err)
		}
		all = append(all, one)
	}
	switch begun := bytes.Count(text, []byte("-----BEGIN")); {
	case begun == 0:
		return nil, fmt.Errorf("there is nothing in %s", from)
	case begun != len(all):
		return nil, fmt.Errorf("%s begins %d times, and %d were read", from, begun, len(all))
	case begun > blockLimit:
		return nil, fmt.Errorf("%s holds %d, limit %d", from, begun, blockLimit)
	}
	return all, nil
}

// readFiles puts together those of some files that are there; one has to be.
func readFiles(paths []string) (text []byte, err error) {
	missing := errors.New("there is no folder for it")
	for _, path := range paths {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			missing = err
			continue
		}
		if err != nil {
			return nil, err
		}
		more, err := io.ReadAll(io.LimitReader(f, trustLimit+1))
		f.Close()
		if err != nil {
			return nil, err
		}
		text = append(append(text, more...), '\n')
		if len(text) > trustLimit {
			return nil, fmt.Errorf("more than %d bytes in %s", trustLimit, strings.Join(paths, " and "))
		}
	}
	if text == nil {
		return nil, missing
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
