// Package squashfs reads the files in a squashfs 4.0 file system, as `rauc bundle`
// makes them for the payload of a bundle: a flat folder of regular files. It needs
// no mount, no loop device and no root, and it writes nothing.
//
//	fsys, err := squashfs.Open(payload, size)
//	r, err := fsys.Open("rootfs.img")
//	n, err := io.Copy(slot, r)
//
// The format is the kernel's (Documentation/filesystems/squashfs.rst, and
// fs/squashfs/squashfs_fs.h). All numbers are little-endian:
//
//	superblock | compressor options | data and fragments | inodes | directories |
//	fragment table | export table | id table | xattr table
//
// What is read: regular files in the root, of basic and extended inodes, with data
// blocks, sparse blocks and fragments, packed by gzip, xz (LZMA2 alone) or zstd, or
// not packed. What is refused, with the reason: every other compression; every other
// kind of file, so also folders; names that are no plain names; names that do not
// stand in order, so also twice; whatever points outside of where it should; counts that
// disagree; more than the limits below. What does no harm is not looked at: owners,
// modes, times, extended attributes, the table for NFS, and what lies behind the end
// that the superblock names.
//
// # Hostile bytes
//
// A file system is read with memory that is independent of its size: a block of input
// and one of output, at most 1 MiB each, and what the decompressor holds for a block of
// that size. No pointer can make a loop: tables are read forward only, and each reader
// of one has a budget. Nothing is unpacked beyond the size that was promised for it.
// That a block fits its checksum proves nothing: the caller sees to it that the bytes
// of the payload are those that were signed, and compares the file's hash.
//
// # Errors
//
// A [*FormatError] means that these bytes will never be read. Every other error is the
// payload's reader's own, and is returned as it is.
package squashfs

import (
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
)

// What is read at the most. The first three are the format's, or stricter.
const (
	blockLimit     = 1 << 20  // bytes of a block, unpacked: also zstd's window and xz's dictionary
	metadataSize   = 8 << 10  // bytes of a block of metadata, unpacked
	nameLimit      = 255      // bytes of a name
	fileCountLimit = 1024     // files
	openLimit      = 4 << 20  // bytes of metadata that Open unpacks
	fileLimit      = 64 << 30 // bytes of one file
	totalLimit     = 64 << 30 // bytes of all files
)

// A FormatError says why a file system is not read: it is damaged, it is hostile, or it
// has what this package does not read.
type FormatError struct {
	// Code is a word that stays the same over releases:
	//
	//	magic       it is no squashfs
	//	version     it is no squashfs 4.0
	//	compressor  it is packed by something that is not read
	//	superblock  its sizes, counts or positions cannot be
	//	limit       it has more of something than is read
	//	kind        a file in it is no regular file
	//	name        a file's name is no plain name
	//	directory   the directory is damaged
	//	inode       an inode or its list of blocks is damaged
	//	fragment    the fragment table, or a use of it, is damaged
	//	block       the contents of a file are damaged
	Code string
	Err  error // the reason, for people
}

func (e *FormatError) Error() string { return e.Err.Error() }

func (e *FormatError) Unwrap() error { return e.Err }

// bad returns a *FormatError, its reason formatted as by fmt.Errorf. It wraps no error of
// a decompressor: an io.ErrUnexpectedEOF in a block is none of the medium.
func bad(code, format string, args ...any) error {
	return &FormatError{Code: code, Err: fmt.Errorf(format, args...)}
}

// An FS is an open file system. It and its Readers are for one goroutine at a time.
type FS struct {
	r      io.ReaderAt
	super  superblock
	files  []file // in order of their names
	unpack unpacker
	packed []byte // what is to be unpacked; as large as any was
}

// A File is the name of a file and its size in bytes.
type File struct {
	Name string
	Size int64
}

// Open reads the superblock, the directory and the inodes of the file system in the
// first size bytes of r. It does not read what is in the files.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	f := &FS{r: r}
	if err := f.readSuperblock(size); err != nil {
		return nil, err
	}
	if err := f.readRoot(); err != nil {
		return nil, err
	}
	return f, nil
}

// Files returns all files, in order of their names.
func (f *FS) Files() []File {
	list := make([]File, len(f.files))
	for i := range f.files {
		list[i] = f.files[i].File
	}
	return list
}

// Open returns a reader of the file with that name; an error that is [fs.ErrNotExist]
// if there is none. A reader needs no closing.
func (f *FS) Open(name string) (*Reader, error) {
	i, found := slices.BinarySearchFunc(f.files, name, func(x file, name string) int {
		return strings.Compare(x.Name, name)
	})
	if !found {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return f.newReader(&f.files[i])
}

// readAt fills p from the file system's bytes at pos.
func (f *FS) readAt(p []byte, pos int64) error {
	n, err := f.r.ReadAt(p, pos)
	switch {
	case n == len(p):
		return nil
	case err == nil || err == io.EOF: // the size that Open was given is not true
		return io.ErrUnexpectedEOF
	}
	return err
}

// readPacked reads n bytes at pos into f.packed and returns them. They are good until
// the next call.
func (f *FS) readPacked(pos int64, n int) ([]byte, error) {
	if cap(f.packed) < n {
		f.packed = make([]byte, n)
	}
	p := f.packed[:n]
	return p, f.readAt(p, pos)
}
