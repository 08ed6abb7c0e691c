package source

import (
	"crypto/sha256"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Each row is a server, or a way to one, that is not perfect and can be used.
func TestServersThatWillDo(t *testing.T) {
	good := file(released)
	every := func(n int64, otherwise http.HandlerFunc) http.HandlerFunc {
		var asked atomic.Int64
		return func(w http.ResponseWriter, r *http.Request) {
			if asked.Add(1)%n == 0 {
				good(w, r)
				return
			}
			otherwise(w, r)
		}
	}
	for _, tc := range []struct {
		name   string
		server http.HandlerFunc
	}{
		{"it sends parts in chunks", edited(func(p *part) { p.Set("Transfer-Encoding", "chunked") })},
		{"it speaks HTTP/1.0, and says no length", raw("HTTP/1.0 206 Fine\r\nETag: \"v1\"\r\nContent-Range: {RANGE}\r\n\r\n{BODY}", "")},
		{"it writes BYTES", ranged("BYTES %d-%d/2097152")},
		{"it says identity", headed("Content-Encoding", "identity")},
		{"it has a Last-Modified only", modified(time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), released)},
		{"its ETag is weak, and its Last-Modified is old", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `W/"v1"`)
			modified(time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), released)(w, r)
		}},
		{"it redirects within its origin", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/moved" {
				http.Redirect(w, r, "https://EXAMPLE.com:443/moved", http.StatusFound)
				return
			}
			good(w, r)
		}},
		{"it is not available every other time", every(2, answer(503))},
		{"it asks to wait for 50 seconds every other time", every(2, answer(429, "Retry-After", "50"))},
		{"it answers every eighth time", every(8, answer(500))},
		{"it hangs up every other time", every(2, cut(1000))},
		{"it stops every other time", every(2, slow(1000, time.Hour))},
		{"it hangs up after 64 KiB, always", cut(64 << 10)},
		{"it hangs up after 10,000 bytes, always", cut(10_000)},
		{"it sends 16 KiB every 29 seconds", slow(16<<10, 29*time.Second)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, opts := serve(t, tc.server)
				r := mustOpen(t, opts)
				got, err := sum(r, 32<<10)
				if want := sha256.Sum256(released); err != nil || got != want {
					t.Fatalf("got %x and error %v, want %x", got, err, want)
				}
				if c := r.Counters(); c.Fetched > int64(len(released))*105/100 {
					t.Errorf("got %d bytes fetched, want %d", c.Fetched, len(released))
				}
			})
		})
	}
}

// With a key in a TPM, every connection costs a signature.
func TestAnswersThatBringNothingCostNoConnection(t *testing.T) {
	good := file(released)
	var asked atomic.Int64
	for _, tc := range []struct {
		name   string
		server http.HandlerFunc
	}{
		{"a redirect", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/moved" {
				http.Redirect(w, r, "/moved", http.StatusFound)
				return
			}
			good(w, r)
		}},
		{"an error with a text", func(w http.ResponseWriter, r *http.Request) {
			if asked.Add(1)%2 == 0 {
				http.Error(w, strings.Repeat("Have a nice day. ", 100), http.StatusServiceUnavailable)
				return
			}
			good(w, r)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, opts := serve(t, tc.server)
				if _, err := sum(mustOpen(t, opts), 4096); err != nil {
					t.Fatal(err)
				}
				if n := m.Dials(); n != 1 {
					t.Errorf("got %d connections, want 1", n)
				}
			})
		})
	}
}
