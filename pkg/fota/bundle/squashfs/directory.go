package squashfs

import (
	"fmt"
	"strings"
)

// kinds are the types of inodes, as they stand in a directory. In an inode, a number
// may be higher by extendedKind: it is one with more fields.
var kinds = map[uint16]string{
	kindDir: "a folder", kindFile: "a file", 3: "a symbolic link", 4: "a block device",
	5: "a character device", 6: "a pipe", 7: "a socket",
}

const (
	kindDir      = 1
	kindFile     = 2
	extendedKind = 7
)

const (
	emptyDir   = 3   // what the size of an empty directory is said to be
	runLimit   = 256 // entries behind one header
	noFragment = ^uint32(0)
)

// inode is struct squashfs_base_inode, with which all inodes begin.
type inode struct {
	Kind, Mode, UID, GID uint16
	Time, Number         uint32
}

// A file is what is known of a file before anything of its contents is read.
type file struct {
	File
	start     uint64 // of its first block, in the file system
	fragment  uint32 // index of the fragment with its last bytes, or noFragment
	offset    uint32 // of these bytes in it
	listBlock uint64 // place of the list of its blocks in the table of inodes
	listOff   int
}

// readRoot fills f.files from the root directory, and holds the number of inodes that
// the superblock names against what is there.
func (f *FS) readRoot() error {
	s := &f.super
	inodes := f.newCursor("inode", int64(s.InodeTable), int64(s.DirTable), openLimit)
	dir, size, err := f.seekRoot(inodes)
	if err != nil {
		return err
	}
	seen := map[uint32]bool{} // numbers of inodes; hard links share one
	var total int64
	for size > 0 {
		var run struct{ Count, Block, Number uint32 } // struct squashfs_dir_header; Count is one too low
		if size -= 12; size < 0 {
			return bad("directory", "directory ends in a header")
		}
		if err := dir.decode(&run); err != nil {
			return err
		}
		if run.Count >= runLimit {
			return bad("directory", "%d entries behind one header, at most %d can be", run.Count, runLimit)
		}
		for range run.Count + 1 {
			if len(f.files) == fileCountLimit {
				return bad("limit", "more than %d files", fileCountLimit)
			}
			name, e, err := f.readEntry(dir, &size)
			if err != nil {
				return err
			}
			number := run.Number + uint32(int32(e.Number))
			x, err := f.readFile(inodes, name, uint64(run.Block), int(e.Offset), number)
			if err != nil {
				return err
			}
			if total += x.Size; total > totalLimit {
				return bad("limit", "files of more than %d bytes together", int64(totalLimit))
			}
			seen[number] = true
			f.files = append(f.files, x)
		}
	}
	if len(seen)+1 != int(s.Inodes) {
		return bad("superblock", "squashfs of %d inodes, its root and its files have %d", s.Inodes, len(seen)+1)
	}
	return nil
}

// seekRoot returns a cursor at the root's entries, and how many bytes these are.
func (f *FS) seekRoot(inodes *cursor) (*cursor, int64, error) {
	if err := inodes.seek(f.super.Root>>16, int(f.super.Root&0xffff)); err != nil {
		return nil, 0, err
	}
	var root inode
	if err := inodes.decode(&root); err != nil {
		return nil, 0, err
	}
	var block, size uint32
	var off uint16
	var err error
	switch root.Kind {
	case kindDir:
		var d struct { // struct squashfs_dir_inode
			Block, Links uint32
			Size, Offset uint16
			Parent       uint32
		}
		err = inodes.decode(&d)
		block, off, size = d.Block, d.Offset, uint32(d.Size)
	case kindDir + extendedKind:
		var d struct { // struct squashfs_ldir_inode
			Links, Size, Block, Parent uint32
			Indexes, Offset            uint16
			Xattr                      uint32
		}
		err = inodes.decode(&d)
		block, off, size = d.Block, d.Offset, d.Size
	default:
		return nil, 0, bad("inode", "the root is no folder: its inode is of type %d", root.Kind)
	}
	if err != nil {
		return nil, 0, err
	}
	if size < emptyDir {
		return nil, 0, bad("inode", "the root is a folder of %d bytes, an empty one has %d", size, emptyDir)
	}
	dir := f.newCursor("directory", int64(f.super.DirTable), f.super.dirEnd(), openLimit)
	if size > emptyDir {
		err = dir.seek(uint64(block), int(off))
	}
	return dir, int64(size) - emptyDir, err
}

// dirEntry is struct squashfs_dir_entry. Length is one too low.
type dirEntry struct {
	Offset       uint16
	Number       int16
	Kind, Length uint16
}

// readEntry reads an entry of the directory, of which size bytes are left, and its name.
func (f *FS) readEntry(dir *cursor, size *int64) (string, dirEntry, error) {
	var e dirEntry
	if *size -= 8; *size < 0 {
		return "", e, bad("directory", "directory ends in an entry")
	}
	if err := dir.decode(&e); err != nil {
		return "", e, err
	}
	if e.Length >= nameLimit {
		return "", e, bad("limit", "name of %d bytes, at most %d are read", int(e.Length)+1, nameLimit)
	}
	b := make([]byte, e.Length+1)
	if *size -= int64(len(b)); *size < 0 {
		return "", e, bad("directory", "directory ends in a name")
	}
	if err := dir.read(b); err != nil {
		return "", e, err
	}
	name := string(b)
	if name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return "", e, bad("name", "%q is no plain name", name)
	}
	if n := len(f.files); n > 0 && name <= f.files[n-1].Name {
		return "", e, bad("directory", "%q stands behind %q: names are not in order", name, f.files[n-1].Name)
	}
	if e.Kind != kindFile {
		kind := kinds[e.Kind]
		if kind == "" {
			kind = fmt.Sprintf("of type %d", e.Kind)
		}
		return "", e, bad("kind", "%q is %s: only regular files are read", name, kind)
	}
	return name, e, nil
}

// readFile reads a regular file's inode, which has that number.
func (f *FS) readFile(inodes *cursor, name string, block uint64, off int, number uint32) (file, error) {
	if err := inodes.seek(block, off); err != nil {
		return file{}, err
	}
	var head inode
	if err := inodes.decode(&head); err != nil {
		return file{}, err
	}
	if head.Number != number || number == 0 || number > f.super.Inodes {
		return file{}, bad("inode", "%q has the inode %d of %d, its entry says %d", name, head.Number, f.super.Inodes, number)
	}
	x := file{File: File{Name: name}}
	var size uint64
	var err error
	switch head.Kind {
	case kindFile:
		var i struct{ Start, Fragment, Offset, Size uint32 } // struct squashfs_reg_inode
		err = inodes.decode(&i)
		x.start, x.fragment, x.offset, size = uint64(i.Start), i.Fragment, i.Offset, uint64(i.Size)
	case kindFile + extendedKind:
		var i struct { // struct squashfs_lreg_inode
			Start, Size, Sparse            uint64
			Links, Fragment, Offset, Xattr uint32
		}
		err = inodes.decode(&i)
		x.start, x.fragment, x.offset, size = i.Start, i.Fragment, i.Offset, i.Size
	default:
		err = bad("inode", "%q is a file by its entry, its inode is of type %d", name, head.Kind)
	}
	if err != nil {
		return file{}, err
	}
	if size > fileLimit {
		return file{}, bad("limit", "%q has %d bytes, at most %d are read", name, size, int64(fileLimit))
	}
	x.Size = int64(size)
	x.listBlock, x.listOff = inodes.place()
	return x, f.checkFile(&x)
}

// checkFile holds what an inode says against the superblock.
func (f *FS) checkFile(x *file) error {
	s := &f.super
	if x.start > s.InodeTable {
		return bad("inode", "%q begins at %d, behind the blocks of data", x.Name, x.start)
	}
	if x.fragment == noFragment {
		return nil
	}
	tail := uint64(x.Size) % uint64(s.BlockSize)
	switch {
	case x.fragment >= s.Fragments:
		return bad("fragment", "%q ends in fragment %d of %d", x.Name, x.fragment, s.Fragments)
	case tail == 0:
		return bad("fragment", "%q ends in a fragment, and in whole blocks", x.Name)
	case uint64(x.offset)+tail > uint64(s.BlockSize):
		return bad("fragment", "%q ends at byte %d of a fragment, in blocks of %d", x.Name, uint64(x.offset)+tail, s.BlockSize)
	}
	return nil
}
