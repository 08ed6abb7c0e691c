package enroll

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"birthmark/pkg/clock"
)

// skew is how far a CA's clock may be ahead of ours, if ours is synchronised.
const skew = 5 * time.Minute

// A wish is a request that was understood.
type wish struct {
	Request
	csr *x509.CertificateRequest
}

// newWish understands req. An error is the caller's.
func newWish(req Request) (*wish, error) {
	csr, err := x509.ParseCertificateRequest(req.CSR)
	if err != nil {
		return nil, fmt.Errorf("cannot use the request: %w", err)
	}
	if req.Key == nil || !samePublicKey(csr.PublicKey, req.Key.Public()) {
		return nil, errors.New("cannot use the request: it is for another key")
	}
	// RFC 7030, 4.2.2. Some servers compare bytes.
	if now := req.Current; now != nil &&
		(!bytes.Equal(csr.RawSubject, now.RawSubject) || !bytes.Equal(altNames(csr.Extensions), altNames(now.Extensions))) {
		return nil, errors.New("cannot use the request: its name is not that of the certificate to renew")
	}
	return &wish{Request: req, csr: csr}, nil
}

func samePublicKey(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

// accept finds the certificate for w among certs and checks it. Cheap and telling
// checks come first; the chain may need certificates that have to be fetched.
func (c *Client) accept(ctx context.Context, p *peer, w *wish, certs []*x509.Certificate) (Issued, error) {
	leaf := w.find(certs)
	if leaf == nil {
		return Issued{}, answerErrorf("none of its certificates is for our key")
	}
	if err := w.fit(leaf); err != nil {
		return Issued{}, err
	}
	changes, err := w.changes(leaf)
	if err != nil {
		return Issued{}, err
	}
	chain, err := c.chain(ctx, p, leaf, certs)
	if err != nil {
		return Issued{}, err
	}
	if err := w.tryKey(leaf); err != nil {
		return Issued{}, err
	}
	if last := len(chain) - 1; last > 0 && isRoot(chain[last]) {
		chain = chain[:last]
	}
	return Issued{Chain: chain, Changes: changes}, nil
}

// find is the newest certificate for our key. Order means nothing, since
// they come as a SET (RFC 5652, 5.1), and there may be others among them: the CA's,
// or after a renewal with the same key the one that was renewed.
func (w *wish) find(certs []*x509.Certificate) (leaf *x509.Certificate) {
	for _, cert := range certs {
		if samePublicKey(cert.PublicKey, w.Key.Public()) && (leaf == nil || cert.NotBefore.After(leaf.NotBefore)) {
			leaf = cert
		}
	}
	return leaf
}

// fit checks that leaf can do what it is for, to be a client in TLS, and no more.
// What it may do must be said: an absent extension allows everything.
func (w *wish) fit(leaf *x509.Certificate) error {
	switch {
	case leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return answerErrorf("the certificate is a CA's")
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return answerErrorf("the certificate's keyUsage lacks digitalSignature")
	case !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		return answerErrorf("the certificate's extendedKeyUsage lacks clientAuth")
	case w.Current != nil && leaf.NotAfter.Before(w.Current.NotAfter):
		return answerErrorf("the certificate ends at %s, before the one it replaces, at %s",
			leaf.NotAfter.UTC().Format(time.RFC3339), w.Current.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// chain is the way from leaf to an anchor, over certificates of the answer. Where
// the answer holds leaf only, as it should (RFC 7030, 4.2.3), those that lie between
// come from /cacerts.
func (c *Client) chain(ctx context.Context, p *peer, leaf *x509.Certificate, certs []*x509.Certificate) ([]*x509.Certificate, error) {
	clk := c.conf.Clock
	if now := clk.Now(); clk.Trusted() && leaf.NotBefore.After(now) {
		if leaf.NotBefore.Sub(now) > skew {
			return nil, answerErrorf("the certificate begins at %s, and it is %s",
				leaf.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
		}
		// Within skew, it is judged as it will be when it begins.
		clk = clock.Fixed(clock.Build(), time.Time{}, leaf.NotBefore, true)
	}
	verify := func(certs []*x509.Certificate) ([]*x509.Certificate, error) {
		return clk.Verify(leaf, above(leaf, certs), p.anchors, x509.ExtKeyUsageClientAuth)
	}
	chain, err := verify(certs)
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		more, errFetch := c.caCerts(ctx, p)
		var unavailable *UnavailableError
		if errors.As(errFetch, &unavailable) {
			return nil, errFetch
		}
		chain, err = verify(append(more, certs...))
	}
	if err != nil {
		return nil, answerErrorf("%v", err)
	}
	return chain, nil
}

// above are the certificates that may lie between leaf and a root, by their names.
func above(leaf *x509.Certificate, certs []*x509.Certificate) (found []*x509.Certificate) {
	for next := []*x509.Certificate{leaf}; len(next) > 0; next = next[1:] {
		for _, cert := range certs {
			if bytes.Equal(cert.RawSubject, next[0].RawIssuer) && !slices.ContainsFunc(found, cert.Equal) {
				found, next = append(found, cert), append(next, cert)
			}
		}
	}
	return found
}

// tryKey lets our key sign and leaf verify: a key whose public part is right and
// whose private part is not would be found out only by the next server.
func (w *wish) tryKey(leaf *x509.Certificate) error {
	algorithm := x509.ECDSAWithSHA256
	switch leaf.PublicKey.(type) {
	case *ecdsa.PublicKey:
	case *rsa.PublicKey:
		algorithm = x509.SHA256WithRSA
	default:
		return fmt.Errorf("cannot try the key: %T is not supported", leaf.PublicKey)
	}
	message := make([]byte, 32)
	rand.Read(message) // never fails
	signature, err := crypto.SignMessage(w.Key, rand.Reader, message, crypto.SHA256)
	if err != nil {
		return fmt.Errorf("cannot try the key: %w", err)
	}
	if err := leaf.CheckSignature(algorithm, message, signature); err != nil {
		return answerErrorf("a signature of our key does not verify under the certificate: %v", err)
	}
	return nil
}
