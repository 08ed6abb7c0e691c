package ca

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"time"
)

// forever is the notAfter of a certificate that has no end (RFC 5280 4.1.2.5).
var forever = time.Date(9999, time.December, 31, 23, 59, 59, 0, time.UTC)

// A request is what makes two requests the same: SHA-256 of profile, key, subject
// and alternative names.
type request [sha256.Size]byte

func requestOf(profile string, spki, subject, altNames []byte) request {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(profile), spki, subject, altNames} {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return request(h.Sum(nil))
}

// An issued certificate, in as little memory as it needs.
type issued struct {
	der      []byte
	notAfter time.Time
}

// An issuance is under way; the rest is set when done is closed.
type issuance struct {
	done chan struct{}
	cert *x509.Certificate
	err  error
}

// Issue returns a certificate of profile p for the request: the very same as
// before, if the same key has asked for the same names, by Issue or Renew, and that
// certificate has not ended. The error is a [RefusedError] if [Profile.Check]
// refuses the request; else nothing is known to be wrong with it.
func (c *CA) Issue(csr *x509.CertificateRequest, p Profile) (*x509.Certificate, error) {
	if err := p.Check(csr); err != nil {
		return nil, err
	}
	r := requestOf(p.name, csr.RawSubjectPublicKeyInfo, csr.RawSubject, altNames(csr))
	c.mu.Lock()
	if old, ok := c.issued[r]; ok && time.Now().Before(old.notAfter) {
		c.mu.Unlock()
		return x509.ParseCertificate(old.der)
	}
	if other := c.pending[r]; other != nil {
		c.mu.Unlock()
		<-other.done
		return other.cert, other.err
	}
	mine := &issuance{done: make(chan struct{})}
	c.pending[r] = mine
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.pending, r)
		c.mu.Unlock()
		close(mine.done)
	}()
	mine.cert, mine.err = c.issue(csr, p, r)
	return mine.cert, mine.err
}

// Renew is like Issue, but always returns a new certificate. A profile without an
// end is refused: there, another key would be another identity.
func (c *CA) Renew(csr *x509.CertificateRequest, p Profile) (*x509.Certificate, error) {
	if err := p.Check(csr); err != nil {
		return nil, err
	}
	if p.lifetime == 0 {
		return nil, refuse("a %s certificate has no end, and is not renewed", p)
	}
	return c.issue(csr, p, requestOf(p.name, csr.RawSubjectPublicKeyInfo, csr.RawSubject, altNames(csr)))
}

// issue makes a certificate for a request that was checked.
func (c *CA) issue(csr *x509.CertificateRequest, p Profile, r request) (*x509.Certificate, error) {
	tmpl := &x509.Certificate{RawSubject: csr.RawSubject}
	if san := altNames(csr); san != nil {
		// Byte for byte: a successor must ask for the same (RFC 7030 4.2.2).
		tmpl.ExtraExtensions = []pkix.Extension{{Id: oidAltNames, Value: san}}
	}
	cert, err := c.record(tmpl, p, csr.PublicKey)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.issued[r] = issued{cert.Raw, cert.NotAfter}
	return cert, nil
}

// record signs what tmpl and p say for a public key, and returns the certificate
// once it is on disk.
func (c *CA) record(tmpl *x509.Certificate, p Profile, public any) (*x509.Certificate, error) {
	now := time.Now().UTC().Truncate(time.Second)
	tmpl.NotBefore = later(now.Add(-skew), c.issuing.NotBefore)
	tmpl.NotAfter = forever
	if p.lifetime != 0 {
		tmpl.NotAfter = earlier(now.Add(p.lifetime), c.issuing.NotAfter)
	}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{p.usage}
	tmpl.BasicConstraintsValid = true // and CA:FALSE
	cert, err := sign(tmpl, c.issuing, public, c.key)
	if err != nil {
		return nil, fmt.Errorf("cannot sign a certificate: %w", err)
	}
	if err := c.journal.append(&Record{
		Subject:     cert.Subject.String(),
		Serial:      hex.EncodeToString(cert.SerialNumber.Bytes()),
		SPKI:        hex.EncodeToString(cert.SubjectKeyId),
		NotAfter:    cert.NotAfter,
		Profile:     p.name,
		Certificate: cert.Raw,
	}); err != nil {
		return nil, fmt.Errorf("cannot record a certificate: %w", err)
	}
	return cert, nil
}

// remember takes a line of the record for what Issue may be asked for again.
func (c *CA) remember(r *Record, now time.Time) error {
	if !now.Before(r.NotAfter) {
		return nil
	}
	cert, err := x509.ParseCertificate(r.Certificate)
	if err != nil {
		return err
	}
	var san []byte
	for _, e := range cert.Extensions {
		if e.Id.Equal(oidAltNames) {
			san = e.Value
		}
	}
	c.issued[requestOf(r.Profile, cert.RawSubjectPublicKeyInfo, cert.RawSubject, san)] = issued{cert.Raw, cert.NotAfter}
	return nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
