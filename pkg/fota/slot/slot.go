// Package slot writes an image to where a release may start from: a partition, which it
// has for itself meanwhile. What it says is written is on the medium: it was read from
// there again.
//
//	s, err := slot.Open("/dev/disk/by-partlabel/root-b")
//	err = s.Install(ctx, image, bundle.CopyImage, progress)
//
// A regular file may stand for a partition, where there are none.
package slot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"birthmark/pkg/fota"
)

const (
	blockSize = 4096     // bytes; enough for O_DIRECT
	chunkSize = 1 << 20  // bytes that are copied at once
	syncSpan  = 16 << 20 // bytes that are written before they are made durable
)

// ErrReadBack means that the medium does not hold what was written to it.
var ErrReadBack = errors.New("what is read back is not what was written")

// A Slot is a partition for a release, opened for nobody else.
type Slot struct {
	Name string // of the partition
	Size int64  // bytes

	f *os.File
}

// Open opens a slot for nobody else. A block device that is mounted, or part of another
// that is, is busy (EBUSY): that is what O_EXCL means without O_CREAT (open(2)).
func Open(path string) (*Slot, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() && info.Mode().Type() != fs.ModeDevice {
		err = fmt.Errorf("%s is no block device", f.Name())
	}
	var size int64
	if err == nil {
		size, err = f.Seek(0, io.SeekEnd)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Slot{Name: filepath.Base(path), Size: size, f: f}, nil
}

// Path is how the slot was opened.
func (s *Slot) Path() string { return s.f.Name() }

// Close gives the slot back.
func (s *Slot) Close() error { return s.f.Close() }

// Install writes an image to the beginning of the slot, and reads back from the medium
// what it wrote. Whatever the error, what is in the slot then is not to be started; Install
// may be called again.
func (s *Slot) Install(ctx context.Context, image fota.Image, copyImage fota.CopyImage, progress func(done, total int64)) error {
	r := NewReader(ctx, image, copyImage, progress)
	err := s.write(ctx, r, image.Size)
	// Whoever copies the image holds it against its digest, and the medium was held
	// against what was copied.
	return r.End(err, image.SHA256)
}

// write writes size bytes, which r has to have exactly, and reads them back.
//
// What is read back is held against a sum with a secret seed, which takes a tenth of
// SHA-256's time: a medium that decays does not know it, and one that deceives would
// do so at the next start.
func (s *Slot) write(ctx context.Context, r io.Reader, size int64) error {
	var wrote, got maphash.Hash
	got.SetSeed(wrote.Seed())
	err := s.writeSynced(ctx, r, size, &wrote)
	if err == nil {
		err = s.readBack(ctx, size, &got)
	}
	if err == nil && got.Sum64() != wrote.Sum64() {
		err = ErrReadBack
	}
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", s.Name, err)
	}
	return nil
}

func (s *Slot) writeSynced(ctx context.Context, r io.Reader, size int64, sum io.Writer) error {
	if size <= 0 || size > s.Size {
		return fmt.Errorf("%d bytes do not fit into its %d", size, s.Size)
	}
	w := &syncedWriter{f: s.f}
	if err := copyExactly(ctx, io.MultiWriter(sum, w), r, size); err != nil {
		return err
	}
	return w.sync()
}

// A syncedWriter writes to a file from its beginning, and makes durable what it wrote
// every now and then: errors show early, and memory does not fill with what waits.
type syncedWriter struct {
	f       *os.File
	at      int64
	waiting int64 // bytes that were not synced
}

func (w *syncedWriter) Write(b []byte) (int, error) {
	n, err := w.f.WriteAt(b, w.at)
	w.at += int64(n)
	w.waiting += int64(n)
	if err == nil && w.waiting >= syncSpan {
		err = w.sync()
	}
	return n, err
}

func (w *syncedWriter) sync() error {
	w.waiting = 0
	if err := syscall.Fdatasync(int(w.f.Fd())); err != nil {
		return &fs.PathError{Op: "fdatasync", Path: w.f.Name(), Err: err}
	}
	return nil
}

// Sum is the SHA-256 of the first size bytes, from the medium.
func (s *Slot) Sum(ctx context.Context, size int64) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	if err := s.readBack(ctx, size, h); err != nil {
		return sum, err
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// readBack reads the first size bytes from the medium: past the page cache where the
// file system can do that.
func (s *Slot) readBack(ctx context.Context, size int64, h hash.Hash) (err error) {
	if err := DropCache(s.f); err != nil {
		return err
	}
	direct := s.setDirect(true) == nil
	if direct {
		defer func() { err = errors.Join(err, s.setDirect(false)) }()
	}
	chunk := aligned(chunkSize)
	for at := int64(0); at < size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// Whole blocks are read, also where the last bytes are in part of one: ReadAt
		// would go on from there, where O_DIRECT cannot.
		n, err := syscall.Pread(int(s.f.Fd()), chunk, at)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "read", Path: s.f.Name(), Err: err}
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		h.Write(chunk[:min(int64(n), size-at)])
		at += int64(n)
	}
	return nil
}

// setDirect lets reads and writes pass the page cache, or not any more.
func (s *Slot) setDirect(on bool) error {
	flags, err := unix.FcntlInt(s.f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	flags &^= unix.O_DIRECT
	if on {
		flags |= unix.O_DIRECT
	}
	_, err = unix.FcntlInt(s.f.Fd(), unix.F_SETFL, flags)
	return err
}

// aligned is memory that O_DIRECT can read to.
func aligned(n int) []byte {
	b := make([]byte, n+blockSize)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (blockSize - 1)
	return b[skip : skip+n : skip+n]
}
