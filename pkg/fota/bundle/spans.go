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
	size     int64
	verified bool // all of it, before; what is loaded is held against that

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

// A visit reads spans, and keeps account of those that it has verified, a bit for each. It
// is not safe for concurrent use.
type visit struct {
	*spans
	seen  []byte
	tally *tally // gets the bytes of each span when it is seen first
}

// visit begins a visit, and adds to the tally what it may have to verify.
func (s *spans) visit(t *tally) *visit {
	v := &visit{s, make([]byte, s.size/spanSize/8+1), t}
	if !s.verified {
		t.total += s.size
	}
	return v
}

func (v *visit) ReadAt(p []byte, off int64) (int, error) {
	n, err := v.spans.ReadAt(p, off)
	for at := off - off%spanSize; at < off+int64(n); at += spanSize {
		if i := at / spanSize; !v.saw(at) {
			v.seen[i/8] |= 1 << (i % 8)
			v.tally.add(int(min(spanSize, v.size-at)))
		}
	}
	return n, err
}

// saw reports whether the span at off was verified.
func (v *visit) saw(off int64) bool {
	i := off / spanSize
	return v.verified || v.seen[i/8]&(1<<(i%8)) != 0
}

// rest verifies, in order, what was never verified.
func (v *visit) rest(ctx context.Context) error {
	var first [1]byte // of a span, which is verified as a whole
	for off := int64(0); off < v.size; off += spanSize {
		if v.saw(off) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := v.ReadAt(first[:], off); err != nil {
			return err
		}
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
