package bundle

import (
	"context"
	"io"
	"sync"
)

const (
	// spanSize is how many bytes are read and verified at once. Squashfs blocks are of
	// that size by default, and a request to a server should not be much smaller.
	spanSize = 128 << 10
	// spansKept is how many verified spans are kept. Whoever reads a file reads its
	// data and, far away, its tables.
	spansKept = 4
)

// A loader fills p with the bytes at off, and returns nil only if they are those that
// were signed. It verifies p itself, after reading: what the source would say a second
// time does not matter. Off is a multiple of spanSize; p has that size, or less at the
// end.
type loader interface {
	load(p []byte, off int64) error
}

// Spans is the data of a bundle, as an [io.ReaderAt] that hands out only what its
// loader has verified. It is safe for concurrent use.
type spans struct {
	size int64

	mu     sync.Mutex
	loader loader
	kept   []span // the last one used first
}

type span struct {
	off int64
	b   []byte
}

func newSpans(l loader, size int64) *spans { return &spans{size: size, loader: l} }

func (s *spans) ReadAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for n < len(p) {
		if off < 0 || off >= s.size {
			return n, io.EOF
		}
		b, err := s.spanLocked(off - off%spanSize)
		if err != nil {
			return n, err
		}
		k := copy(p[n:], b[off%spanSize:])
		n += k
		off += int64(k)
	}
	return n, nil
}

// spanLocked returns the verified span at off. It is valid until the next call.
func (s *spans) spanLocked(off int64) ([]byte, error) {
	for i, k := range s.kept {
		if k.off == off {
			copy(s.kept[1:], s.kept[:i])
			s.kept[0] = k
			return k.b, nil
		}
	}
	var b []byte
	if len(s.kept) < spansKept {
		b = make([]byte, spanSize)
	} else {
		// Taken out before it is written over: a span that could not be loaded is
		// never found.
		b = s.kept[spansKept-1].b[:spanSize]
		s.kept = s.kept[:spansKept-1]
	}
	b = b[:min(spanSize, s.size-off)]
	if err := s.loader.load(b, off); err != nil {
		return nil, err
	}
	s.kept = append(s.kept, span{})
	copy(s.kept[1:], s.kept)
	s.kept[0] = span{off, b}
	return b, nil
}

// check loads everything once, in order.
func (s *spans) check(ctx context.Context, t *tally) error {
	b := make([]byte, spanSize)
	for off := int64(0); off < s.size; off += spanSize {
		if err := ctx.Err(); err != nil {
			return err
		}
		b = b[:min(spanSize, s.size-off)]
		s.mu.Lock()
		err := s.loader.load(b, off)
		s.mu.Unlock()
		if err != nil {
			return err
		}
		t.add(len(b))
	}
	return nil
}

// A tally reports how far long work has come.
type tally struct {
	done, total int64
	report      func(done, total int64)
}

func (t *tally) add(n int) {
	t.done += int64(n)
	if t.report != nil {
		t.report(t.done, t.total)
	}
}
