package squashfs_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"birthmark/pkg/fota/bundle/squashfs"
)

var errBroken = errors.New("the medium is broken")

// A breaking reader gives good bytes some times, and then none.
type breaking struct {
	io.ReaderAt
	good int
}

func (b *breaking) ReadAt(p []byte, pos int64) (int, error) {
	if b.good--; b.good < 0 {
		return 0, errBroken
	}
	return b.ReaderAt.ReadAt(p, pos)
}

// seeds are small file systems of every compressor, as mksquashfs made them.
func seeds(t testing.TB) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.squashfs")
	if err != nil || len(paths) != 4 {
		t.Fatalf("got the seeds %q, %v, want 4", paths, err)
	}
	all := map[string][]byte{}
	for _, path := range paths {
		if all[path], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// everything opens a file system and reads all files in it.
func everything(r io.ReaderAt, size int64) error {
	f, err := squashfs.Open(r, size)
	if err != nil {
		return err
	}
	for _, file := range f.Files() {
		r, err := f.Open(file.Name)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			return err
		}
	}
	return nil
}

func TestABrokenMediumIsNoRefusal(t *testing.T) {
	for name, b := range seeds(t) {
		for good := 0; ; good++ {
			err := everything(&breaking{bytes.NewReader(b), good}, int64(len(b)))
			if err == nil {
				if good < 10 {
					t.Errorf("%s: all was read at once, in %d pieces", name, good)
				}
				break
			}
			if err != errBroken {
				t.Errorf("%s, broken after %d: got %v, want the reader's error itself", name, good, err)
			}
		}
	}
}

func TestLessBytesThanWereSaidIsNoRefusal(t *testing.T) {
	b := seeds(t)["testdata/zstd.squashfs"]
	read := victim{b: b}.u64(fragTable) + 8 // owners are not
	for n := range read {
		if err := everything(bytes.NewReader(b[:n]), int64(len(b))); err != io.ErrUnexpectedEOF {
			t.Errorf("%d bytes of %d: got %v, want %v", n, len(b), err, io.ErrUnexpectedEOF)
		}
	}
}

// TestEveryFlippedBit holds that no fault of one bit is taken for anything else than a
// fault of the file system, if it is noticed at all.
func TestEveryFlippedBit(t *testing.T) {
	for name, b := range seeds(t) {
		for bit := range 8 * len(b) {
			c := bytes.Clone(b)
			c[bit/8] ^= 1 << (bit % 8)
			err := everything(bytes.NewReader(c), int64(len(c)))
			var bad *squashfs.FormatError
			if err != nil && (!errors.As(err, &bad) || errors.Is(err, io.ErrUnexpectedEOF)) {
				t.Errorf("%s, bit %d: got %v, want a *FormatError, and nothing of the medium's", name, bit, err)
			}
		}
	}
}

func TestReadersOfOneFileSystemByTurns(t *testing.T) {
	want := map[string][]byte{"a": text(1, 300_000), "b": text(2, 300_000)}
	f := open(t, mksquashfs(t, folder(t, want), "-b", "4096"))
	readers, got := map[string]*squashfs.Reader{}, map[string][]byte{}
	for name := range want {
		r, err := f.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		readers[name] = r
	}
	for p := make([]byte, 5000); len(readers) > 0; {
		for name, r := range readers {
			n, err := r.Read(p)
			got[name] = append(got[name], p[:n]...)
			if err == io.EOF {
				delete(readers, name)
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	for name := range want {
		if !bytes.Equal(got[name], want[name]) {
			t.Errorf("%s: got other contents than went in", name)
		}
	}
}

func TestAnErrorStays(t *testing.T) {
	v := dissect(t, stored(t))
	v.put32(v.inode["cc"]+list+4, 1<<24|4095) // its second block
	r, err := open(t, v.b).Open("cc")
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, r)
	var bad *squashfs.FormatError
	if n != 4096 || !errors.As(err, &bad) {
		t.Errorf("got %d bytes, %v, want 4096 and a *FormatError", n, err)
	}
	if m, again := r.Read(make([]byte, 1)); m != 0 || again != err {
		t.Errorf("after it: got %d bytes, %v, want the same error", m, again)
	}
}

func TestAWriterThatFailsIsNotAskedAgain(t *testing.T) {
	r, err := open(t, stored(t)).Open("bb")
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	n, err := r.WriteTo(writerFunc(func(p []byte) (int, error) {
		calls++
		return 10, errBroken
	}))
	if n != 10 || err != errBroken || calls != 1 {
		t.Errorf("got %d bytes, %v, in %d calls, want 10, %v, 1", n, err, calls, errBroken)
	}
}

func FuzzOpen(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b)
	}
	f.Add(links(3))
	f.Add(oneHole(3<<20, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		const most = 1 << 20 // bytes that are read of one file
		s, err := squashfs.Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			mustBeFormatError(t, err)
			return
		}
		for i, file := range s.Files() {
			if i == 16 {
				break
			}
			r, err := s.Open(file.Name)
			if err != nil {
				mustBeFormatError(t, err)
				continue
			}
			n, err := io.Copy(io.Discard, io.LimitReader(r, most))
			if err != nil {
				mustBeFormatError(t, err)
			} else if n != min(file.Size, most) {
				t.Errorf("%q: got %d bytes of %d", file.Name, n, file.Size)
			}
		}
	})
}

func mustBeFormatError(t *testing.T, err error) {
	t.Helper()
	var bad *squashfs.FormatError
	if !errors.As(err, &bad) || bad.Code == "" {
		t.Errorf("got %v, want a *FormatError with a code", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
