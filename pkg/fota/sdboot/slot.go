package sdboot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	blockSize        = 4096     // bytes; dm-verity's, and enough for O_DIRECT
	syncSpan         = 16 << 20 // bytes that are written before they are made durable
	commandLineLimit = 64 << 10 // bytes
)

// slotNames are those of the two partitions that a release can be in.
var slotNames = [2]string{"root-a", "root-b"}

// A Slot is a partition for a release, opened for nobody else.
type Slot struct {
	Name string // of the partition
	Size int64  // bytes

	f *os.File
}

// Inactive opens the slot that does not hold the release that runs.
//
// Which one does is a fact of the kernel's command line, which firmware verified as part
// of the release: verity.hash is the root of the hash tree behind the file system, of
// which verity.blocks tells where it is and verity.salt what was hashed before each
// block. The release runs from the slot whose tree has that root, and one of the two must
// have it. If both do, the same release is in both, and the one that is in use is the one
// that cannot be had.
func Inactive(root string) (*Slot, error) {
	s, err := inactive(root)
	if err != nil {
		return nil, fmt.Errorf("cannot open the slot that is not in use: %w", err)
	}
	return s, nil
}

func inactive(root string) (*Slot, error) {
	line, err := readFile(filepath.Join(root, "proc/cmdline"), commandLineLimit)
	if err != nil {
		return nil, err
	}
	tree, err := parseTree(string(line))
	if err != nil {
		return nil, err
	}
	var holds [2]bool
	for i, name := range slotNames {
		if holds[i], err = tree.isIn(slotPath(root, name)); err != nil {
			return nil, err
		}
	}
	if err := oneDisk(root); err != nil {
		return nil, err
	}
	return pick(holds, func(name string) (*Slot, error) { return openSlot(root, name) })
}

// pick opens the slot that does not hold the release that runs, by which of the two do.
func pick(holds [2]bool, open func(name string) (*Slot, error)) (*Slot, error) {
	switch {
	case holds[0] && !holds[1]:
		return open(slotNames[1])
	case holds[1] && !holds[0]:
		return open(slotNames[0])
	case !holds[0]:
		return nil, errors.New("neither slot holds the release that runs")
	}
	a, errA := open(slotNames[0])
	b, errB := open(slotNames[1])
	switch {
	case errA == nil && errors.Is(errB, syscall.EBUSY):
		return a, nil
	case errB == nil && errors.Is(errA, syscall.EBUSY):
		return b, nil
	}
	for _, s := range []*Slot{a, b} {
		if s != nil {
			s.Close()
		}
	}
	return nil, errors.Join(errors.New("both slots hold the release that runs, and not exactly one is in use"), errA, errB)
}

// oneDisk refuses slots on two disks: a stick with a partition of that name is no slot.
// Files, which stand for partitions where there are none, are on no disk.
func oneDisk(root string) error {
	var disks []string
	for _, name := range slotNames {
		var s syscall.Stat_t
		if err := syscall.Stat(slotPath(root, name), &s); err != nil {
			return &fs.PathError{Op: "stat", Path: slotPath(root, name), Err: err}
		}
		if s.Mode&syscall.S_IFMT != syscall.S_IFBLK {
			continue
		}
		disk, err := diskOf(root, s.Rdev)
		if err != nil {
			return err
		}
		disks = append(disks, disk)
	}
	if len(disks) == 2 && disks[0] != disks[1] {
		return fmt.Errorf("the two slots are on two disks, %s and %s", disks[0], disks[1])
	}
	return nil
}

// diskOf tells the disk of a partition: the kernel's folder of the one is in that of the
// other. Major and minor number are put together as new_encode_dev of linux/kdev_t.h
// does it for programs.
func diskOf(root string, device uint64) (string, error) {
	number := fmt.Sprintf("%d:%d", device>>8&0xfff, device&0xff|device>>12&0xfff00)
	to, err := os.Readlink(filepath.Join(root, "sys/dev/block", number))
	return filepath.Dir(to), err
}

func slotPath(root, name string) string { return filepath.Join(root, "dev/disk/by-partlabel", name) }

// openSlot opens a slot for nobody else. A block device that is mounted, or part of
// another that is, is busy: that is what O_EXCL means without O_CREAT (open(2)).
func openSlot(root, name string) (*Slot, error) {
	f, err := os.OpenFile(slotPath(root, name), os.O_RDWR|os.O_EXCL, 0)
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
	return &Slot{Name: name, Size: size, f: f}, nil
}

// Close gives the slot back.
func (s *Slot) Close() error { return s.f.Close() }

// Write writes size bytes, which r has to have exactly, to the beginning of the slot,
// reads them back from the medium and returns their SHA-256. Whatever the error, what is
// in the slot then is not to be started; Write may be called again.
func (s *Slot) Write(ctx context.Context, r io.Reader, size int64) (sum [sha256.Size]byte, err error) {
	sum, err = s.write(ctx, r, size)
	if err != nil {
		return sum, fmt.Errorf("cannot write %s: %w", s.Name, err)
	}
	return sum, nil
}

func (s *Slot) write(ctx context.Context, r io.Reader, size int64) (sum [sha256.Size]byte, err error) {
	if size <= 0 || size > s.Size {
		return sum, fmt.Errorf("%d bytes do not fit into its %d", size, s.Size)
	}
	w := &syncedWriter{f: s.f}
	sum, err = copyExactly(ctx, w, r, size)
	if err == nil {
		err = w.sync()
	}
	if err != nil {
		return sum, err
	}
	got, err := s.readBack(ctx, size)
	if err == nil && got != sum {
		err = errReadBack
	}
	return sum, err
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

// readBack is the sum of the first size bytes, from the medium: past the page cache where
// the file system can do that.
func (s *Slot) readBack(ctx context.Context, size int64) (sum [sha256.Size]byte, err error) {
	if err := dropCache(s.f); err != nil {
		return sum, err
	}
	direct := s.setDirect(true) == nil
	if direct {
		defer func() { err = errors.Join(err, s.setDirect(false)) }()
	}
	h := sha256.New()
	chunk := aligned(chunkSize)
	for at := int64(0); at < size; {
		if ctx.Err() != nil {
			return sum, context.Cause(ctx)
		}
		// Whole blocks are read, also where the last bytes are in part of one: ReadAt
		// would go on from there, where O_DIRECT cannot.
		n, err := syscall.Pread(int(s.f.Fd()), chunk, at)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return sum, &fs.PathError{Op: "read", Path: s.f.Name(), Err: err}
		}
		if n == 0 {
			return sum, io.ErrUnexpectedEOF
		}
		h.Write(chunk[:min(int64(n), size-at)])
		at += int64(n)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
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

// A tree is what the command line says of a hash tree.
type tree struct {
	root, salt [sha256.Size]byte
	blocks     int64 // before it
}

// parseTree reads a command line. An argument that is there twice is refused: who put
// the second one there?
func parseTree(line string) (t tree, err error) {
	arg := map[string]string{}
	for word := range strings.FieldsSeq(line) {
		name, value, _ := strings.Cut(word, "=")
		if !strings.HasPrefix(name, "verity.") {
			continue
		}
		if _, twice := arg[name]; twice {
			return t, fmt.Errorf("%s is on the command line twice", name)
		}
		arg[name] = value
	}
	for name, to := range map[string]*[sha256.Size]byte{"verity.hash": &t.root, "verity.salt": &t.salt} {
		b, err := hex.DecodeString(arg[name])
		if err != nil || len(b) != len(to) {
			return t, fmt.Errorf("%s on the command line is not %d bytes in hex", name, len(to))
		}
		copy(to[:], b)
	}
	blocks, err := strconv.ParseUint(arg["verity.blocks"], 10, 32)
	if err != nil || blocks == 0 {
		return t, errors.New("verity.blocks on the command line is not a number of blocks")
	}
	t.blocks = int64(blocks)
	return t, nil
}

// isIn reports whether the tree in a slot has the root of t. A slot that is too small for
// it does not.
func (t tree) isIn(slot string) (bool, error) {
	f, err := os.Open(slot)
	if err != nil {
		return false, err
	}
	defer f.Close()
	top := make([]byte, blockSize)
	switch _, err := f.ReadAt(top, t.blocks*blockSize); {
	case err == io.EOF:
		return false, nil
	case err != nil:
		return false, err
	}
	sum := sha256.Sum256(append(t.salt[:], top...))
	return bytes.Equal(sum[:], t.root[:]), nil
}
