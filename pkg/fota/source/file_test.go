package source

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
)

// written is the path of a new file.
func written(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "release.raucb")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustFile(t *testing.T, path string) *Local {
	t.Helper()
	l, err := File(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// Both kinds of source are one io.ReaderAt.
func TestReadAtKeepsItsContract(t *testing.T) {
	data := random(200_000)
	keeps := func(t *testing.T, s Source) {
		if s.Size() != int64(len(data)) {
			t.Errorf("got the size %d, want %d", s.Size(), len(data))
		}
		for _, tc := range []struct {
			off, n, want int64
			err          error
		}{
			{0, 200_000, 200_000, nil},
			{0, 0, 0, nil},
			{100_000, 0, 0, nil},
			{199_999, 1, 1, nil},
			{199_999, 2, 1, io.EOF},
			{70_000, 200_000, 130_000, io.EOF},
			{200_000, 1, 0, io.EOF},
			{200_001, 1, 0, io.EOF},
			{1 << 62, 1, 0, io.EOF},
			{1<<63 - 1, 10, 0, io.EOF},
		} {
			p := make([]byte, tc.n)
			n, err := s.ReadAt(p, tc.off)
			if int64(n) != tc.want || err != tc.err {
				t.Errorf("%d bytes at %d: got %d and %v, want %d and %v", tc.n, tc.off, n, err, tc.want, tc.err)
			}
			if n > 0 && !bytes.Equal(p[:n], data[tc.off:tc.off+int64(n)]) {
				t.Errorf("%d bytes at %d are other bytes", tc.n, tc.off)
			}
		}
		for _, off := range []int64{-1, -1 << 63} {
			if n, err := s.ReadAt(make([]byte, 1), off); n != 0 || err == nil || err == io.EOF {
				t.Errorf("at %d: got %d bytes and error %v", off, n, err)
			}
		}
	}
	t.Run("of a file", func(t *testing.T) { keeps(t, mustFile(t, written(t, data))) })
	t.Run("of a server", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, opts := serve(t, file(data))
			keeps(t, mustOpen(t, opts))
		})
	})
}

func TestOnlyRegularFilesAreOpened(t *testing.T) {
	path := written(t, released)
	dir := filepath.Dir(path)
	link, fifo := filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	if err := errors.Join(os.Symlink(path, link), syscall.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{
		link:                         "symbolic link",
		fifo:                         "not a regular file",
		dir:                          "not a regular file",
		"/dev/null":                  "not a regular file",
		filepath.Join(dir, "absent"): "no such file",
	} {
		if _, err := File(path); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, want %q", path, err, says)
		}
	}
}

func TestAFileThatShrinksIsAnother(t *testing.T) {
	path := written(t, released)
	l := mustFile(t, path)
	if err := os.Truncate(path, 100_000); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1000)
	if n, err := l.ReadAt(p, 99_500); n != 500 || !errors.Is(err, ErrChanged) {
		t.Errorf("got %d bytes and %v, want 500 and ErrChanged", n, err)
	}
	if n, err := l.ReadAt(p, 200_000); n != 0 || !errors.Is(err, ErrChanged) {
		t.Errorf("got %d bytes and %v, want none and ErrChanged", n, err)
	}
}

// Neither bytes that are added nor a file that takes the name are seen.
func TestAFileThatGrowsOrIsReplacedStaysTheSame(t *testing.T) {
	path := written(t, released)
	l := mustFile(t, path)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString("more")
	if err := errors.Join(err, f.Close(), os.Rename(written(t, released[1:]), path)); err != nil {
		t.Fatal(err)
	}
	got, err := sum(l, 4096)
	if want := sha256.Sum256(released); err != nil || got != want {
		t.Errorf("got %x and error %v, want %x", got, err, want)
	}
	if n, err := l.ReadAt(make([]byte, 10), l.Size()-2); n != 2 || err != io.EOF {
		t.Errorf("at the end: got %d bytes and %v, want 2 and EOF", n, err)
	}
}
