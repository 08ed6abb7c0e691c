package cms

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"errors"
	"slices"
	"time"
)

// A Trust says who may sign. The zero Trust trusts nobody, and nothing that is left out
// makes it trust more.
type Trust struct {
	// Anchors are where every chain ends.
	Anchors []*x509.Certificate

	// Issuers are the CAs whose leaves may sign; each has to have a chain to an anchor
	// like any other. A message brings certificates along, and an anchor may stand
	// above CAs for all kinds of purposes: without this list, any of those could
	// issue a signer (CVE-2026-109399).
	Issuers []*x509.Certificate

	// CRLs have to say of every certificate in the chain, the anchor excepted, that it
	// is not revoked. See [ReadCRL].
	CRLs []*x509.RevocationList

	// Grace is how long a CRL is still good after its nextUpdate, for devices that
	// cannot get another one.
	Grace time.Duration

	// Usage is the purpose that the signer's certificate must name, and that no CA above
	// it may exclude. Zero is for code signing; a certificate for any purpose is for none.
	Usage x509.ExtKeyUsage

	// Now is when the CRLs are judged; it has to be said. Where one of them is newer, it is
	// at least as late as that, and no certificate in the chain may be over by then.
	Now time.Time

	// Build finds a chain, leaf first, anchor last, in which dates, names and constraints
	// are right and usage is allowed, as (*clock.Clock).Verify does.
	Build func(leaf *x509.Certificate, intermediates, roots []*x509.Certificate, usage ...x509.ExtKeyUsage) ([]*x509.Certificate, error)
}

// Verify returns the chain of the signer, leaf first, if the signer may sign. Its error
// is a *[Refusal].
//
// When it was signed is not asked: the message says so itself (signingTime), so that an
// expired signer could say anything.
func (t *Trust) Verify(s *Signed) ([]*x509.Certificate, error) {
	if len(t.Anchors) == 0 {
		return nil, refuse("anchors", "there are no trust anchors: nobody is trusted")
	}
	if len(t.Issuers) == 0 {
		return nil, refuse("issuers", "no issuing CA is pinned: nobody is trusted")
	}
	usage := cmp.Or(t.Usage, x509.ExtKeyUsageCodeSigning)
	if err := maySign(s.Signer, usage); err != nil {
		return nil, err
	}
	if err := checkAlgorithms(s.Signer); err != nil {
		return nil, err
	}
	var above []*x509.Certificate
	for _, ca := range t.Issuers {
		if bytes.Equal(ca.RawSubject, s.Signer.RawIssuer) && s.Signer.CheckSignatureFrom(ca) == nil {
			above = append(above, ca)
		}
	}
	if above == nil {
		return nil, refuse("issuer", "the signer's certificate is not issued by a CA that is pinned")
	}
	// A chain that begins in another way would not be taken, so it is not offered.
	for _, c := range s.Certificates {
		if !bytes.Equal(c.RawSubject, s.Signer.RawIssuer) && !c.Equal(s.Signer) {
			above = append(above, c)
		}
	}
	chain, err := t.Build(s.Signer, above, t.Anchors, usage)
	if err != nil {
		return nil, &Refusal{reason(err), err}
	}
	if len(chain) < 2 || !slices.ContainsFunc(t.Issuers, chain[1].Equal) {
		return nil, refuse("issuer", "the signer's certificate is not issued by a CA that is pinned")
	}
	// What an anchor says of itself is not asked, but it has a key.
	anchor := chain[len(chain)-1]
	if err := checkAlgorithms(chain[:len(chain)-1]...); err != nil {
		return nil, err
	}
	if err := checkKey(anchor.PublicKey); err != nil {
		return nil, refuse("key", "%s: %w", anchor.Subject, err)
	}
	if err := t.checkRevocation(chain); err != nil {
		return nil, err
	}
	return chain, nil
}

// checkAlgorithms wants keys and signatures of certificates to be as strong as those
// of a message.
func checkAlgorithms(certs ...*x509.Certificate) error {
	for _, c := range certs {
		if err := checkKey(c.PublicKey); err != nil {
			return refuse("key", "%s: %w", c.Subject, err)
		}
		if !signedWithSHA2(c.SignatureAlgorithm) {
			return refuse("algorithm", "the certificate of %s is signed with %v", c.Subject, c.SignatureAlgorithm)
		}
	}
	return nil
}

// maySign wants the certificate of a signer to say that it is one.
func maySign(leaf *x509.Certificate, usage x509.ExtKeyUsage) error {
	switch {
	case leaf.IsCA:
		return refuse("keyusage", "the signer is a CA")
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return refuse("keyusage", "the signer's key is not for signatures")
	case leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return refuse("keyusage", "the signer's key is one of a CA")
	case !slices.Contains(leaf.ExtKeyUsage, usage):
		return refuse("eku", "the signer's certificate is not for this purpose")
	case slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny):
		return refuse("eku", "the signer's certificate is for any purpose")
	}
	return nil
}

// reason is the code for what was wrong with a chain.
func reason(err error) string {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) {
		switch invalid.Reason {
		case x509.Expired:
			return "expired"
		case x509.IncompatibleUsage:
			return "eku"
		}
	}
	return "untrusted"
}
