package enroll

import (
	"bufio"
	"bytes"
	"net/http"
	"net/url"
	"testing"
	"unicode"
	"unicode/utf8"
)

// Whatever a server answers, it is certificates or a short error. Seeds are in
// testdata/fuzz.
func FuzzAnswer(f *testing.F) {
	f.Fuzz(func(t *testing.T, status int, mediaType string, body []byte) {
		a := &answer{status: status, header: http.Header{"Content-Type": {mediaType}}, body: body}
		certs, err := a.certificates()
		if (err == nil) != (len(certs) > 0) {
			t.Errorf("%d certificates and error %v", len(certs), err)
		}
		short(t, err)
		attrs, err := a.csrAttrs()
		if err != nil && attrs != nil || len(attrs) > len(body) {
			t.Errorf("%d bytes of CsrAttrs from %d, error %v", len(attrs), len(body), err)
		}
		short(t, err)
		c := &Client{conf: Config{Clock: synchronised(now)}}
		short(t, c.failed(a))
	})
}

// Whatever a server writes, down to the status line: its body is within its limit, its
// redirect within its origin, its wait within reason.
func FuzzResponse(f *testing.F) {
	origin := &url.URL{Scheme: "https", Host: "est.example:8443"}
	c := &Client{conf: Config{Clock: synchronised(now)}, origin: origin}
	f.Fuzz(func(t *testing.T, post bool, text []byte) {
		req := &http.Request{Method: http.MethodGet, URL: origin}
		if post {
			req.Method = http.MethodPost
		}
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(text)), req)
		if err != nil {
			short(t, c.unanswered(t.Context(), &peer{}, err))
			return
		}
		if isRedirect(resp.StatusCode) {
			next, err := c.follow(origin, resp)
			if err == nil && (next.Scheme != "https" || next.Hostname() != "est.example" || next.Port() != "8443" || next.User != nil) {
				t.Errorf("%q leads to %s", text, next)
			}
			short(t, err)
			return
		}
		a, err := read(resp)
		if err != nil {
			short(t, c.unanswered(t.Context(), &peer{}, err))
			return
		}
		if len(a.body) > answerLimit || a.status >= 400 && len(a.body) > reasonLimit {
			t.Errorf("%d bytes of status %d", len(a.body), a.status)
		}
		if wait := c.retryAfter(a.header); wait != 0 && (wait < waitLeast || wait > waitMost) {
			t.Errorf("%q: wait for %v", text, wait)
		}
		short(t, c.failed(a))
		_, err = a.certificates()
		short(t, err)
	})
}

func short(t *testing.T, err error) {
	if err == nil {
		return
	}
	text := err.Error()
	if utf8.RuneCountInString(text) > lineLimit+100 || !utf8.ValidString(text) {
		t.Errorf("an error of %d bytes: %q", len(text), text)
	}
	for _, r := range text {
		if !unicode.IsPrint(r) {
			t.Errorf("an error with %U in it: %q", r, text)
		}
	}
}

// Whatever a server writes into Retry-After, the wait is within reason.
func FuzzRetryAfter(f *testing.F) {
	c := &Client{conf: Config{Clock: synchronised(now)}}
	f.Fuzz(func(t *testing.T, value, date string) {
		got := c.retryAfter(http.Header{"Retry-After": {value}, "Date": {date}})
		if got != 0 && (got < waitLeast || got > waitMost) {
			t.Errorf("%q at %q: wait for %v", value, date, got)
		}
	})
}

// Whatever a CA issues, the name is as asked, or what was added is told.
func FuzzSubjectAltName(f *testing.F) {
	f.Fuzz(func(t *testing.T, asked, got []byte) {
		changes, err := altNameChanges(asked, got)
		if err != nil {
			short(t, err)
			return
		}
		want, _ := generalNames(asked)
		have, _ := generalNames(got)
		if len(changes) == 0 && len(have) > 0 && len(want) == 0 {
			t.Errorf("%d names were added and not told", len(have))
		}
	})
}
