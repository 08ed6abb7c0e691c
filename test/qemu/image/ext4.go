package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
)

// makeExt4 writes the tree in dir as a file system of so many blocks to path. The
// same tree gives the same bytes: identities are fixed, there is no journal, and
// times are what settle makes of them.
func makeExt4(ctx context.Context, path, dir string, blocks, epoch int64) error {
	if err := run(ctx, "mke2fs", "-q", "-t", "ext4", "-b", strconv.Itoa(blockSize),
		"-O", "^has_journal,^metadata_csum,^64bit,^resize_inode,^orphan_file,^uninit_bg",
		"-I", "256", "-m", "0", "-L", "root",
		"-U", "b1a8c5d0-0000-4000-8000-000000000001",
		"-E", "hash_seed=b1a8c5d0-0000-4000-8000-000000000002,root_owner=0:0,lazy_itable_init=0,nodiscard",
		"-d", dir, path, strconv.FormatInt(blocks, 10)); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := settle(f, uint32(epoch)); err != nil {
		return errors.Join(fmt.Errorf("cannot set the times in %s: %w", path, err), f.Close())
	}
	return f.Close()
}

// settle gives everything in an ext4 file system one time. mke2fs takes change times
// from the build machine, where nobody can set them, and its own from the clock. The
// layout is that of fs/ext4/ext4.h; without metadata_csum there are no sums to mend.
func settle(f *os.File, epoch uint32) error {
	le := binary.LittleEndian
	super := make([]byte, 1024)
	if _, err := f.ReadAt(super, 1024); err != nil {
		return err
	}
	if le.Uint16(super[0x38:]) != 0xef53 {
		return errors.New("it is no ext4 file system")
	}
	inodes, perGroup, size := le.Uint32(super[0x00:]), le.Uint32(super[0x28:]), int64(le.Uint16(super[0x58:]))
	if size != 256 || perGroup == 0 {
		return fmt.Errorf("it has inodes of %d bytes, %d in a group", size, perGroup)
	}
	never := make([]byte, size) // used
	for group := range int64(inodes / perGroup) {
		descriptor := make([]byte, 32) // behind the superblock's block
		if _, err := f.ReadAt(descriptor, blockSize+group*32); err != nil {
			return err
		}
		table := make([]byte, int64(perGroup)*size)
		at := int64(le.Uint32(descriptor[8:])) * blockSize
		if _, err := io.ReadFull(io.NewSectionReader(f, at, int64(len(table))), table); err != nil {
			return err
		}
		for inode := table; len(inode) > 0; inode = inode[size:] {
			if bytes.Equal(inode[:size], never) {
				continue
			}
			for _, whole := range []int{0x08, 0x0c, 0x10, 0x90} { // access, change, modification, birth
				le.PutUint32(inode[whole:], epoch)
			}
			for _, fraction := range []int{0x84, 0x88, 0x8c, 0x94} {
				le.PutUint32(inode[fraction:], 0)
			}
		}
		if _, err := f.WriteAt(table, at); err != nil {
			return err
		}
		// Copies of the superblock are in groups of their own choice; they hold the
		// times of the first one, and start their block.
		start := group * int64(le.Uint32(super[0x20:])) * blockSize
		if group == 0 {
			start = 1024
		}
		copied := make([]byte, 1024)
		if _, err := f.ReadAt(copied, start); err != nil {
			return err
		}
		if le.Uint16(copied[0x38:]) != 0xef53 || string(copied[0x68:0x78]) != string(super[0x68:0x78]) {
			continue
		}
		for _, moment := range []int{0x2c, 0x30, 0x40, 0x108} { // mount, write, check, creation
			le.PutUint32(copied[moment:], epoch)
		}
		le.PutUint64(copied[0x178:], 0) // kilobytes written, over its life
		if _, err := f.WriteAt(copied, start); err != nil {
			return err
		}
	}
	return nil
}
