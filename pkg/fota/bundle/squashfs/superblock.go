package squashfs

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

const (
	magic          = 0x73717368 // "hsqs"
	superblockSize = 96
	blockMin       = 4 << 10 // bytes of a block; the kernel reads no less
	absent         = ^uint64(0)
	hasOptions     = 1 << 10 // flag: compressor options follow the superblock
)

// superblock is struct squashfs_super_block.
type superblock struct {
	Magic       uint32
	Inodes      uint32
	Time        uint32
	BlockSize   uint32
	Fragments   uint32
	Compressor  uint16
	BlockLog    uint16
	Flags       uint16
	IDs         uint16
	Major       uint16
	Minor       uint16
	Root        uint64 // reference of the root's inode
	Size        uint64 // of the whole file system, without padding
	IDTable     uint64
	XattrTable  uint64
	InodeTable  uint64
	DirTable    uint64
	FragTable   uint64 // list of the blocks of the table
	ExportTable uint64
}

// compressors are the names of the numbers; those with an unpacker are read.
var compressors = map[uint16]struct {
	name string
	open func() unpacker
}{
	1: {"gzip", newGzip},
	2: {"lzma", nil},
	3: {"lzo", nil},
	4: {"xz", newXZ},
	5: {"lz4", nil},
	6: {"zstd", newZstd},
}

// readSuperblock reads the superblock of a file system in size bytes, and what of the
// compressor's options matters. After it, the tables lie in the file system one behind
// another, so that every position fits into an int64.
func (f *FS) readSuperblock(size int64) error {
	if size < superblockSize {
		return bad("superblock", "squashfs of %d bytes: its superblock has %d", size, superblockSize)
	}
	var b [superblockSize]byte
	if err := f.readAt(b[:], 0); err != nil {
		return err
	}
	s := &f.super
	if _, err := binary.Decode(b[:], binary.LittleEndian, s); err != nil {
		return bad("superblock", "cannot read the superblock: %v", err)
	}
	if s.Magic != magic {
		return bad("magic", "no squashfs: it begins with %x", b[:4])
	}
	if s.Major != 4 || s.Minor != 0 {
		return bad("version", "squashfs %d.%d is not read, only 4.0 is", s.Major, s.Minor)
	}
	c := compressors[s.Compressor]
	if c.open == nil {
		if c.name == "" {
			c.name = fmt.Sprintf("method %d", s.Compressor)
		}
		return bad("compressor", "squashfs packed by %s is not read, only by gzip, xz and zstd", c.name)
	}
	if s.BlockSize < blockMin || s.BlockSize > blockLimit || bits.OnesCount32(s.BlockSize) != 1 ||
		int(s.BlockLog) != bits.TrailingZeros32(s.BlockSize) {
		return bad("superblock", "blocks of %d bytes, as power of two %d: want one power, from %d to %d bytes",
			s.BlockSize, s.BlockLog, blockMin, blockLimit)
	}
	if s.Inodes == 0 {
		return bad("superblock", "squashfs without inodes")
	}
	if s.Inodes > fileCountLimit+1 { // the root is one
		return bad("limit", "squashfs of %d inodes, at most %d files are read", s.Inodes, fileCountLimit)
	}
	if s.Fragments > s.Inodes {
		return bad("superblock", "%d fragments for %d inodes", s.Fragments, s.Inodes)
	}
	if err := s.checkPlaces(uint64(size)); err != nil {
		return err
	}
	f.unpack = c.open()
	if s.Flags&hasOptions != 0 && c.name == "xz" {
		return f.readXZOptions()
	}
	return nil
}

// checkPlaces holds that every table begins inside a file of size bytes, and that
// those that are read stand in the order in which mksquashfs writes them.
func (s *superblock) checkPlaces(size uint64) error {
	if s.Size > size {
		return bad("superblock", "squashfs of %d bytes in a file of %d", s.Size, size)
	}
	if s.InodeTable < superblockSize || s.DirTable <= s.InodeTable || s.Size <= s.DirTable {
		return bad("superblock", "inodes at %d, directories at %d, end at %d: want them in this order",
			s.InodeTable, s.DirTable, s.Size)
	}
	if s.Fragments > 0 {
		blocks := uint64(fragmentBlocks(s.Fragments))
		if s.FragTable <= s.DirTable || s.FragTable > s.Size || s.Size-s.FragTable < 8*blocks {
			return bad("superblock", "fragment table at %d, directories at %d, end at %d: want it between these",
				s.FragTable, s.DirTable, s.Size)
		}
	}
	for _, t := range []struct {
		name string
		at   uint64
	}{{"id", s.IDTable}, {"xattr", s.XattrTable}, {"export", s.ExportTable}} {
		if t.at != absent && (t.at <= s.DirTable || t.at >= s.Size) {
			return bad("superblock", "%s table at %d, directories at %d, end at %d: want it between these",
				t.name, t.at, s.DirTable, s.Size)
		}
	}
	return nil
}

// dirEnd is where the directory table ends at the latest.
func (s *superblock) dirEnd() int64 {
	if s.Fragments > 0 {
		return int64(s.FragTable)
	}
	return int64(s.Size)
}

// readXZOptions refuses filters for machine code before LZMA2, which are not read. That
// of the dictionary's size is not needed: none is larger than a block.
func (f *FS) readXZOptions() error {
	c := f.newCursor("compressor", superblockSize, int64(f.super.InodeTable), metadataSize)
	var options struct{ Dictionary, Filters uint32 }
	if err := c.seek(0, 0); err != nil {
		return err
	}
	if err := c.decode(&options); err != nil {
		return err
	}
	if options.Filters != 0 {
		return bad("compressor", "squashfs packed by xz with filters for machine code is not read")
	}
	return nil
}
