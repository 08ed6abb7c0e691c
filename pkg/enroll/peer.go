package enroll

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"
	"time"
)

const (
	headerLimit = 16 << 10         // bytes of an answer's header
	idleLimit   = 30 * time.Second // a connection waits this long for its next request
)

// A peer is the server, as seen over connections that are all verified in the same
// way.
type peer struct {
	transport *http.Transport
	// anchors are what the server was verified against; none on the provisional
	// connection of a bootstrap, which neither carries credentials nor follows
	// redirects.
	anchors []*x509.Certificate
	// wantsCertificate is set once the server asked for one in a handshake.
	wantsCertificate atomic.Bool
}

// shows is the certificate that p gets to see; nil for none.
func (c *Client) shows(p *peer) *tls.Certificate {
	if p.anchors == nil {
		return nil
	}
	return c.conf.Certificate
}

// trusted returns the verified server. The first call may have to find out what to
// trust; others wait meanwhile.
func (c *Client) trusted(ctx context.Context) (*peer, error) {
	select {
	case c.door <- struct{}{}:
		defer func() { <-c.door }()
	case <-ctx.Done():
		return nil, &UnavailableError{Err: context.Cause(ctx)}
	}
	if c.peer != nil {
		return c.peer, nil
	}
	root, err := c.bootstrap(ctx)
	if err != nil {
		return nil, err
	}
	c.peer = c.verified([]*x509.Certificate{root})
	return c.peer, nil
}

// verified is the server whose chain leads to anchors.
func (c *Client) verified(anchors []*x509.Certificate) *peer {
	return c.newPeer(c.conf.Clock.TLS(anchors, c.origin.Hostname()), anchors)
}

// bootstrap finds the root whose fingerprint is pinned (RFC 7030, 4.1.1). What the
// server says on the way is nobody's word yet, so unless it is not there at all, the
// error is that it cannot be trusted.
func (c *Client) bootstrap(ctx context.Context) (*x509.Certificate, error) {
	p := c.newPeer(&tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         c.origin.Hostname(),
		InsecureSkipVerify: true, // #nosec G402: its chain is verified below, once there is a root
	}, nil)
	defer p.transport.CloseIdleConnections()
	a, err := c.get(ctx, p, opCACerts)
	var unavailable *UnavailableError
	if errors.As(err, &unavailable) {
		return nil, err
	}
	var certs []*x509.Certificate
	if err == nil {
		certs, err = a.certificates()
	}
	if err != nil { // as text only: it must not be taken for the word of a server that we know
		return nil, &UntrustedError{Err: fmt.Errorf("not verified yet, and %v", err)}
	}
	i := slices.IndexFunc(certs, func(cert *x509.Certificate) bool {
		sum := sha256.Sum256(cert.Raw)
		return bytes.Equal(sum[:], c.conf.Pin)
	})
	if i < 0 {
		return nil, &UntrustedError{Err: fmt.Errorf("none of its %d CA certificates has the pinned fingerprint", len(certs))}
	}
	root := certs[i]
	if !isRoot(root) {
		return nil, &UntrustedError{Err: errors.New("the certificate with the pinned fingerprint is not a root")}
	}
	if err := c.conf.Clock.TLS([]*x509.Certificate{root}, c.origin.Hostname()).VerifyConnection(*a.tls); err != nil {
		return nil, &UntrustedError{Err: err}
	}
	return root, nil
}

func isRoot(cert *x509.Certificate) bool {
	return bytes.Equal(cert.RawSubject, cert.RawIssuer) && cert.CheckSignatureFrom(cert) == nil
}

// newPeer is the server behind connections that conf verifies. They speak HTTP/1.1
// only, which every EST server does, and inflate nothing: net/http would make a
// gigabyte of five megabytes, unasked.
func (c *Client) newPeer(conf *tls.Config, anchors []*x509.Certificate) *peer {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	p := &peer{anchors: anchors, transport: &http.Transport{
		Proxy:                  c.proxy,
		OnProxyConnectResponse: connected,
		TLSClientConfig:        conf,
		Protocols:              &protocols,
		DisableCompression:     true,
		MaxResponseHeaderBytes: headerLimit,
		IdleConnTimeout:        idleLimit,
		// The transport goes on connecting after a request was given up, for a while.
		DialContext:         (&net.Dialer{Timeout: 2 * c.conf.Timeout}).DialContext,
		TLSHandshakeTimeout: 2 * c.conf.Timeout,
	}}
	// tls.Config.Certificates would be filtered by the CAs that the server names, and
	// servers name none, or the wrong ones.
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		p.wantsCertificate.Store(true)
		return cmp.Or(c.shows(p), &tls.Certificate{}), nil
	}
	return p
}

// proxy is the proxy of the environment for our one server. Requests go nowhere else,
// and net/http forgets the port of one that has a connection of its own.
func (c *Client) proxy(*http.Request) (*url.URL, error) {
	return usable(http.ProxyFromEnvironment(&http.Request{URL: c.origin}))
}

// connected refuses a proxy that does not lead to the server, in words that name it:
// net/http only repeats the proxy's.
func connected(_ context.Context, proxy *url.URL, _ *http.Request, resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%w %s: %s", ErrProxy, proxy.Redacted(), said(resp.Status))
	}
	return nil
}

// usable refuses a proxy that is itself reached over TLS: it would be verified as if
// it were the EST server.
func usable(u *url.URL, err error) (*url.URL, error) {
	if u != nil && u.Scheme == "https" {
		return nil, fmt.Errorf("%w %s: it is to be reached over https, and only http and socks5 can be used", ErrProxy, u.Redacted())
	}
	return u, err
}
