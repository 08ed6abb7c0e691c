package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"birthmark/pkg/fota"
	bt "birthmark/pkg/fota/bundle/bundletest"
)

// Slots are the ones that do not run, as files, and what a device does to them. Each
// begins with the release before.
type slots struct {
	t      *testing.T
	folder string
	before map[string][32]byte // sums, by class

	written int64 // bytes, since they were as before
	armed   bool
	spoilt  int // times that bad bundles have written
}

func newSlots(t *testing.T) *slots {
	s := &slots{t: t, folder: t.TempDir()}
	s.fill()
	return s
}

func (s *slots) path(class string) string { return filepath.Join(s.folder, class) }

// fill puts the release before into all.
func (s *slots) fill() {
	s.t.Helper()
	for class, size := range sizes {
		old := append(bt.Noise(int(min(size, 400<<10)), "the release before in "+class), make([]byte, max(0, size-400<<10))...)
		if err := os.WriteFile(s.path(class), old, 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	s.written, s.armed, s.before = 0, false, s.sums()
}

// sums are those of all that is in the slots.
func (s *slots) sums() map[string][32]byte {
	s.t.Helper()
	sums := map[string][32]byte{}
	for class := range sizes {
		b, err := os.ReadFile(s.path(class))
		if err != nil {
			s.t.Fatal(err)
		}
		sums[class] = sha256.Sum256(b)
	}
	return sums
}

// install does what a device does with a bundle: what runs next is the release that was
// before, or all of what was signed.
func (s *slots) install(d *device, r io.ReaderAt, size int64) error {
	b, err := d.wants(r, size)
	if err != nil {
		return err
	}
	for _, image := range b.Manifest.Images {
		if err := s.write(b, image); err != nil {
			return err
		}
	}
	s.armed = true
	return nil
}

func (s *slots) write(b *Bundle, image fota.Image) error {
	f, err := os.OpenFile(s.path(image.Slot), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	n := &counted{w: f}
	defer func() { s.written += n.n }()
	return b.CopyImage(context.Background(), n, image, nil)
}

type counted struct {
	w io.Writer
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// late are the refusals that may come when a slot has the beginning of an image: a stream
// is not read before it is used. Every other one comes before the first write.
var late = map[fota.Stage][]string{
	fota.StagePayload: {"block", "changed"},
	fota.StageImage:   {"digest"},
}

// wantUntouched puts a bad bundle on a device, and holds that its slots are what they
// were, or, where that cannot be, that nothing is armed.
func (s *slots) wantUntouched(t *testing.T, b bad) {
	t.Helper()
	err := s.install(b.on, b.source(), b.size())
	wantRefusal(t, b.name+", on a device", err, b.stage, b.code)
	if s.armed {
		t.Errorf("%s: it was armed", b.name)
	}
	may := slices.Contains(late[b.stage], b.code)
	if s.written > 0 && !may {
		t.Errorf("%s: %d bytes were written before it was refused at %s, want none", b.name, s.written, b.stage)
	}
	if now := s.sums(); !maps.Equal(now, s.before) && (s.written == 0 || !may) {
		t.Errorf("%s: the slots had the sums %x, and have %x", b.name, s.before, now)
	}
	if s.written > 0 || s.armed {
		s.spoilt++
		s.fill()
	}
}

// source is where the bundle is read from: other bytes are there once those were read
// that its signature is about, if it is such a one.
func (b bad) source() *source {
	s := newSource(bytes.Clone(b.bytes))
	s.zeros, s.at, s.lowest = b.zeros, endOf(b.bytes), b.size()
	if b.then != nil {
		believed := endOf(b.bytes) // the signature, or before it all that it is over
		if b.on.policy.AllowPlain {
			believed--
		}
		s.after = func(p []byte, off int64) {
			if off <= believed && believed < off+int64(len(p)) {
				copy(s.b, b.then)
			}
		}
	}
	return s
}
