package installer

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"math/big"

	"birthmark/pkg/cms"
	"birthmark/pkg/fota/bundle"
)

// trust reads whom to believe. If that is nobody, it is refused here, and not after the
// peer was asked for something.
func (s *Server) trust() (*cms.Trust, error) {
	t, err := bundle.TrustIn(s.Trust...).Read()
	if err != nil {
		return nil, err
	}
	t.Grace, t.Now, t.Build = s.Grace, s.Clock.Now(), s.Clock.Verify
	return t, nil
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
