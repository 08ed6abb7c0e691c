package slot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"
)

// slotOf is a slot of some bytes, all 0xff.
func slotOf(tb testing.TB, size int) (*Slot, string) {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "root-b")
	if err := os.WriteFile(path, bytes.Repeat([]byte{0xff}, size), 0o600); err != nil {
		tb.Fatal(err)
	}
	s, err := Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s, path
}

func TestSlotIsWritten(t *testing.T) {
	const most = syncSpan + chunkSize + 512
	random := rand.NewChaCha8([32]byte{1})
	release := make([]byte, most)
	random.Read(release)
	for _, c := range []struct{ n, slot int }{
		{1, blockSize}, {511, 512}, {blockSize, blockSize}, {chunkSize, 2 * chunkSize}, {chunkSize + 1, 2 * chunkSize},
		{syncSpan, most}, {most - 1, most}, {most, most}, // synced on the way
	} {
		s, path := slotOf(t, c.slot)
		if err := s.write(t.Context(), iotest.HalfReader(bytes.NewReader(release[:c.n])), int64(c.n)); err != nil {
			t.Errorf("%d bytes: %v", c.n, err)
		}
		sum, err := s.Sum(t.Context(), int64(c.n))
		if err != nil || sum != sha256.Sum256(release[:c.n]) {
			t.Errorf("%d bytes: sum %x, %v, want %x", c.n, sum, err, sha256.Sum256(release[:c.n]))
		}
		got, err := os.ReadFile(path)
		if err != nil || len(got) != c.slot || !bytes.Equal(got[:c.n], release[:c.n]) || len(bytes.Trim(got[c.n:], "\xff")) != 0 {
			t.Errorf("%d bytes: the slot holds something else (%d bytes, %v)", c.n, len(got), err)
		}
	}
}

func TestSlotIsNotWritten(t *testing.T) {
	const size = 3 << 20
	broken := errors.New("broken")
	canceled, cancel := context.WithCancelCause(t.Context())
	cancel(broken)
	all := bytes.Repeat([]byte{1}, size)
	for _, c := range []struct {
		name string
		ctx  context.Context
		r    io.Reader
		size int64
		want error // nil for any
	}{
		{"more than fits", t.Context(), bytes.NewReader(append(all, 1)), size + 1, nil},
		{"nothing", t.Context(), bytes.NewReader(nil), 0, nil},
		{"less than nothing", t.Context(), bytes.NewReader(nil), -1, nil},
		{"a source that ends", t.Context(), bytes.NewReader(all[:size/2]), size, io.ErrUnexpectedEOF},
		{"a source that goes on", t.Context(), bytes.NewReader(all), size - 1, nil},
		{"a source that fails", t.Context(), io.MultiReader(bytes.NewReader(all[:size/2]), iotest.ErrReader(broken)), size, broken},
		{"a context that is done", canceled, bytes.NewReader(all), size, broken},
	} {
		s, path := slotOf(t, size)
		if err := s.write(c.ctx, c.r, c.size); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
		if info, err := os.Stat(path); err != nil || info.Size() != size {
			t.Errorf("%s: the slot has another size, %v", c.name, err)
		}
	}
}

// A medium that loses what it said it has is found.
func TestSlotIsReadBack(t *testing.T) {
	const size = 2 << 20
	s, path := slotOf(t, size)
	release := bytes.Repeat([]byte{1}, size)
	decaying := &after{r: bytes.NewReader(release), do: func() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte{0}, 12345); err != nil {
			t.Fatal(err)
		}
	}}
	if err := s.write(t.Context(), decaying, size); !errors.Is(err, ErrReadBack) {
		t.Errorf("got %v, want %v", err, ErrReadBack)
	}
}

// after does something when r is at its end.
type after struct {
	r  io.Reader
	do func()
}

func (a *after) Read(b []byte) (int, error) {
	n, err := a.r.Read(b)
	if err == io.EOF {
		a.do()
	}
	return n, err
}
