// Package enroll gets certificates from a certificate authority over EST, as a
// device does (RFC 7030, with RFC 8951 and RFC 9908).
//
// A [Client] speaks with one server:
//
//	CACerts   the CA's certificates                        RFC 7030, 4.1
//	CSRAttrs  what the CA wants to see in a request        4.5
//	Enroll    a certificate for a new key                  4.2.1
//	Reenroll  the successor of a certificate               4.2.2
//
// Requests come as bytes and keys as a [crypto.Signer]: how either is made is no
// matter of this package. An operation is tried once. What to do after it failed is
// the caller's decision, and the type of the error is what it decides by:
//
//	*[PendingError]      the CA will decide later: the same request again
//	*[RefusedError]      the CA says no
//	*[UntrustedError]    this is not the server that we were told to trust
//	*[AnswerError]       the answer breaks a rule; nothing of it is used
//	*[UnavailableError]  no answer, or "not now"
//
// Any other error is about what the caller gave.
//
// # What is promised
//
// The server is verified, always, against the anchors and by the clock of
// [Config]. Where only the SHA-256 of a root certificate is known
// ([Config].Pin), one first connection is not verified (RFC 7030, 4.1.1). It
// fetches the CA's certificates and carries nothing of ours; only when the pinned
// root is among them, and the server's own chain leads to it, does anything else
// happen, and that on new, verified connections.
//
// Password and client certificate go to verified servers only. Redirects are
// followed within the same scheme, host and port, three times at most, and never
// turn a request into another one.
//
// A certificate is returned only after it passed every check in accept.go: our key,
// our name, a chain to an anchor, fit for TLS clients, alive, no CA. A CA may add
// to the name; what it added is in [Issued].Changes.
//
// Each operation ends within [Config].Timeout. What comes in is limited in size and
// is never decompressed. Text of a server appears in errors on one line, cut short,
// without control characters.
//
// # What is not done
//
// There is no Digest authentication, no full CMC, and no key is taken that a server
// made. Proxies are those of the environment (HTTPS_PROXY, NO_PROXY), reached over
// http or socks5. A proof of possession ([Request].Bind) names both ends of one TLS
// connection: where something between here and the server ends it, there can be none.
package enroll

import (
	"cmp"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"birthmark/pkg/clock"
)

// timeoutDefault is how long an operation may take if nobody says.
const timeoutDefault = time.Minute

// Config says who is asked, who is believed and who asks.
type Config struct {
	URL   string // https://HOST[:PORT], with or without /.well-known/est
	Label string // of the CA, where a server has several (RFC 7030, 3.2.2)

	// Anchors are the roots that the server's chain and the issued certificate's
	// must lead to. Where there are none, Pin is the SHA-256 of the one root, over
	// its whole DER.
	Anchors []*x509.Certificate
	Pin     []byte

	// A Password goes with every request, once the server is verified.
	Username, Password string
	// Certificate is shown to a verified server that asks for one, with its chain.
	Certificate *tls.Certificate

	Clock   *clock.Clock  // nil: clock.System
	Timeout time.Duration // of one operation, from the first byte to the last; 0: a minute
}

// A Client speaks with one EST server. It is safe for concurrent use.
type Client struct {
	conf Config

	origin *url.URL // scheme and host only
	path   string   // escaped, up to the operation

	door chan struct{} // holds one entry while verified is read or written
	peer *peer         // owned by who is in the door; nil until there are anchors
}

// A Request is what a certificate is asked for with.
type Request struct {
	CSR []byte        // PKCS #10, DER
	Key crypto.Signer // whose public part is in CSR
	// Bind, if it is set, makes CSR once more, with the same key and names and with
	// binding as its challengePassword; that is sent in place of CSR, over the connection
	// that binding names and no other (RFC 7030, 3.5). A CA whose CSR attributes ask for
	// a challengePassword wants it so.
	Bind func(binding string) ([]byte, error)
	// Current is the certificate to renew. Only Reenroll needs it.
	Current *x509.Certificate
}

// Issued is a certificate that passed every check.
type Issued struct {
	Chain   []*x509.Certificate // leaf first, then intermediates, without the root
	Changes []string            // what the CA added to the name that was asked for; for people
}

// The operations, as they stand in a path (RFC 7030, 3.2.2).
const (
	opCACerts  = "cacerts"
	opCSRAttrs = "csrattrs"
	opEnroll   = "simpleenroll"
	opReenroll = "simplereenroll"
)

// operations is what no label may be called.
var operations = []string{opCACerts, opCSRAttrs, opEnroll, opReenroll, "fullcmc", "serverkeygen"}

const wellKnown = "/.well-known/est"

// New returns a Client. Nothing is sent yet. An error is about conf.
func New(conf Config) (*Client, error) {
	u, err := url.Parse(conf.URL)
	if err != nil {
		return nil, fmt.Errorf("cannot use the EST server's address: %w", err)
	}
	port, errPort := strconv.ParseUint(cmp.Or(u.Port(), "443"), 10, 16)
	path := strings.TrimSuffix(u.EscapedPath(), "/")
	switch {
	case u.Scheme != "https" || u.Hostname() == "" || errPort != nil || port == 0,
		u.User != nil || u.RawQuery != "" || u.Fragment != "" || path != "" && path != wellKnown:
		return nil, fmt.Errorf("cannot use the EST server's address %q: want https://HOST[:PORT]", u.Redacted())
	case conf.Label == "." || conf.Label == ".." || strings.Contains(conf.Label, "/") || slices.Contains(operations, conf.Label):
		return nil, fmt.Errorf("cannot use the EST label %q: want one segment of a path that names no operation", conf.Label)
	case len(conf.Anchors) == 0 && conf.Pin == nil:
		return nil, errors.New("cannot trust any EST server: neither anchors nor the fingerprint of one")
	case len(conf.Anchors) == 0 && len(conf.Pin) != sha256.Size:
		return nil, fmt.Errorf("cannot use the anchor's fingerprint: it has %d bytes, a SHA-256 has %d", len(conf.Pin), sha256.Size)
	case strings.Contains(conf.Username, ":"): // RFC 7617, 2
		return nil, errors.New("cannot use the EST user name: there is a colon in it")
	case strings.ContainsFunc(conf.Username+conf.Password, unicode.IsControl):
		return nil, errors.New("cannot use the EST user name or password: there are control characters in it")
	case conf.Certificate != nil && (len(conf.Certificate.Certificate) == 0 || conf.Certificate.PrivateKey == nil):
		return nil, errors.New("cannot use the certificate for the EST server: it has no bytes, or no key")
	case conf.Timeout < 0:
		return nil, fmt.Errorf("cannot use the time limit %v", conf.Timeout)
	}
	conf.Timeout = cmp.Or(conf.Timeout, timeoutDefault)
	if conf.Clock == nil {
		conf.Clock = clock.System()
	}
	c := &Client{
		conf:   conf,
		origin: &url.URL{Scheme: u.Scheme, Host: u.Host},
		path:   wellKnown + "/",
		door:   make(chan struct{}, 1),
	}
	if conf.Label != "" {
		c.path += url.PathEscape(conf.Label) + "/"
	}
	if len(conf.Anchors) != 0 {
		c.peer = c.verified(conf.Anchors)
	}
	return c, nil
}

// CACerts fetches the CA's certificates, in the server's order, which means
// nothing. That a server sends a root is no reason to trust it for more than the
// server is.
func (c *Client) CACerts(ctx context.Context) (certs []*x509.Certificate, err error) {
	err = c.do(ctx, "fetch the CA's certificates from", func(ctx context.Context, p *peer) error {
		certs, err = c.caCerts(ctx, p)
		return err
	})
	return certs, err
}

func (c *Client) caCerts(ctx context.Context, p *peer) ([]*x509.Certificate, error) {
	a, err := c.get(ctx, p, opCACerts)
	if err != nil {
		return nil, err
	}
	return a.certificates()
}

// CSRAttrs fetches what the CA wants to see in a request, a CsrAttrs in DER
// (RFC 7030, 4.5.2; RFC 9908, 3). It is nil if the CA has no wishes. Only the outer
// element is looked at.
func (c *Client) CSRAttrs(ctx context.Context) (der []byte, err error) {
	err = c.do(ctx, "fetch the wishes for a request from", func(ctx context.Context, p *peer) error {
		a, err := c.get(ctx, p, opCSRAttrs)
		if err != nil {
			return err
		}
		der, err = a.csrAttrs()
		return err
	})
	return der, err
}

// Enroll asks for a certificate for a new key.
func (c *Client) Enroll(ctx context.Context, req Request) (issued Issued, err error) {
	err = c.do(ctx, "enrol at", func(ctx context.Context, p *peer) error {
		issued, err = c.certify(ctx, p, opEnroll, req)
		return err
	})
	return issued, err
}

// Reenroll asks for the successor of req.Current, for the same key or a new one.
// Subject and subject alternative name of the request must be those of the
// certificate, byte for byte (RFC 7030, 4.2.2). A successor that ends before it is
// not accepted.
func (c *Client) Reenroll(ctx context.Context, req Request) (issued Issued, err error) {
	if req.Current == nil {
		return issued, errors.New("cannot renew a certificate: there is none")
	}
	err = c.do(ctx, "renew at", func(ctx context.Context, p *peer) error {
		issued, err = c.certify(ctx, p, opReenroll, req)
		return err
	})
	return issued, err
}

// do does one operation within the time that one may take.
func (c *Client) do(ctx context.Context, what string, op func(context.Context, *peer) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.conf.Timeout, fmt.Errorf("no whole answer within %v", c.conf.Timeout))
	defer cancel()
	p, err := c.trusted(ctx)
	if err == nil {
		err = op(ctx, p)
	}
	if err != nil {
		return fmt.Errorf("cannot %s %s: %w", what, c.origin, err)
	}
	return nil
}

// certify sends a request and checks what comes back.
func (c *Client) certify(ctx context.Context, p *peer, op string, req Request) (Issued, error) {
	w, err := newWish(req)
	if err != nil {
		return Issued{}, err
	}
	a, err := c.post(ctx, p, op, w)
	if err != nil {
		return Issued{}, err
	}
	certs, err := a.certificates()
	if err != nil {
		return Issued{}, err
	}
	return c.accept(ctx, p, w, certs)
}

// emptySequence is a CsrAttrs without wishes.
var emptySequence = []byte{0x30, 0x00}

// csrAttrs is the CsrAttrs in an answer. Four answers say that there are no wishes:
// 204, 404, no body, and an empty CsrAttrs (RFC 7030, 4.5.2).
func (a *answer) csrAttrs() ([]byte, error) {
	if a.status == 204 || a.status == 404 || a.status == 200 && len(a.body) == 0 {
		return nil, nil
	}
	der, err := a.decode("application/csrattrs")
	if err != nil {
		return nil, err
	}
	var outer asn1.RawValue
	rest, err := asn1.Unmarshal(der, &outer)
	switch {
	case err != nil:
		return nil, answerErrorf("its CsrAttrs is not DER: %v", err)
	case len(rest) != 0 || outer.Class != asn1.ClassUniversal || outer.Tag != asn1.TagSequence || !outer.IsCompound:
		return nil, answerErrorf("its CsrAttrs is not one SEQUENCE")
	case slices.Equal(der, emptySequence):
		return nil, nil
	}
	return der, nil
}
