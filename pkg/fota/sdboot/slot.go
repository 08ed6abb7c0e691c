package sdboot

import (
	"bytes"
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

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/slot"
)

const (
	blockSize        = 4096     // bytes; dm-verity's
	commandLineLimit = 64 << 10 // bytes
)

// slotNames are those of the two partitions that a release can be in.
var slotNames = [2]string{"root-a", "root-b"}

// Inactive opens the slot that does not hold the release that runs.
//
// Which one does is a fact of the kernel's command line, which firmware verified as part
// of the release: verity.hash is the root of the hash tree behind the file system, of
// which verity.blocks tells where it is and verity.salt what was hashed before each
// block. The release runs from the slot whose tree has that root, and one of the two must
// have it. If both do, the same release is in both, and the one that is in use is the one
// that cannot be had.
func Inactive(root string) (*slot.Slot, error) {
	s, err := inactive(root)
	if err != nil {
		return nil, fmt.Errorf("cannot open the slot that is not in use: %w", err)
	}
	return s, nil
}

func inactive(root string) (*slot.Slot, error) {
	line, err := fota.ReadFile(filepath.Join(root, "proc/cmdline"), commandLineLimit)
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
	return pick(holds, func(name string) (*slot.Slot, error) { return slot.Open(slotPath(root, name)) })
}

// pick opens the slot that does not hold the release that runs, by which of the two do.
func pick(holds [2]bool, open func(name string) (*slot.Slot, error)) (*slot.Slot, error) {
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
	for _, s := range []*slot.Slot{a, b} {
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
