package enroll

import (
	"net/http"
	"testing"
	"unicode"
	"unicode/utf8"
)

// Whatever a server answers, it is certificates or a short error.
func FuzzAnswer(f *testing.F) {
	good := certsOnly(raw(forOurKey, issuing)...)
	for _, seed := range []struct{ mediaType, body string }{
		{rightType, base64Of(good)},
		{rightType + `; smime-type="certs-only"`, wrapped(base64Of(good), "\r\n") + "\x00"},
		{rightType + "; x", "-----BEGIN PKCS7-----\n" + wrapped(base64Of(good), "\n") + "-----END PKCS7-----\n"},
		{rightType, "MIAGCSqGSIb3DQEHAqCAMIACAQEx"},
		{"application/csrattrs", "MAsGCSqGSIb3DQEJBw=="},
		{"application/csrattrs", "MAA="},
		{"text/html", "<h1>no</h1>"},
		{"", ""},
	} {
		f.Add(200, seed.mediaType, []byte(seed.body))
	}
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
	for _, seed := range []string{"", "0", "-1", "120", "99999999999999999999", "Fri, 31 Dec 1999 23:59:59 GMT", "soon"} {
		f.Add(seed, "Fri, 31 Dec 1999 23:59:58 GMT")
		f.Add(seed, "")
	}
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
	f.Add([]byte(nil), []byte{0x30, 0x03, 0x82, 0x01, 'a'})
	f.Add([]byte{0x30, 0x03, 0x82, 0x01, 'a'}, []byte{0x30, 0x06, 0x82, 0x01, 'a', 0x82, 0x01, 'b'})
	f.Add(altNames(server.Extensions), altNames(server.Extensions))
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
