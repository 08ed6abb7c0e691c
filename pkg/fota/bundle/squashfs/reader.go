package squashfs

import (
	"encoding/binary"
	"io"
)

// A Reader reads a file from its beginning to its end, block by block. It is best used
// by [io.Copy], which gets each block without another copy. After an error it returns
// the same error for ever.
type Reader struct {
	fs   *FS
	file *file
	list *cursor // of the sizes of the blocks

	next  int64  // where the next block lies
	left  int64  // bytes of the file that are not unpacked yet
	block []byte // bytes of buf that are unpacked and not read yet
	buf   []byte
	err   error
}

// newReader returns a Reader of x.
func (f *FS) newReader(x *file) (*Reader, error) {
	size := int64(f.super.BlockSize)
	r := &Reader{fs: f, file: x, next: int64(x.start), left: x.Size}
	// The list, and what of other metadata stands before and behind it.
	const entry = 4
	blocks := (x.Size + size - 1) / size
	budget := int(blocks)*entry + 2*metadataSize
	r.list = f.newCursor("inode", int64(f.super.InodeTable), int64(f.super.DirTable), budget)
	if x.Size == 0 {
		return r, nil
	}
	return r, r.list.seek(x.listBlock, x.listOff)
}

// Size is the number of bytes in the file.
func (r *Reader) Size() int64 { return r.file.Size }

// Read reads from one block at most.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := r.fill(); err != nil {
		return 0, err
	}
	n := copy(p, r.block)
	r.block = r.block[n:]
	return n, nil
}

// WriteTo writes what is left of the file to w, in one call a block.
func (r *Reader) WriteTo(w io.Writer) (int64, error) {
	var written int64
	for {
		if err := r.fill(); err == io.EOF {
			return written, nil
		} else if err != nil {
			return written, err
		}
		n, err := w.Write(r.block)
		written += int64(n)
		if err == nil && n < len(r.block) {
			err = io.ErrShortWrite
		}
		r.block = r.block[n:]
		if err != nil {
			return written, err
		}
	}
}

// fill sees to it that there is something in r.block.
func (r *Reader) fill() error {
	if len(r.block) > 0 {
		return nil
	}
	if r.err == nil {
		r.err = r.unpackNext()
	}
	return r.err
}

// unpackNext unpacks the next block, which is a fragment's part if it is the last and
// not a whole one.
func (r *Reader) unpackNext() error {
	if r.left == 0 {
		return io.EOF
	}
	size := int64(r.fs.super.BlockSize)
	if r.buf == nil {
		r.buf = make([]byte, size)
	}
	if r.left < size && r.file.fragment != noFragment {
		return r.unpackFragment()
	}
	var b [4]byte
	if err := r.list.read(b[:]); err != nil {
		return err
	}
	word := binary.LittleEndian.Uint32(b[:])
	want := r.buf[:min(size, r.left)]
	if word == 0 { // a hole
		clear(want)
	} else {
		n, err := r.fs.readBlock(want, r.next, word, "block", r.file.Name)
		if err != nil {
			return err
		}
		if n != len(want) {
			return bad("block", "block of %q of %d bytes, want %d", r.file.Name, n, len(want))
		}
		r.next += int64(word &^ dataStored)
	}
	r.block = want
	r.left -= int64(len(want))
	return nil
}

// unpackFragment unpacks the fragment that has the last bytes of the file.
func (r *Reader) unpackFragment() error {
	pos, word, err := r.fs.fragment(r.file.fragment)
	if err != nil {
		return err
	}
	n, err := r.fs.readBlock(r.buf, pos, word, "fragment", r.file.Name)
	if err != nil {
		return err
	}
	from, to := int64(r.file.offset), int64(r.file.offset)+r.left
	if to > int64(n) {
		return bad("fragment", "%q ends at byte %d of a fragment of %d", r.file.Name, to, n)
	}
	r.block = r.buf[from:to]
	r.left = 0
	return nil
}

// readBlock unpacks the block at pos, whose size is in word, into dst, and returns how
// many bytes it has. The block lies before the tables, and is no larger packed than
// dst: mksquashfs stores what does not get smaller.
func (f *FS) readBlock(dst []byte, pos int64, word uint32, code, name string) (int, error) {
	size := int64(word &^ dataStored)
	end := int64(f.super.InodeTable)
	if size == 0 || size > int64(len(dst)) {
		return 0, bad(code, "block of %q of %d bytes in the file system, want 1 to %d", name, size, len(dst))
	}
	if pos < superblockSize || pos > end || size > end-pos {
		return 0, bad(code, "block of %q at %d, of %d bytes, lies outside of the blocks of data", name, pos, size)
	}
	if word&dataStored != 0 {
		return int(size), f.readAt(dst[:size], pos)
	}
	p, err := f.readPacked(pos, int(size))
	if err != nil {
		return 0, err
	}
	n, err := f.unpack(dst, p)
	if err != nil {
		return 0, bad(code, "cannot unpack a block of %q: %v", name, err)
	}
	return n, nil
}

const fragmentsPerBlock = metadataSize / 16

// fragmentBlocks is how many blocks of metadata a table of n fragments has.
func fragmentBlocks(n uint32) uint32 { return (n + fragmentsPerBlock - 1) / fragmentsPerBlock }

// fragment looks up where a fragment lies, and its size.
func (f *FS) fragment(index uint32) (pos int64, word uint32, err error) {
	s := &f.super
	var b [8]byte
	if err := f.readAt(b[:], int64(s.FragTable)+8*int64(index/fragmentsPerBlock)); err != nil {
		return 0, 0, err
	}
	block := binary.LittleEndian.Uint64(b[:])
	if block < s.DirTable {
		return 0, 0, bad("fragment", "fragment table at %d, the directories are at %d", block, s.DirTable)
	}
	c := f.newCursor("fragment", int64(s.DirTable), int64(s.FragTable), metadataSize)
	if err := c.seek(block-s.DirTable, int(index%fragmentsPerBlock)*16); err != nil {
		return 0, 0, err
	}
	var entry struct { // struct squashfs_fragment_entry
		Start        uint64
		Size, Unused uint32
	}
	if err := c.decode(&entry); err != nil {
		return 0, 0, err
	}
	if entry.Start > s.InodeTable {
		return 0, 0, bad("fragment", "fragment at %d, behind the blocks of data", entry.Start)
	}
	return int64(entry.Start), entry.Size, nil
}
