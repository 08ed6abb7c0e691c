package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Copy copies a disk, to be changed.
func Copy(ctx context.Context, from, to string) error {
	return run(ctx, "cp", "--sparse=always", from, to)
}

// Put writes a release to a disk's EFI system partition, under a name that
// [ReleaseName] makes.
func Put(ctx context.Context, disk, name string, release []byte) error {
	if err := espOf(disk).write(ctx, "EFI/Linux/"+name, release); err != nil {
		return fmt.Errorf("cannot put %s on the disk: %w", name, err)
	}
	return nil
}

func espOf(disk string) esp { return esp{disk + "@@" + strconv.Itoa(espStart)} }

// InstallB puts another release into a disk's slot B, as an update does: root is what is
// to be in the slot, name and release are as for [Put]. The boot loader takes the newer
// one first.
func InstallB(ctx context.Context, disk, root, name string, release []byte) error {
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(put(f, root, SlotB), f.Close()); err != nil {
		return fmt.Errorf("cannot write slot B: %w", err)
	}
	return Put(ctx, disk, name, release)
}

// Flip inverts a byte of a disk.
func Flip(disk string, at int64) error {
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b := []byte{0}
	if _, err := f.ReadAt(b, at); err != nil {
		return errors.Join(err, f.Close())
	}
	_, err = f.WriteAt([]byte{^b[0]}, at)
	return errors.Join(err, f.Close())
}

// Offset is where the first byte of a file is in a slot.
func (img *Image) Offset(ctx context.Context, file string) (int64, error) {
	out, err := output(ctx, "debugfs", "-R", "blocks "+file, img.Root)
	if err != nil {
		return 0, err
	}
	for word := range strings.FieldsSeq(out) { // behind a line that tells the version
		if block, err := strconv.ParseInt(word, 10, 64); err == nil && block > 0 {
			return block * blockSize, nil
		}
	}
	return 0, fmt.Errorf("%s is not in the root file system: %s", file, out)
}

// TreeTop and TreeLeaf are where in a slot the hashes are that are compared first, and
// the one of the block at an offset.
func (v Verity) TreeTop() int64 { return v.Blocks * blockSize }
func (v Verity) TreeLeaf(at int64) int64 {
	above, perBlock := int64(0), int64(blockSize/32)
	for n := (v.Blocks + perBlock - 1) / perBlock; n > 1; above += n {
		n = (n + perBlock - 1) / perBlock
	}
	return (v.Blocks+above)*blockSize + at/blockSize*32
}
