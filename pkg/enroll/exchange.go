package enroll

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"birthmark/pkg/clock"
	"birthmark/pkg/cms"
)

const (
	answerLimit   = 2 * cms.SizeLimit // bytes of an answer: what cms reads, in base64, in lines
	reasonLimit   = 4 << 10           // bytes of an error's text
	redirectLimit = 3                 // in one operation
	lineLength    = 64                // of base64 that we send
)

// An answer is a response that was read to its end.
type answer struct {
	status int
	header http.Header
	body   []byte
	tls    *tls.ConnectionState
}

// get asks for what needs no request.
func (c *Client) get(ctx context.Context, p *peer, op string) (*answer, error) {
	a, err := c.exchange(ctx, p, op, nil)
	if err != nil {
		return nil, err
	}
	if a.status == http.StatusOK || op == opCSRAttrs && (a.status == http.StatusNoContent || a.status == http.StatusNotFound) {
		return a, nil
	}
	return nil, c.failed(a)
}

// post sends a certificate request.
func (c *Client) post(ctx context.Context, p *peer, op string, w *wish) (*answer, error) {
	a, err := c.exchange(ctx, p, op, w)
	if err != nil {
		return nil, err
	}
	switch a.status {
	case http.StatusOK:
		return a, nil
	case http.StatusAccepted:
		return nil, &PendingError{RetryAfter: cmp.Or(c.retryAfter(a.header), waitDefault)}
	}
	err = c.failed(a)
	if refused, ok := err.(*RefusedError); ok && w.Bind != nil {
		err = unbound(a, refused)
	}
	return nil, err
}

// exchange sends w, or asks for what needs no request, and reads the whole answer,
// after redirects within the server's origin.
func (c *Client) exchange(ctx context.Context, p *peer, op string, w *wish) (*answer, error) {
	u, err := c.origin.Parse(c.path + op)
	if err != nil {
		return nil, err
	}
	for hops := 0; ; hops++ {
		resp, err := c.send(ctx, p, u, w)
		if err != nil {
			return nil, c.unanswered(ctx, p, err)
		}
		if isRedirect(resp.StatusCode) {
			resp.Body.Close()
			if p.anchors == nil || hops == redirectLimit {
				return nil, answerErrorf("redirect to %q after %d others", said(resp.Header.Get("Location")), hops)
			}
			if u, err = c.follow(u, resp); err != nil {
				return nil, err
			}
			continue
		}
		a, err := read(resp)
		if err != nil {
			return nil, c.unanswered(ctx, p, err)
		}
		return a, nil
	}
}

func (c *Client) send(ctx context.Context, p *peer, u *url.URL, w *wish) (*http.Response, error) {
	// The transport itself, not an http.Client: that would follow redirects by rules
	// of its own, and take Authorization along to other ports.
	var over http.RoundTripper = p.transport
	method, body := http.MethodGet, []byte(nil)
	if w != nil {
		method, body = http.MethodPost, lines(w.CSR)
		if w.Bind != nil {
			conn, csr, err := c.bound(ctx, p, w)
			if err != nil {
				return nil, p.explain(err)
			}
			over, body = conn, lines(csr)
		}
	}
	// With a bytes.Reader net/http knows the length and says it. It would send
	// anything else in chunks, which libest refuses.
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if w != nil {
		req.Header.Set("Content-Type", "application/pkcs10")
	}
	if p.anchors != nil && c.conf.Password != "" {
		req.SetBasicAuth(c.conf.Username, c.conf.Password)
	}
	resp, err := over.RoundTrip(req)
	return resp, p.explain(err)
}

// explain adds to an error what it may come from: some servers just hang up on a
// certificate that they do not like.
func (p *peer) explain(err error) error {
	if p.wantsCertificate.Load() && (errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF)) {
		return fmt.Errorf("%w (it had asked for a certificate, and may not accept ours)", err)
	}
	return err
}

// lines is base64 in lines, since servers on OpenSSL refuse it otherwise (RFC 8951,
// 3.1, lets it be either way).
func lines(der []byte) []byte {
	text := base64.StdEncoding.EncodeToString(der)
	var b bytes.Buffer
	for len(text) > 0 {
		n := min(lineLength, len(text))
		b.WriteString(text[:n] + "\n")
		text = text[n:]
	}
	return b.Bytes()
}

// read reads an answer: all of one that may be used, the beginning of an error.
func read(resp *http.Response) (*answer, error) {
	defer resp.Body.Close()
	a := &answer{status: resp.StatusCode, header: resp.Header, tls: resp.TLS}
	var err error
	switch {
	case a.status == http.StatusOK:
		a.body, err = io.ReadAll(io.LimitReader(resp.Body, answerLimit+1))
		// Giving up sends close_notify first, and a server that ends its answer because
		// of that may still be heard: the answer looks whole and is not.
		if err = cmp.Or(err, context.Cause(resp.Request.Context())); err != nil {
			return nil, err
		}
		if len(a.body) > answerLimit {
			return nil, answerErrorf("more than %d KiB", answerLimit>>10)
		}
	case a.status >= 400:
		// The status is the message; its text may be cut off.
		a.body, _ = io.ReadAll(io.LimitReader(resp.Body, reasonLimit))
	}
	return a, nil
}

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// follow is where a redirect from u leads. It must stay within the origin
// (RFC 7030, 3.2.1, wants a person to agree to anything else) and must not make a
// GET of a POST, as 301 to 303 do.
func (c *Client) follow(u *url.URL, resp *http.Response) (*url.URL, error) {
	location := resp.Header.Get("Location")
	next, err := u.Parse(location)
	switch {
	case location == "" || err != nil:
		return nil, answerErrorf("status %d without a place to go to: %q", resp.StatusCode, said(location))
	case next.User != nil || next.Scheme != u.Scheme || !strings.EqualFold(next.Hostname(), u.Hostname()) || portOf(next) != portOf(u):
		return nil, answerErrorf("redirect to another origin, %q", said(location))
	case resp.Request.Method != http.MethodGet && resp.StatusCode < http.StatusTemporaryRedirect:
		return nil, answerErrorf("status %d redirects a request to %q without its body", resp.StatusCode, said(location))
	}
	return next, nil
}

func portOf(u *url.URL) string { return cmp.Or(u.Port(), "443") }

// failed is what a status means that brings nothing to use.
func (c *Client) failed(a *answer) error {
	reason := cmp.Or(said(string(a.body)), http.StatusText(a.status), "no reason given")
	switch s := a.status; {
	case s == http.StatusUnauthorized:
		// A server that wants Digest gets the same Basic for ever: say so.
		if schemes := schemes(a.header); schemes != "" && !strings.Contains(strings.ToLower(schemes), "basic") {
			reason += " (it wants " + said(schemes) + " authentication, which is not spoken here)"
		}
		return &RefusedError{Status: s, Reason: reason}
	case s == http.StatusRequestTimeout, s == http.StatusTooEarly, s == http.StatusTooManyRequests, s >= 500 && s <= 599:
		return &UnavailableError{RetryAfter: c.retryAfter(a.header), Err: fmt.Errorf("status %d: %s", s, reason)}
	case s >= 400 && s <= 499:
		return &RefusedError{Status: s, Reason: reason}
	}
	return answerErrorf("status %d, which EST does not have here", a.status)
}

// schemes are the names of the authentication schemes that a server asks for.
func schemes(h http.Header) string {
	var names []string
	for _, challenge := range h.Values("WWW-Authenticate") {
		name, _, _ := strings.Cut(strings.TrimSpace(challenge), " ")
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

// unanswered is what it means that an exchange ended with err and no answer.
func (c *Client) unanswered(ctx context.Context, p *peer, err error) error {
	var untrusted *clock.VerifyError
	var answer *AnswerError
	var caller *callerError
	switch {
	case errors.As(err, &answer):
		return answer
	case errors.As(err, &caller):
		return caller.error
	case errors.As(err, &untrusted):
		return &UntrustedError{Err: untrusted}
	case ctx.Err() != nil:
		return &UnavailableError{Err: context.Cause(ctx)}
	}
	if alert := p.certificateAlert(err); alert != "" {
		if c.shows(p) == nil {
			return &RefusedError{Reason: "the server wants a certificate, and there is none to show: " + alert}
		}
		return &RefusedError{Reason: "the server does not accept our certificate: " + alert}
	}
	return &UnavailableError{Err: err}
}

// certificateAlert is the TLS alert in err by which a server refuses a client's
// certificate, or misses one. In TLS 1.3 the handshake is over for us by then, so
// it comes with the first read (RFC 8446, 4.4.2.4 and 6.2).
func (p *peer) certificateAlert(err error) string {
	var remote *net.OpError
	if !p.wantsCertificate.Load() || !errors.As(err, &remote) || remote.Op != "remote error" {
		return ""
	}
	for _, alert := range []tls.AlertError{
		40,  // handshake_failure: in TLS 1.2, no certificate
		42,  // bad_certificate
		43,  // unsupported_certificate
		44,  // certificate_revoked
		45,  // certificate_expired
		46,  // certificate_unknown
		48,  // unknown_ca
		49,  // access_denied
		116, // certificate_required
	} {
		// crypto/tls does not export the type of an alert, only its text.
		if remote.Err.Error() == alert.Error() {
			return alert.Error()
		}
	}
	return ""
}

const (
	waitLeast   = 5 * time.Second
	waitMost    = 24 * time.Hour
	waitDefault = time.Minute // of a 202 that does not say how long
)

// retryAfter is how long an answer asks to wait (RFC 9110, 10.2.3), within reason;
// 0 if it does not say, or not so that it can be read.
func (c *Client) retryAfter(h http.Header) time.Duration {
	text := strings.TrimSpace(h.Get("Retry-After"))
	// Out of range, ParseInt returns the end of the range.
	if n, err := strconv.ParseInt(text, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(min(max(n, int64(waitLeast/time.Second)), int64(waitMost/time.Second))) * time.Second
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	// Our clock may say anything: a date is counted from the server's own.
	now, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		now = c.conf.Clock.Now()
	}
	return min(max(at.Sub(now), waitLeast), waitMost)
}
