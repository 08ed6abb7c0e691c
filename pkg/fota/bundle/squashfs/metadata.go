package squashfs

import "encoding/binary"

const (
	metadataStored = 1 << 15 // in the size of a block of metadata: it is not packed
	dataStored     = 1 << 24 // in the size of a block of data
)

// A cursor reads a table of metadata: blocks of 8 KiB, each packed by itself, one behind
// another. It has a budget of bytes to unpack, so that it ends whatever the pointers say.
type cursor struct {
	fs         *FS
	code       string // of errors
	start, end int64  // where the table lies
	budget     int    // bytes that may still be unpacked

	at    int64  // where the current block lies
	next  int64  // where the one behind it does
	block []byte // the current block, unpacked; nil before the first seek
	off   int    // what of it was read
	buf   [metadataSize]byte
}

// newCursor returns a cursor of the table at [start, end), which may unpack budget bytes.
func (f *FS) newCursor(code string, start, end int64, budget int) *cursor {
	return &cursor{fs: f, code: code, start: start, end: end, budget: budget}
}

// seek goes to the byte off of the unpacked block that lies block bytes behind the
// start of the table.
func (c *cursor) seek(block uint64, off int) error {
	if block >= uint64(c.end-c.start) {
		return bad(c.code, "block of metadata %d bytes into a table of %d", block, c.end-c.start)
	}
	if pos := c.start + int64(block); c.block == nil || pos != c.at {
		if err := c.load(pos); err != nil {
			return err
		}
	}
	if off > len(c.block) {
		return bad(c.code, "byte %d of a block of metadata of %d", off, len(c.block))
	}
	c.off = off
	return nil
}

// place is what seek needs to come back to where the cursor is.
func (c *cursor) place() (block uint64, off int) { return uint64(c.at - c.start), c.off }

// load unpacks the block at pos.
func (c *cursor) load(pos int64) error {
	const header = 2
	n := min(c.end-pos, header+metadataSize) // with the block, and perhaps some of the next
	if n <= header {
		return bad(c.code, "block of metadata behind the end of its table")
	}
	p, err := c.fs.readPacked(pos, int(n))
	if err != nil {
		return err
	}
	word := binary.LittleEndian.Uint16(p)
	size := int64(word &^ metadataStored)
	if size == 0 || size > n-header {
		return bad(c.code, "block of metadata of %d bytes, want 1 to %d", size, n-header)
	}
	if c.budget < metadataSize {
		return bad("limit", "more metadata than is read")
	}
	p = p[header : header+size]
	c.at, c.next, c.off = pos, pos+header+size, 0
	if word&metadataStored != 0 {
		c.block = c.buf[:copy(c.buf[:], p)]
	} else {
		m, err := c.fs.unpack(c.buf[:], p)
		if err != nil {
			return bad(c.code, "cannot unpack a block of metadata: %v", err)
		}
		c.block = c.buf[:m]
	}
	c.budget -= metadataSize
	return nil
}

// read fills p. Only the last block of a table is not full.
func (c *cursor) read(p []byte) error {
	for len(p) > 0 {
		if c.off == len(c.block) {
			if len(c.block) < metadataSize {
				return bad(c.code, "table of metadata ends early")
			}
			if err := c.load(c.next); err != nil {
				return err
			}
			continue
		}
		n := copy(p, c.block[c.off:])
		c.off += n
		p = p[n:]
	}
	return nil
}

// decode reads v, a pointer to a struct of numbers.
func (c *cursor) decode(v any) error {
	var buf [64]byte // no struct of the format is larger
	b := buf[:binary.Size(v)]
	if err := c.read(b); err != nil {
		return err
	}
	_, err := binary.Decode(b, binary.LittleEndian, v)
	return err
}
