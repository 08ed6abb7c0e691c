package firmware

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"birthmark/internal/agent/update"
	"birthmark/internal/wire"
	"birthmark/pkg/fota"
)

const address = "https://example.com/release.raucb" // a name in the certificate of httptest

// A server has a bundle. It may become another one while it is asked.
type server struct {
	mu       sync.Mutex
	answer   answer
	requests int
}

// An answer answers the nth request.
type answer func(n int, w http.ResponseWriter, r *http.Request)

// good answers as it should be.
func good(etag string, b []byte) answer {
	return func(_ int, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", etag)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}
}

// from answers the first requests well, and those from the nth on in another way.
func from(n int, well, ill answer) answer {
	return func(i int, w http.ResponseWriter, r *http.Request) {
		if i < n {
			well(i, w, r)
			return
		}
		ill(i, w, r)
	}
}

// serves starts a server that the agent reaches, and nobody else.
func (a *agent) serves(first answer) *server {
	a.Helper()
	s := &server{answer: first}
	shown := httptest.NewUnstartedServer(nil)
	shown.StartTLS()
	conf := shown.TLS.Clone()
	conf.NextProtos = nil
	a.tls = shown.Client().Transport.(*http.Transport).TLSClientConfig
	shown.Close()
	network := wire.Listen()
	a.dial = network.Dial
	h := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests++
		n, answer := s.requests, s.answer
		s.mu.Unlock()
		answer(n, w, r)
	})}
	go h.Serve(tls.NewListener(network, conf))
	a.Cleanup(func() { h.Close(); synctest.Wait() })
	return s
}

// becomes another server, and tells how many requests came before.
func (s *server) becomes(next answer) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.requests
	s.answer, s.requests = next, 0
	return n
}

// hangUp ends the connection of an answer in the middle of it.
func hangUp(w http.ResponseWriter) {
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// short lets n bytes of an answer pass, and hangs up.
type short struct {
	http.ResponseWriter
	n int
}

func (s *short) Write(p []byte) (int, error) {
	if len(p) > s.n {
		_, _ = s.ResponseWriter.Write(p[:s.n])
		hangUp(s.ResponseWriter)
	}
	s.n -= len(p)
	return s.ResponseWriter.Write(p)
}

// still is an answer that does not get on until the client has gone.
func still(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

// status answers with a number, and a Retry-After if there is one.
func status(code int, after string) answer {
	return func(_ int, w http.ResponseWriter, _ *http.Request) {
		if after != "" {
			w.Header().Set("Retry-After", after)
		}
		w.WriteHeader(code)
	}
}

func redirect(to func(n int) string) answer {
	return func(n int, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", to(n))
		w.WriteHeader(http.StatusFound)
	}
}

// How many requests a fault may cost, and how long it may take. An order waits for a
// server a few minutes, an update that was begun a day.
const (
	requestsOnce = 16 // where asking again is of no use
	requestsFew  = 40 // of an order, where it may be
	requestsDay  = 2500
)

// TestServers: whatever a server does, from the first request on or while the release is
// being written, the device asks a bounded number of times, says what was wrong, and is
// what it was. When the server is well, so is the device.
func TestServers(t *testing.T) {
	m, err := theMaker()
	if err != nil {
		t.Fatal(err)
	}
	b := m.bundles[next]
	well := good(`"v1"`, b)
	for _, c := range []struct {
		name string
		ill  answer
		says string
		// passes: it may, so the device waits for it
		passes bool
		// late: it is none at the first request; once: at that only, since later it would be
		// one of the others
		late, once bool
		most       int // requests; 0: as many as most faults
	}{
		{name: "no ranges", says: "sends the whole file", ill: func(_ int, w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			well(0, w, r)
		}},
		{name: "another range", says: "and was asked for", ill: func(_ int, w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Range", "bytes=100-199")
			r.Header.Del("If-Range")
			well(0, w, r)
		}},
		{name: "no ETag", says: "ETag", ill: func(_ int, w http.ResponseWriter, r *http.Request) {
			r.Header.Del("If-Range")
			good("", b)(0, w, r)
		}},
		{name: "a weak ETag", says: "ETag", ill: good(`W/"v1"`, b)},
		{name: "a coding", says: "in the coding", ill: func(_ int, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			well(0, w, r)
		}},
		{name: "another file, by its ETag", late: true, says: "not the one that was opened", ill: good(`"v2"`, m.bundles[later])},
		{name: "another file of another length, with the same ETag", late: true, says: "not the one that was opened", ill: good(`"v1"`, b[:len(b)-1])},
		{name: "416, at the beginning", once: true, says: "the file is empty", ill: status(http.StatusRequestedRangeNotSatisfiable, "")},
		{name: "416", late: true, says: "not the one that was opened", ill: status(http.StatusRequestedRangeNotSatisfiable, "")},
		{name: "404", says: "404", ill: status(http.StatusNotFound, "")},
		{name: "403", says: "403", ill: status(http.StatusForbidden, "")},
		{name: "a redirect to another origin", says: "another origin", ill: redirect(func(int) string { return "https://example.org/release.raucb" })},
		{name: "a redirect out of TLS", says: "another origin", ill: redirect(func(int) string { return "http://example.com/release.raucb" })},
		{name: "a redirect for ever", says: "after 3 others", ill: redirect(func(n int) string { return fmt.Sprintf("/%d", n) })},
		{name: "a redirect to nowhere", says: "no place", ill: redirect(func(int) string { return "" })},
		{name: "a header without end", once: true, says: "exceeded 16384 bytes", passes: true, ill: func(_ int, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 1<<20))
			well(0, w, r)
		}},
		{name: "no answer", says: "no progress within 30s", passes: true, ill: func(_ int, _ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
		{name: "an answer that stalls", says: "no progress within 30s", passes: true, ill: func(_ int, w http.ResponseWriter, r *http.Request) {
			well(0, &short{ResponseWriter: stalling{w, r}, n: 1000}, r)
		}},
		{name: "an answer that ends early", says: "the connection was lost", passes: true, ill: func(_ int, w http.ResponseWriter, r *http.Request) {
			well(0, &short{w, 1000}, r)
		}},
		{name: "no server behind the connection", once: true, says: "the connection was lost", passes: true, ill: func(_ int, w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) }},
		{name: "503", once: true, says: "503", passes: true, ill: status(http.StatusServiceUnavailable, "")},
		{name: "503, for an hour each time", says: "503", passes: true, most: 30, ill: status(http.StatusServiceUnavailable, "3600")},
		{name: "503, for a thousand years", says: "503", passes: true, most: 10, ill: status(http.StatusServiceUnavailable, "31536000000")},
		{name: "429, now and now again", once: true, says: "429", passes: true, ill: status(http.StatusTooManyRequests, "0")},
	} {
		for first, when := range map[int]string{1: "at once", 5: "while it is written"} {
			if first == 1 && c.late || first != 1 && c.once {
				continue
			}
			t.Run(c.name+", "+when, func(t *testing.T) {
				d := newDevice(t).serve()
				d.inBubble(func(a *agent) {
					s := a.serves(from(first, well, c.ill))
					a.wantFailed(a.update(address), reason{says: c.says})
					most, longest := requestsOnce, time.Minute
					switch {
					case c.passes && first == 1:
						most, longest = requestsFew, 20*time.Minute
					case c.passes:
						most, longest = requestsDay, 26*time.Hour
					}
					if c.most > 0 {
						most = c.most
					}
					took := time.Since(a.began)
					n := s.becomes(well)
					t.Logf("%d requests in %v: %s", n, took.Round(time.Second), a.why())
					if n > most || took > longest {
						t.Errorf("%d requests in %v, want %d in %v at most", n, took, most, longest)
					}
					a.wantTaken(address)
				})
			})
		}
	}
}

// stalling waits for the client to go where another one would hang up.
type stalling struct {
	http.ResponseWriter
	r *http.Request
}

func (s stalling) FlushError() error {
	still(s.ResponseWriter, s.r)
	return nil
}

func (a *agent) why() string {
	if s := a.load(); s.Why != nil {
		return s.Why.Reason
	}
	return ""
}

// TestAServerThatComesBack: an update that was begun waits for its server, and goes on
// where it was.
func TestAServerThatComesBack(t *testing.T) {
	d := newDevice(t).serve()
	d.inBubble(func(a *agent) {
		well := good(`"v1"`, d.bundles[next])
		back := time.Now().Add(5 * time.Hour)
		s := a.serves(from(5, well, func(n int, w http.ResponseWriter, r *http.Request) {
			if time.Now().Before(back) {
				panic(http.ErrAbortHandler)
			}
			well(n, w, r)
		}))
		if err := a.update(address); err != nil {
			t.Fatal(err)
		}
		d.wantArmed(next)
		if took := time.Since(a.began); took < 5*time.Hour || took > 6*time.Hour {
			t.Errorf("armed after %v, want soon after 5 hours", took)
		}
		if n := s.becomes(well); n > requestsDay/2 {
			t.Errorf("%d requests in five hours", n)
		}
	})
}

// TestEveryPartOfABundle flips a bit in each part, as the server sends it from the first
// request on, or once the agent believes the signature. What is not asked for again was
// in memory, and is right.
func TestEveryPartOfABundle(t *testing.T) {
	m, err := theMaker()
	if err != nil {
		t.Fatal(err)
	}
	b := m.bundles[next]
	issuing, err := os.ReadFile(m.SigningCAs)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(issuing)
	unneeded := bytes.Index(b, block.Bytes) // the CA is pinned, so nobody looks at the one that comes along
	size := regexp.MustCompile(`verity-size=([0-9]+)`).FindSubmatch(b)
	if unneeded < 0 || size == nil {
		t.Fatal("the bundle has no certificate of its issuer, or no hash tree")
	}
	tree, err := strconv.Atoi(string(size[1]))
	if err != nil {
		t.Fatal(err)
	}
	end := len(b) - 8
	cms := end - int(binary.BigEndian.Uint64(b[end:]))
	const kept = 64 << 10 // bytes at both ends that the source has in memory then
	for _, p := range []struct {
		part          string
		first, last   int
		stages, codes string // that may refuse it
	}{
		{"the superblock", 0, 95, "payload", "block"},
		{"the images", 96, cms - tree - blockSize, "payload", "block"},
		{"the hash tree", cms - tree, cms - 1, "payload", "tree padding block"},
		{"the signature", cms, end - 1, "cms chain", ""},
		{"the length", end, len(b) - 1, "container cms", ""},
	} {
		for _, at := range []int{p.first, p.first + (p.last-p.first)/3, p.first + (p.last-p.first)*2/3, p.last} {
			bent := bytes.Clone(b)
			bent[at] ^= 0x10
			for first, when := range map[int]string{1: "from the beginning on", 5: "once it was believed"} {
				if first > 1 && (at < kept || at >= len(b)-kept) {
					continue
				}
				t.Run(fmt.Sprintf("%s, byte %d, %s", p.part, at, when), func(t *testing.T) {
					d := newDevice(t).serve()
					d.inBubble(func(a *agent) {
						s := a.serves(from(first, good(`"v1"`, b), good(`"v1"`, bent)))
						err := a.update(address)
						if unneeded <= at && at < unneeded+len(block.Bytes) && a.load().Phase == update.Armed {
							d.wantArmed(next)
							return
						}
						a.wantRefused(err, p.stages, p.codes)
						if n := s.becomes(good(`"v1"`, b)); n > requestsOnce {
							t.Errorf("%d requests, want %d at most", n, requestsOnce)
						}
						a.wantTaken(address)
					})
				})
			}
		}
	}
}

// wantRefused is wantFailed, of a refusal at one of some stages, with one of some codes.
func (a *agent) wantRefused(err error, stages, codes string) {
	a.Helper()
	var no *fota.Refusal
	if w := a.load().Why; err == nil && w != nil {
		no = &fota.Refusal{Stage: w.Stage, Code: w.Code}
	} else if !asRefusal(err, &no) {
		a.Errorf("got %v, want a refusal", err)
		return
	}
	if !strings.Contains(stages, string(no.Stage)) || no.Stage == "" || codes != "" && !strings.Contains(codes, no.Code) {
		a.Errorf("refused at %s, %s; want it at one of %s, %s", no.Stage, no.Code, stages, codes)
	}
	a.wantFailed(err, reason{stage: no.Stage, code: no.Code})
}
