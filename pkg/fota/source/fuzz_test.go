package source

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// What is taken for a range is one, and is written as it is read.
func FuzzContentRange(f *testing.F) {
	for _, seed := range []string{
		"bytes 0-65535/2097152", "Bytes 0-0/1", "bytes */2097152", "bytes 0-1/*", "bytes -1-2/3", "bytes +1-2/3", "bytes 2-1/3", "bytes 0-3/3",
		"bytes 0-9223372036854775806/9223372036854775807", "bytes 0-1/9223372036854775808", "bytes  0-1/2", "bytes 0-1/2 ", "bytes=0-1/2", "bytes 0-1-2/3", "",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, ok := parseContentRange(text)
		if !ok {
			return
		}
		if c.first < 0 || c.first > c.last || c.last >= c.total || c.len() <= 0 {
			t.Errorf("%q was taken for %v", text, c)
		}
		if again, ok := parseContentRange(c.String()); !ok || again != c {
			t.Errorf("%q was read as %v, and then as %v", text, c, again)
		}
		if len(text) == len(c.String()) && !strings.EqualFold(text, c.String()) {
			t.Errorf("%q was taken for %v", text, c)
		}
	})
}

// Whatever a server asks for, it is a time that makes sense.
func FuzzRetryAfter(f *testing.F) {
	for _, seed := range []string{"0", "120", "-1", "99999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 01 Jan 0001 00:00:00 GMT", "soon"} {
		f.Add(seed, "Wed, 25 Nov 2026 09:00:00 GMT")
	}
	f.Fuzz(func(t *testing.T, text, date string) {
		if d := retryAfter(http.Header{"Retry-After": {text}, "Date": {date}}); d < 0 || d > 24*time.Hour {
			t.Errorf("got %v for %q at %q", d, text, date)
		}
	})
}
