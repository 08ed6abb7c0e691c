package source

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
)

// kind is what a caller has to do about an error.
func kind(err error) string {
	var unavailable *UnavailableError
	var untrusted *UntrustedError
	switch {
	case err == nil:
		return "none"
	case errors.Is(err, ErrChanged):
		return "changed"
	case errors.As(err, &unavailable):
		return "unavailable"
	case errors.As(err, &untrusted):
		return "untrusted"
	}
	return "final"
}

// released is the file of the hostile servers.
var released = random(2 << 20)

// A part is the right answer to a request for a range, until somebody edits it.
type part struct {
	http.Header
	status             int
	first, last, total int64
	body               []byte
}

func partFor(r *http.Request) *part {
	p := &part{Header: http.Header{"Etag": {`"v1"`}}, status: 206, total: int64(len(released))}
	fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &p.first, &p.last)
	p.last = min(p.last, p.total-1)
	p.body = released[p.first : p.last+1]
	return p
}

// begin sends all but the body.
func (p *part) begin(w http.ResponseWriter) {
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", p.first, p.last, p.total))
	for name, values := range p.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(p.status)
}

// edited answers with parts that were edited.
func edited(edit func(p *part)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		p := partFor(r)
		edit(p)
		p.begin(w)
		w.Write(p.body)
	}
}

// ranged answers with another Content-Range, which is made of the first and last byte.
func ranged(format string) http.HandlerFunc {
	return edited(func(p *part) { p.Set("Content-Range", fmt.Sprintf(format, p.first, p.last)) })
}

// headed answers with parts of which one header is another one.
func headed(name string, values ...string) http.HandlerFunc {
	return edited(func(p *part) { p.Header[http.CanonicalHeaderKey(name)] = values })
}

// answer answers with a status and headers.
func answer(code int, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(code)
	}
}

// slow sends a part in pieces of size bytes, and waits before each.
func slow(size int, wait time.Duration) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		p := partFor(r)
		p.Set("Content-Length", strconv.Itoa(len(p.body)))
		p.begin(w)
		for ; len(p.body) > 0; p.body = p.body[min(size, len(p.body)):] {
			http.NewResponseController(w).Flush()
			select {
			case <-time.After(wait):
			case <-r.Context().Done():
				return
			}
			w.Write(p.body[:min(size, len(p.body))])
		}
	}
}

// cut sends the first n bytes of a part, and hangs up.
func cut(n int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		partFor(r).begin(w)
		(&short{w, n}).Write(partFor(r).body)
	}
}

// raw answers with what is no answer of net/http: text, and then more until nobody listens
// any more.
func raw(text, more string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer c.Close()
		p := partFor(r)
		text := strings.NewReplacer("{RANGE}", fmt.Sprintf("bytes %d-%d/%d", p.first, p.last, p.total), "{BODY}", string(p.body)).Replace(text)
		_, err = io.WriteString(c, text)
		for chunk := strings.Repeat(more, 1+4096/max(1, len(more))); more != "" && err == nil; {
			_, err = io.WriteString(c, chunk)
		}
	}
}

// Each row is a server that does wrong, from the first request on or from the fourth, and
// what comes of it then. A server is not tried where its wrong cannot be known as such.
func TestHostileServers(t *testing.T) {
	const notTried = ""
	year := strconv.Itoa(365 * 24 * 3600)
	other := random(len(released) + 1)
	rows := []struct {
		name   string
		server http.HandlerFunc
		first  string // kind of the error
		later  string
		says   string // of what comes later, or else first
	}{
		{"a part without Content-Range", headed("Content-Range"), "final", "final", "0 Content-Range headers"},
		{"a part with two of them", headed("Content-Range", "bytes 0-1/2", "bytes 0-1/2"), "final", "final", "2 Content-Range headers"},
		{"bytes that begin one later", edited(func(p *part) { p.first++; p.body = p.body[1:] }), "final", "final", "was asked for"},
		{"bytes that begin one earlier", edited(func(p *part) { p.first, p.last = p.first-1, p.last-1 }), "final", "final", "was asked for"},
		{"one byte less", edited(func(p *part) { p.last--; p.body = p.body[:len(p.body)-1] }), "final", "final", "was asked for"},
		{"one byte more", edited(func(p *part) { p.last++; p.body = append(p.body[:len(p.body):len(p.body)], 0) }), "final", "final", "was asked for"},
		{"other bytes of the file", edited(func(p *part) { p.first, p.last = p.first+4096, p.last+4096 }), "final", "final", "was asked for"},
		{"another total", edited(func(p *part) { p.total++ }), notTried, "changed", "2097153 bytes, not 2097152"},
		{"no total", ranged("bytes %d-%d/*"), "final", "final", "is none"},
		{"a negative range", ranged("bytes -%d-%d/2097152"), "final", "final", "is none"},
		{"a signed range", ranged("bytes +%d-+%d/+2097152"), "final", "final", "is none"},
		{"a range that ends before it begins", edited(func(p *part) { p.first, p.last = p.last, p.first }), "final", "final", "is none"},
		{"a range past the total", edited(func(p *part) { p.total = p.last }), "final", "final", "is none"},
		{"a total of more than 63 bits", ranged("bytes %d-%d/18446744073711648768"), "final", "final", "is none"},
		{"a range in another unit", ranged("lines %d-%d/2097152"), "final", "final", "is none"},
		{"a Content-Range of 8 KiB", ranged("bytes %d-%d/" + strings.Repeat("9", 8<<10)), "final", "final", "is none"},
		{"a part that is longer than its range", edited(func(p *part) {
			p.body = append(p.body[:len(p.body):len(p.body)], 0)
			p.Set("Content-Length", strconv.Itoa(len(p.body)))
		}), "final", "final", "is said to hold"},
		{"a part that is shorter than its range", edited(func(p *part) { p.body = p.body[1:]; p.Set("Content-Length", strconv.Itoa(len(p.body))) }), "final", "final", "is said to hold"},
		{"a part without length, longer than its range", edited(func(p *part) {
			p.body = append(p.body[:len(p.body):len(p.body)], 0)
			p.Set("Transfer-Encoding", "chunked")
		}), "final", "final", "more bytes than"},
		{"a part in chunks without end", raw("HTTP/1.1 206 OK\r\nETag: \"v1\"\r\nContent-Range: {RANGE}\r\nTransfer-Encoding: chunked\r\n\r\n", "1000\r\n"+strings.Repeat("x", 0x1000)+"\r\n"), "final", "final", "more bytes than"},
		{"HTTP/1.0, and bytes without end", raw("HTTP/1.0 206 OK\r\nETag: \"v1\"\r\nContent-Range: {RANGE}\r\n\r\n", "x"), "final", "final", "more bytes than"},
		{"a chunk of no known size", raw("HTTP/1.1 206 OK\r\nETag: \"v1\"\r\nContent-Range: {RANGE}\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", ""), "unavailable", "unavailable", "tried 8 times"},
		{"a chunk whose size does not end", raw("HTTP/1.1 206 OK\r\nETag: \"v1\"\r\nContent-Range: {RANGE}\r\nTransfer-Encoding: chunked\r\n\r\n", "0"), "unavailable", "unavailable", "tried 8 times"},
		{"several ranges at once", edited(func(p *part) {
			p.Set("Content-Type", "multipart/byteranges; boundary=x")
			p.Header["Content-Range"] = nil
		}), "final", "final", "0 Content-Range headers"},
		{"a part in gzip", headed("Content-Encoding", "gzip"), "final", "final", `coding "gzip"`},
		{"a transfer in gzip", raw("HTTP/1.1 206 OK\r\nETag: \"v1\"\r\nContent-Range: {RANGE}\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", ""), "unavailable", "unavailable", "tried 8 times"},

		{"another ETag", headed("ETag", `"v2"`), notTried, "changed", `"\"v2\""`},
		{"the same ETag, but weak", headed("ETag", `W/"v1"`), "final", "changed", `W/`},
		{"an ETag without quotes", headed("ETag", "v1"), "final", "changed", `"v1"`},
		{"an ETag that would turn the text around", headed("ETag", "\"\u202e\""), "final", "changed", `\u202e`},
		{"an ETag that would clear the screen", headed("ETag", "\"\x1b[2J\""), "unavailable", "unavailable", "malformed"},
		{"an ETag of 8 KiB", headed("ETag", `"`+strings.Repeat("v", 8<<10)+`"`), "final", "changed", "vvv"},
		{"no ETag", headed("ETag"), "final", "final", "left out the ETag"},
		{"no ETag, a Last-Modified, and no Date", edited(func(p *part) {
			p.Header["Etag"], p.Header["Date"] = nil, nil
			p.Set("Last-Modified", "Fri, 01 Jan 1999 00:00:00 GMT")
		}), "final", "final", "left out the ETag"},
		{"a file of another version", version1(`"v2"`, other), notTried, "changed", "v2"},
		{"a file of the same version, and longer", version1(`"v1"`, other), notTried, "changed", "2097153 bytes"},
		{"a file of the same version, and shorter", version1(`"v1"`, released[:64<<10]), notTried, "changed", "no byte"},

		{"the whole file", edited(func(p *part) { p.status, p.body = 200, released; p.Header["Content-Range"] = nil }), "final", "final", "the whole file"},
		{"a whole file without end", raw("HTTP/1.1 200 OK\r\nETag: \"v1\"\r\n\r\n", "x"), "final", "final", "the whole file"},
		{"the whole file, of another version", raw("HTTP/1.1 200 OK\r\nETag: \"v2\"\r\n\r\n", "x"), "final", "changed", "v2"},
		{"the whole file, of another size", raw("HTTP/1.1 200 OK\r\nETag: \"v1\"\r\nContent-Length: 5\r\n\r\n", "x"), "final", "changed", "5 bytes"},
		{"nothing, successfully", answer(204), "final", "final", "status 204"},
		{"not modified", answer(304), "final", "final", "status 304"},
		{"a choice", answer(300, "Location", "/other"), "final", "final", "status 300"},
		{"another protocol", raw("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "x"), "final", "final", "status 101"},
		{"a status that nobody knows", answer(799), "final", "final", "status 799"},
		{"not found", answer(404), "final", "final", "status 404, Not Found"},
		{"gone", answer(410), "final", "final", "status 410"},
		{"who are you", answer(401, "WWW-Authenticate", "Basic"), "final", "final", "status 401"},
		{"not you", answer(403), "final", "final", "status 403"},
		{"a precondition that nobody set", answer(412), "final", "final", "status 412"},
		{"no such range", answer(416), "final", "changed", "no byte"},
		{"no such range, of a text", answer(416, "Content-Range", "bytes */\u202e"), "final", "changed", `bytes */\u202e`},

		{"an error for ever", answer(500), "unavailable", "unavailable", "tried 8 times"},
		{"not now, for ever", answer(503), "unavailable", "unavailable", "status 503, Service Unavailable (tried 8 times)"},
		{"not now, for a second, for ever", answer(503, "Retry-After", "1"), "unavailable", "unavailable", "tried 8 times"},
		{"not now, for a year", answer(503, "Retry-After", year), "unavailable", "unavailable", "status 503"},
		{"too many, until some day", answer(429, "Retry-After", "Fri, 31 Dec 9999 23:59:59 GMT"), "unavailable", "unavailable", "status 429"},
		{"not now, until yesterday", answer(503, "Retry-After", "-86400"), "unavailable", "unavailable", "tried 8 times"},
		{"not now, until whenever", answer(503, "Retry-After", "\x1b[2J"), "unavailable", "unavailable", "tried 8 times"},

		{"a redirect to http", answer(302, "Location", "http://example.com/"), "final", "final", "another origin"},
		{"a redirect to another host", answer(302, "Location", "https://example.net/"), "final", "final", "another origin"},
		{"a redirect to another host of the same scheme", answer(307, "Location", "//example.net/"), "final", "final", "another origin"},
		{"a redirect to another port", answer(307, "Location", "https://example.com:8443/"), "final", "final", "another origin"},
		{"a redirect with a password", answer(308, "Location", "https://a:b@example.com/"), "final", "final", "another origin"},
		{"a redirect to a file on the device", answer(301, "Location", "file:///etc/passwd"), "final", "final", "another origin"},
		{"a redirect to nowhere", answer(302), "final", "final", "to no place"},
		{"a redirect to what is no address", answer(302, "Location", "https://["), "final", "final", "to no place"},
		{"a redirect in a circle", answer(302, "Location", "/release.raucb"), "final", "final", "after 3 others"},
		{"a redirect in a circle that grows", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path+"/x", http.StatusFound) }, "final", "final", "after 3 others"},
		{"a redirect to an address of 8 KiB", answer(302, "Location", "https://example.net/"+strings.Repeat("x", 8<<10)), "final", "final", "another origin"},

		{"a header of 64 KiB", headed("X", strings.Repeat("x", 64<<10)), "unavailable", "unavailable", "tried 8 times"},
		{"a header without end", raw("HTTP/1.1 206 OK\r\n", "X: x\r\n"), "unavailable", "unavailable", "tried 8 times"},
		{"a line of header without end", raw("HTTP/1.1 206 OK\r\nX: ", "x"), "unavailable", "unavailable", "tried 8 times"},
		{"early hints without end", raw("", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"), "unavailable", "unavailable", "tried 8 times"},
		{"what is not HTTP", raw("\x1b[2JSSH-2.0-\u202e\r\n\r\n", ""), "unavailable", "unavailable", "malformed HTTP"},
		{"nothing, and it hangs up", raw("", ""), "unavailable", "unavailable", "tried 8 times"},
		{"nothing", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "unavailable", "unavailable", "no progress within 30s"},
		{"a header, and nothing", slow(1, 1000*time.Hour), "unavailable", "unavailable", "no progress within 30s"},
		{"a byte every 20 seconds", slow(1, 20*time.Second), "unavailable", "unavailable", "no progress within 30s"},
		{"a header, and it hangs up", cut(0), "unavailable", "unavailable", "the connection was lost (tried 8 times)"},
		{"a byte, and it hangs up", cut(1), "unavailable", "unavailable", "the connection was lost (tried 8 times)"},
		{"a part in chunks that ends early", raw("HTTP/1.1 206 OK\r\nETag: \"v1\"\r\nContent-Range: {RANGE}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", ""), "unavailable", "unavailable", "262144 bytes early"},
	}
	for _, row := range rows {
		for _, from := range []int64{1, 4} {
			want, when := row.first, "from the first request on"
			if from > 1 {
				want, when = row.later, "from the fourth request on"
			}
			if want == notTried {
				continue
			}
			t.Run(row.name+", "+when, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { meet(t, row.server, from, want, row.says) })
			})
		}
	}
	if len(rows) < 30 {
		t.Errorf("got %d servers", len(rows))
	}
}

// meet reads the file of a server that is good until its request number from.
func meet(t *testing.T, bad http.HandlerFunc, from int64, want, says string) {
	good := file(released)
	var asked atomic.Int64
	_, opts := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) >= from {
			bad(w, r)
			return
		}
		good(w, r)
	})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	r, err := HTTP(t.Context(), address, opts)
	var n int64
	if err == nil {
		defer r.Close()
		var got bytes.Buffer
		got.Grow(len(released))
		n, err = io.CopyBuffer(struct{ io.Writer }{&got}, struct{ io.Reader }{io.NewSectionReader(r, 0, r.Size())}, make([]byte, 32<<10))
		if !bytes.Equal(got.Bytes(), released[:n]) {
			t.Errorf("the %d bytes that were read are not the file's", n)
		}
		if kind(err) == "none" || from == 1 && n > 0 {
			t.Fatalf("got %d bytes and error %v", n, err)
		}
		if k := kind(err); k == "final" || k == "changed" {
			before := asked.Load()
			if _, again := r.ReadAt(make([]byte, 1), r.Size()-1); kind(again) != k || asked.Load() != before {
				t.Errorf("asked again: got %v after %d requests, want the same error after none", again, asked.Load()-before)
			}
		}
	}
	runtime.ReadMemStats(&after)
	if kind(err) != want {
		t.Fatalf("got %q, want the kind %s", err, want)
	}
	if !strings.Contains(err.Error(), says) && from > 1 {
		t.Errorf("got %q, want %q in it", err, says)
	}
	if line := err.Error(); len(line) > 2*lineLimit || strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Errorf("got %q, want one short line", line)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v, which a reader would take for the end of the file", err)
	}
	var unavailable *UnavailableError
	if errors.As(err, &unavailable) && unavailable.RetryAfter > 24*time.Hour {
		t.Errorf("got %v to wait, want a day at the most", unavailable.RetryAfter)
	}
	// net/http itself asks again when a connection turns out to be dead.
	if most := from - 1 + max(triesMost+1, redirectLimit+1); asked.Load() > most {
		t.Errorf("got %d requests, want %d at the most", asked.Load(), most)
	}
	if took := time.Since(start); took > 15*time.Minute {
		t.Errorf("it took %v", took)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 24<<20 {
		t.Errorf("got %d KiB of memory allocated on both sides", used>>10)
	}
}

// Each row is what may be at the other end of a connection instead of the server.
func TestConnectionsThatLeadNowhere(t *testing.T) {
	each := func(serve func(net.Conn)) func(net.Listener) {
		return func(l net.Listener) {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					serve(c)
				}()
			}
		}
	}
	for _, tc := range []struct {
		name  string
		serve func(net.Listener)
		says  string
	}{
		{"nobody takes it", func(net.Listener) {}, "no progress within 30s"},
		{"it is taken, and nothing is said", each(func(c net.Conn) { io.Copy(io.Discard, c) }), "tried 8 times"},
		{"it ends at once", each(func(c net.Conn) {}), "tried 8 times"},
		{"it speaks plain HTTP", each(func(c net.Conn) {
			c.Read(make([]byte, 1))
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n\x1b[2J")
		}), "does not look like a TLS handshake"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, opts := connect(t, tc.serve)
				_, err := HTTP(t.Context(), "https://example.org/release.raucb", opts)
				if kind(err) != "unavailable" || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("got %v, want an UnavailableError with %q", err, tc.says)
				}
				if n := m.Dials(); n > triesMost {
					t.Errorf("got %d connections, want %d at the most", n, triesMost)
				}
			})
		})
	}
}
