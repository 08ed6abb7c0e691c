package source

import (
	"bytes"
	"crypto/sha256"
	"io"
	"net/http"
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
		if n := m.dials.Load(); n != 1 {
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
		if c := r.Counters(); c.Fetched > 2*spanFirst {
			t.Errorf("got %d bytes fetched for the signature, want %d at the most", c.Fetched, 2*spanFirst)
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
		t.Logf("%+v", c)
	})
}

func TestReadAtKeepsItsContract(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := random(200_000)
		_, opts := serve(t, file(data))
		r := mustOpen(t, opts)
		for _, tc := range []struct {
			off, n int64
			want   int64
			err    error
		}{
			{0, 200_000, 200_000, nil},
			{0, 0, 0, nil},
			{199_999, 1, 1, nil},
			{199_999, 2, 1, io.EOF},
			{200_000, 1, 0, io.EOF},
			{1 << 62, 1, 0, io.EOF},
			{1<<63 - 1, 10, 0, io.EOF},
		} {
			p := make([]byte, tc.n)
			n, err := r.ReadAt(p, tc.off)
			if int64(n) != tc.want || err != tc.err {
				t.Errorf("%d bytes at %d: got %d and %v, want %d and %v", tc.n, tc.off, n, err, tc.want, tc.err)
			}
			if n > 0 && !bytes.Equal(p[:n], data[tc.off:tc.off+int64(n)]) {
				t.Errorf("%d bytes at %d are other bytes", tc.n, tc.off)
			}
		}
		if _, err := r.ReadAt(make([]byte, 1), -1); err == nil {
			t.Error("got no error before the beginning")
		}
	})
}
