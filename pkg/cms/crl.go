package cms

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"
)

// CRLLimit is the most bytes that a CRL may have: some ten thousand entries.
const CRLLimit = 1 << 20

// ReadCRL reads a CRL in DER, and nothing after it.
func ReadCRL(der []byte) (*x509.RevocationList, error) {
	crl, err := readCRL(der)
	if err != nil {
		return nil, fmt.Errorf("cannot read CRL: %w", err)
	}
	return crl, nil
}

func readCRL(der []byte) (*x509.RevocationList, error) {
	if len(der) > CRLLimit {
		return nil, fmt.Errorf("%d bytes, limit %d", len(der), CRLLimit)
	}
	if err := CheckDER(der); err != nil {
		return nil, err
	}
	return x509.ParseRevocationList(bytes.Clone(der))
}

// checkRevocation wants word about every certificate of a chain, but the last, from
// who issued it. Then it is at least as late as the newest of what was said, and
// neither a CRL nor a certificate may be over.
func (t *Trust) checkRevocation(chain []*x509.Certificate) error {
	if t.Now.IsZero() { // any CRL would be good for ever
		return refuse("stale", "nobody says when it is, so no CRL is known to be good")
	}
	now, issued := t.Now, chain[:len(chain)-1]
	until := make([]time.Time, len(issued))
	for i, c := range issued {
		said, good, err := t.word(c, chain[i+1])
		if err != nil {
			return err
		}
		until[i] = good.Add(t.Grace)
		if said.After(now) {
			now = said
		}
	}
	for _, c := range chain {
		if now.After(c.NotAfter) {
			return refuse("expired", "the certificate of %s was good until %s", c.Subject, c.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	for i, c := range issued {
		if now.After(until[i]) {
			return refuse("stale", "the CRL that speaks of %s could be used until %s", c.Subject, until[i].UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// word is what the CRLs say of a certificate: nothing against it, last at said, and
// that is good until good. If any of them lists it, it is revoked, however old that
// one is.
func (t *Trust) word(c, issuer *x509.Certificate) (said, good time.Time, err error) {
	why := errors.New("there is none of its issuer")
	for _, crl := range t.CRLs {
		if !bytes.Equal(crl.RawIssuer, issuer.RawSubject) {
			continue
		}
		if err := checkCRL(crl, issuer); err != nil {
			why = err
			continue
		}
		for _, e := range crl.RevokedCertificateEntries {
			if e.SerialNumber.Cmp(c.SerialNumber) == 0 {
				return said, good, refuse("revoked", "the certificate of %s was revoked", c.Subject)
			}
		}
		if crl.ThisUpdate.After(said) {
			said = crl.ThisUpdate
		}
		if crl.NextUpdate.After(good) {
			good = crl.NextUpdate
		}
		why = errors.New("it does not say until when it is good")
	}
	if good.IsZero() {
		return said, good, refuse("crl", "no CRL speaks of the certificate of %s: %w", c.Subject, why)
	}
	return said, good, nil
}

// idDeltaCRL is id-ce-deltaCRLIndicator (RFC 5280, 5.2.4).
var idDeltaCRL = asn1.ObjectIdentifier{2, 5, 29, 27}

// checkCRL wants a CRL that is its issuer's, and that speaks of all its certificates.
// A critical extension may say that it does not (RFC 5280, 5.2 and 5.3): the
// issuingDistributionPoint, which bounds the scope, is one; so is the certificateIssuer
// of an entry, which is about somebody else's. None is understood here.
func checkCRL(crl *x509.RevocationList, issuer *x509.Certificate) error {
	if !signedWithSHA2(crl.SignatureAlgorithm) {
		return fmt.Errorf("it is signed with %v", crl.SignatureAlgorithm)
	}
	if err := crl.CheckSignatureFrom(issuer); err != nil {
		return err
	}
	for _, e := range crl.Extensions {
		if e.Id.Equal(idDeltaCRL) {
			return errors.New("it only says what changed (a delta CRL)")
		}
	}
	if critical(crl.Extensions) {
		return errors.New("it has a critical extension")
	}
	for _, e := range crl.RevokedCertificateEntries {
		if critical(e.Extensions) {
			return errors.New("an entry has a critical extension")
		}
	}
	return nil
}

func critical(extensions []pkix.Extension) bool {
	return slices.ContainsFunc(extensions, func(e pkix.Extension) bool { return e.Critical })
}
