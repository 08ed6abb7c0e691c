package source

import (
	"bytes"
	"crypto/sha256"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func TestAFileReadThroughIsTheServersInFewRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := random(16 << 20)
		m, opts := serve(t, file(data))
		r := mustOpen(t, opts)
		got, err := sum(r, 4096)
		if want := sha256.Sum256(data); err != nil || got != want {
			t.Fatalf("got %x and error %v, want %x", got, err, want)
		}
		c := r.Counters()
		if c.Fetched != int64(len(data)) || c.Retries != 0 {
			t.Errorf("got %+v, want %d bytes and no retries", c, len(data))
		}
		if c.Requests > 12 {
			t.Errorf("got %d requests, want 12 at the most: one answer should bring the rest", c.Requests)
		}
		if n := m.Dials(); n != 1 {
			t.Errorf("got %d connections, want 1", n)
		}
	})
}

// The server ends every answer after 3 MiB.
func TestLossesAreMadeGoodWhereTheyHappened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := random(64 << 20)
		good := file(data)
		_, opts := serve(t, func(w http.ResponseWriter, r *http.Request) { good(&short{w, 3 << 20}, r) })
		r := mustOpen(t, opts)
		got, err := sum(r, 128<<10)
		if want := sha256.Sum256(data); err != nil || got != want {
			t.Fatalf("got %x and error %v, want %x", got, err, want)
		}
		c := r.Counters()
		if limit := int64(len(data)) * 105 / 100; c.Fetched > limit {
			t.Errorf("got %d bytes fetched, want %d at the most", c.Fetched, limit)
		}
		if c.Retries < 15 || c.Requests > 64 {
			t.Errorf("got %+v, want a retry for every loss and one request per MiB at the most", c)
		}
	})
}

// As a bundle is read: trailer, signature, tree, then blocks rising with a look at
// the tree for every 512 KiB of them.
func TestABundleIsReadInOneRequestPerMiB(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const blocks, tree, sig = 64 << 20, 532480, 3208
		data := random(blocks + tree + sig + 8)
		_, opts := serve(t, file(data))
		r := mustOpen(t, opts)
		read := func(off, n int64) {
			t.Helper()
			p := make([]byte, n)
			if k, err := r.ReadAt(p, off); err != nil || int64(k) != n || !bytes.Equal(p, data[off:off+n]) {
				t.Fatalf("got %d bytes and error %v at %d, want the file's %d", k, err, off, n)
			}
		}
		read(r.Size()-8, 8)
		read(r.Size()-8-sig, sig)
		if c := r.Counters(); c.Fetched > 2*spanFirst || c.Requests != 2 {
			t.Errorf("got %+v, want 2 requests and %d bytes at the most up to the signature", c, 2*spanFirst)
		}
		read(0, 96)
		read(blocks-20_000, 20_000)
		read(blocks, 8192)
		const step = 128 << 10
		for off := int64(0); off < blocks; off += step {
			if off%(512<<10) == 0 {
				read(blocks+8192+off/128, 4096)
			}
			read(max(0, off-4096), step) // what was unpacked ends within a block
		}
		c := r.Counters()
		if limit := r.Size() * 105 / 100; c.Fetched > limit {
			t.Errorf("got %d bytes fetched, want %d at the most", c.Fetched, limit)
		}
		if c.Requests > 64 {
			t.Errorf("got %d requests, want 64 at the most", c.Requests)
		}
	})
}

func TestEveryRequestAsksForTheSameVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good := file(released)
		var asked int
		_, opts := serve(t, func(w http.ResponseWriter, r *http.Request) {
			asked++
			want := `"v1"`
			if asked == 1 {
				want = ""
			}
			for name, want := range map[string]string{"If-Range": want, "Accept-Encoding": "identity", "Authorization": "", "Cookie": ""} {
				if got := r.Header.Get(name); got != want {
					t.Errorf("request %d: got %s %q, want %q", asked, name, got, want)
				}
			}
			w.Header().Set("Set-Cookie", "a=b")
			good(w, r)
		})
		if _, err := sum(mustOpen(t, opts), 4096); err != nil || asked < 4 {
			t.Errorf("got error %v after %d requests", err, asked)
		}
	})
}

// The long answer is kept during a look elsewhere, and given up for another long one.
func TestAnAnswerIsHungUpOnWhenTheReaderIsElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := random(64 << 20)
		good := file(data)
		var open atomic.Int64
		_, opts := serve(t, func(w http.ResponseWriter, r *http.Request) {
			open.Add(1)
			defer open.Add(-1)
			good(w, r)
		})
		r := mustOpen(t, opts)
		read := func(off, n int64) {
			t.Helper()
			p := make([]byte, n)
			if _, err := r.ReadAt(p, off); err != nil || !bytes.Equal(p, data[off:off+n]) {
				t.Fatalf("got error %v or other bytes at %d", err, off)
			}
			synctest.Wait()
		}
		for _, step := range []struct {
			what   string
			off, n int64
			open   int64 // answers that the server is still sending then
		}{
			{"8 MiB in a row", 0, 8 << 20, 1},
			{"a look elsewhere", 40 << 20, 4096, 1},
			{"on in the row", 8 << 20, 1 << 20, 1},
			{"8 MiB in another row", 32 << 20, 8 << 20, 1},
			{"a look at a second place", 10 << 20, 4096, 1},
			{"and at a third", 12 << 20, 4096, 1},
			{"and at a fourth", 14 << 20, 4096, 1},
			{"and at a fifth", 16 << 20, 4096, 0},
		} {
			read(step.off, step.n)
			if n := open.Load(); n != step.open {
				t.Errorf("after %s: got %d answers under way, want %d", step.what, n, step.open)
			}
		}
		if limit := int64(20 << 20); r.Counters().Fetched > limit {
			t.Errorf("got %d bytes fetched, want %d at the most", r.Counters().Fetched, limit)
		}
	})
}

func TestManyReadAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, opts := serve(t, file(released))
		r := mustOpen(t, opts)
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				p := make([]byte, 100_000)
				for off := int64(i) * 1000; off+int64(len(p)) < r.Size(); off += 250_000 {
					if _, err := r.ReadAt(p, off); err != nil || !bytes.Equal(p, released[off:off+int64(len(p))]) {
						t.Errorf("got error %v or other bytes at %d", err, off)
					}
					r.Counters()
				}
			})
		}
		all.Wait()
	})
}

// What stays in memory does not grow with the size of the file.
func TestMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, opts := serve(t, file(random(32<<20)))
		r := mustOpen(t, opts)
		p := make([]byte, 2<<20)
		for off := int64(0); off < r.Size(); off += 3 << 20 {
			for _, at := range []int64{off, (off + 8<<20) % r.Size(), (off + 16<<20) % r.Size(), (off + 24<<20) % r.Size()} {
				if _, err := r.ReadAt(p, at); err != nil && err != io.EOF {
					t.Fatal(err)
				}
			}
		}
		held := 0
		for _, s := range r.spans {
			held += cap(s.buf)
		}
		if most := spanCount * (spanMost + spanTail) * 3 / 2; held > most || len(r.spans) > spanCount {
			t.Errorf("got %d KiB in %d spans, want %d KiB in %d at the most", held>>10, len(r.spans), most>>10, spanCount)
		}
	})
}

func TestALittleIsReadRatherThanSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, opts := serve(t, file(released))
		r := mustOpen(t, opts)
		p := make([]byte, 4096)
		for off := int64(0); off < r.Size()-4096; off += 60_000 {
			if _, err := r.ReadAt(p, off); err != nil || !bytes.Equal(p, released[off:off+4096]) {
				t.Fatalf("got error %v or other bytes at %d", err, off)
			}
		}
		if c := r.Counters(); c.Requests > 8 || c.Fetched > r.Size() {
			t.Errorf("got %+v, want 8 requests and %d bytes at the most", c, r.Size())
		}
	})
}
