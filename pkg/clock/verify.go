package clock

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// chainLimit is the most certificates, besides the leaf, that are looked at.
const chainLimit = 10

// A VerifyError says that a chain, or the server that showed it, is not to be
// believed. Err is crypto/x509's own reason where there is one.
type VerifyError struct {
	Subject string    // of the leaf; "" if there was none
	At      time.Time // the moment of the last try
	Trusted bool      // whether that moment came from a synchronised clock
	Err     error
}

func (e *VerifyError) Error() string {
	by := "the clock is synchronised"
	if !e.Trusted {
		by = "the clock is not synchronised"
	}
	return fmt.Sprintf("cannot verify the certificate of %q at %s (%s): %v",
		e.Subject, e.At.UTC().Format(time.RFC3339), by, e.Err)
}

func (e *VerifyError) Unwrap() error { return e.Err }

// Verify builds a chain from leaf to one of roots and returns it, leaf first,
// root last. The chain must allow one of the usages; none means any. Where the
// clock is synchronised it must be valid now; otherwise at the floor or at its own
// newest notBefore, whichever is later, if that is not beyond the horizon. Any
// error is a *[VerifyError].
func (c *Clock) Verify(leaf *x509.Certificate, intermediates, roots []*x509.Certificate, usage ...x509.ExtKeyUsage) ([]*x509.Certificate, error) {
	trusted := c.Trusted()
	fail := func(at time.Time, err error) ([]*x509.Certificate, error) {
		return nil, &VerifyError{Subject: leaf.Subject.String(), At: at, Trusted: trusted, Err: err}
	}
	if len(intermediates) > chainLimit {
		return fail(c.Now(), fmt.Errorf("%d certificates above it, limit %d", len(intermediates), chainLimit))
	}
	if len(usage) == 0 {
		usage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	}
	o := x509.VerifyOptions{Roots: pool(roots), Intermediates: pool(intermediates), KeyUsages: usage}
	if trusted {
		o.CurrentTime = c.Now()
		chains, err := leaf.Verify(o)
		if err != nil {
			return fail(o.CurrentTime, err)
		}
		return chains[0], nil
	}
	var err error
	for _, at := range c.moments(leaf, slices.Concat(intermediates, roots)) {
		if at.After(c.horizon()) {
			if err == nil {
				err = fmt.Errorf("its dates begin more than %d years after this software was built", horizonYears)
			}
			break
		}
		o.CurrentTime = at
		var chains [][]*x509.Certificate
		if chains, err = leaf.Verify(o); err == nil {
			return chains[0], nil
		}
	}
	return fail(o.CurrentTime, err)
}

// moments are the moments at which an unsynchronised clock tries a chain: the
// floor or leaf's notBefore, then every later notBefore among others, earliest
// first. The first at which a chain verifies is max(floor, newest notBefore in
// it): had that been earlier, the chain would have verified there.
func (c *Clock) moments(leaf *x509.Certificate, others []*x509.Certificate) []time.Time {
	first := c.Floor()
	if leaf.NotBefore.After(first) {
		first = leaf.NotBefore
	}
	at := []time.Time{first}
	for _, o := range others {
		if o.NotBefore.After(first) {
			at = append(at, o.NotBefore)
		}
	}
	slices.SortFunc(at, time.Time.Compare)
	return slices.CompactFunc(at, time.Time.Equal)
}

// pool is never nil, which crypto/x509 would take for the system's roots.
func pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, cert := range certs {
		p.AddCert(cert)
	}
	return p
}

// TLS is the configuration of a client that believes a server whose chain leads
// to one of roots, by this clock, and whose certificate is for serverName, a host
// name or an IP address. The caller may add its own certificate.
//
// It verifies in VerifyConnection, for crypto/tls has one time for all chains;
// that is what InsecureSkipVerify stands for here. Errors of the handshake that
// are about trust are a *[VerifyError].
func (c *Clock) TLS(roots []*x509.Certificate, serverName string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         serverName,
		InsecureSkipVerify: true, // #nosec G402: VerifyConnection verifies
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return &VerifyError{At: c.Now(), Trusted: c.Trusted(), Err: errors.New("the server showed none")}
			}
			leaf := s.PeerCertificates[0]
			if _, err := c.Verify(leaf, s.PeerCertificates[1:], roots, x509.ExtKeyUsageServerAuth); err != nil {
				return err
			}
			if err := leaf.VerifyHostname(serverName); err != nil {
				return &VerifyError{Subject: leaf.Subject.String(), At: c.Now(), Trusted: c.Trusted(), Err: err}
			}
			return nil
		},
	}
}
