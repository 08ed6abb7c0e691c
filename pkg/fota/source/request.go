package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	stallTime     = 30 * time.Second // for an answer to begin, and for each piece of it
	piece         = 16 << 10         // bytes
	redirectLimit = 3
	headerLimit   = 16 << 10 // bytes of an answer's header
	textLimit     = 4 << 10  // bytes of what it says to people
)

var errStalled = fmt.Errorf("no progress within %v", stallTime)

// A body is an answer that is being read.
type body struct {
	resp   *http.Response
	left   int64 // bytes that have to come
	cancel context.CancelCauseFunc
	ctx    context.Context
	stall  *time.Timer // runs while somebody waits for bytes, and cancels
}

// ask asks for the bytes first to last of the file.
func (r *Remote) ask(first, last int64) (*body, error) {
	b := &body{}
	b.ctx, b.cancel = context.WithCancelCause(r.ctx)
	b.stall = time.AfterFunc(stallTime, func() { b.cancel(errStalled) })
	var err error
	b.resp, err = r.follow(b.ctx, first, last)
	if cause := context.Cause(b.ctx); cause != nil {
		// Giving up can bring an answer: a server that sees it may send one, and net/http
		// hands it over if it is quick.
		err = &UnavailableError{Err: cause}
	} else if err == nil {
		if b.left, err = r.check(b.resp, first, last); b.resp.StatusCode >= 300 {
			discard(b.resp)
		}
	}
	b.stall.Stop()
	if err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

// read reads all of p, which may be no longer than what is left.
func (b *body) read(p []byte) (int, error) {
	b.stall.Reset(stallTime)
	defer b.stall.Stop()
	n, err := io.ReadFull(b.resp.Body, p)
	b.left -= int64(n)
	switch cause := context.Cause(b.ctx); {
	case err == nil && b.left == 0:
		return n, b.end()
	case err == nil:
		return n, nil
	case cause != nil:
		err = cause
	}
	return n, &UnavailableError{Err: fmt.Errorf("an answer ended %d bytes early: %w", b.left, lost(err))}
}

var errLost = errors.New("the connection was lost")

// lost keeps io.EOF and io.ErrUnexpectedEOF out of an error. To whoever reads a bundle
// they would say where the file ends, and that is known.
func lost(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errLost
	}
	return err
}

// end makes sure that an answer that did not say its length is over.
func (b *body) end() error {
	if n, _ := b.resp.Body.Read(make([]byte, 1)); n > 0 {
		return errSurplus
	}
	return nil
}

var errSurplus = errors.New("the server sent more bytes than it was asked for")

// close hangs up, unless the answer was read to its end.
func (b *body) close() {
	b.stall.Stop()
	if b.resp != nil {
		b.resp.Body.Close()
	}
	b.cancel(nil)
}

// follow sends a request, after redirects within the server's origin.
func (r *Remote) follow(ctx context.Context, first, last int64) (*http.Response, error) {
	u := r.url
	for hops := 0; ; hops++ {
		resp, err := r.send(ctx, u, first, last)
		if no := untrusted(err); no != nil {
			return nil, no
		} else if err != nil {
			return nil, &UnavailableError{Err: lost(err)}
		}
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return resp, nil
		}
		discard(resp)
		location := resp.Header.Get("Location")
		next, err := u.Parse(location)
		switch {
		case location == "" || err != nil:
			return nil, fmt.Errorf("the server redirects to no place, %.80q", location)
		case next.User != nil || next.Scheme != u.Scheme || !strings.EqualFold(next.Hostname(), u.Hostname()) || portOf(next) != portOf(u):
			return nil, fmt.Errorf("the server redirects to another origin, %.80q", location)
		case hops == redirectLimit:
			return nil, fmt.Errorf("the server redirects to %.80q after %d others", location, hops)
		}
		u = next
	}
}

// discard reads the text of an answer that brings nothing, if it is short: then the
// connection can be used again, and no key has to sign for the next one.
func discard(resp *http.Response) {
	io.CopyN(io.Discard, resp.Body, textLimit)
	resp.Body.Close()
}

func portOf(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	return "443"
}

func (r *Remote) send(ctx context.Context, u *url.URL, first, last int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", first, last))
	req.Header.Set("Accept-Encoding", "identity") // said by us, net/http inflates nothing either
	if r.opened() {
		req.Header.Set("If-Range", r.pin.validator())
	}
	r.requests.Add(1)
	// The transport itself, not an http.Client: that would follow redirects by rules of
	// its own.
	return r.transport.RoundTrip(req)
}

// newTransport makes connections that end with r. They speak HTTP/1.1 only: an answer is
// then held back by the kernel's buffers of its connection, and not in our memory.
func (r *Remote) newTransport(opts *Options) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	dial := opts.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	return &http.Transport{
		Proxy:                  proxy,
		TLSClientConfig:        distrusting(opts.TLS),
		Protocols:              &protocols,
		MaxResponseHeaderBytes: headerLimit,
		IdleConnTimeout:        time.Minute,
		TLSHandshakeTimeout:    stallTime,
		// The transport goes on connecting after a request was given up.
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			ctx, cancel := context.WithTimeoutCause(ctx, stallTime, errStalled)
			defer cancel()
			defer context.AfterFunc(r.ctx, cancel)()
			c, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &conn{Conn: c, stop: context.AfterFunc(r.ctx, func() { c.Close() })}, nil
		},
	}
}

// A conn is closed with the source that it is for.
type conn struct {
	net.Conn
	stop func() bool
}

func (c *conn) Close() error {
	c.stop()
	return c.Conn.Close()
}

// proxy is the proxy of the environment. One that is itself reached over TLS would be
// verified as if it were the server.
func proxy(req *http.Request) (*url.URL, error) {
	u, err := http.ProxyFromEnvironment(req)
	if u != nil && u.Scheme == "https" {
		return nil, fmt.Errorf("the proxy %s is to be reached over https, and only http and socks5 can be used", u.Redacted())
	}
	return u, err
}
