package bundle

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"

	"birthmark/pkg/fota"
)

const (
	blockSize = 4096
	hashSize  = sha256.Size
	fanOut    = blockSize / hashSize // hashes in a block of the tree
)

// A tree is a hash tree as dm-verity has it (the kernel's admin-guide/device-mapper/verity),
// version 1, without a superblock: it lies behind the data, the root's level first,
// every level a row of blocks of hashes, filled up with zeros.
type tree struct {
	r      io.ReaderAt
	root   [hashSize]byte
	salt   [32]byte
	hash   hash.Hash
	digest [hashSize]byte // of the last sum
	levels []level        // the one of the data's own hashes first
}

// A level knows where its blocks are, and the one of them that was verified last.
type level struct {
	off   int64 // of its first block
	count int64 // of its blocks
	below int64 // blocks that it has hashes of
	index int64 // of the block kept; -1 for none
	block [blockSize]byte
}

// newTree returns the tree of a payload, and how many bytes of data are in front of it.
// Nothing is read. A payload whose length is not the one that was signed is refused.
func newTree(r io.ReaderAt, payload int64, v fota.Verity) (*tree, int64, error) {
	data := payload - v.Size
	if v.Size <= 0 || v.Size%blockSize != 0 || payload%blockSize != 0 || data <= blockSize {
		return nil, 0, fota.Refuse(fota.StagePayload, "geometry",
			"%d bytes are no payload with a hash tree of %d", payload, v.Size)
	}
	t := &tree{r: r, root: v.Root, salt: v.Salt, hash: sha256.New()}
	blocks := int64(0)
	for below := data / blockSize; below > 1; {
		l := level{count: (below + fanOut - 1) / fanOut, below: below, index: -1}
		t.levels = append(t.levels, l)
		blocks += l.count
		below = l.count
	}
	// A hundredth of an int64 at most, whatever was signed: no overflow.
	if blocks*blockSize != v.Size {
		return nil, 0, fota.Refuse(fota.StagePayload, "geometry",
			"a hash tree over %d bytes has %d, not %d", data, blocks*blockSize, v.Size)
	}
	off := data
	for i := len(t.levels) - 1; i >= 0; i-- {
		t.levels[i].off = off
		off += t.levels[i].count * blockSize
	}
	return t, data, nil
}

// load implements [loader].
func (t *tree) load(p []byte, off int64) error {
	if err := readFull(t.r, p, off); err != nil {
		return fmt.Errorf("cannot read the payload: %w", err)
	}
	for i := off / blockSize; len(p) > 0; i++ {
		want, err := t.want(i)
		if err != nil {
			return err
		}
		if !bytes.Equal(t.sum(p[:blockSize]), want) {
			return fota.Refuse(fota.StagePayload, "block", "block %d is not the one that was signed", i)
		}
		p = p[blockSize:]
	}
	return nil
}

// want returns the hash that a block of data must have. It is valid until the next
// call.
func (t *tree) want(block int64) ([]byte, error) {
	// Down from the root: a block of hashes is verified before it is believed.
	want := t.root[:]
	for i := len(t.levels) - 1; i >= 0; i-- {
		l := &t.levels[i]
		child := block // of this level's blocks, the index of the one below
		for range i {
			child /= fanOut
		}
		if index := child / fanOut; l.index != index {
			if err := t.fetch(l, index, want); err != nil {
				return nil, err
			}
		}
		want = l.block[child%fanOut*hashSize:][:hashSize]
	}
	return want, nil
}

// fetch reads and verifies a block of hashes.
func (t *tree) fetch(l *level, index int64, want []byte) error {
	l.index = -1
	if err := readFull(t.r, l.block[:], l.off+index*blockSize); err != nil {
		return fmt.Errorf("cannot read the hash tree: %w", err)
	}
	if !bytes.Equal(t.sum(l.block[:]), want) {
		return fota.Refuse(fota.StagePayload, "tree", "block %d of %d of the hash tree is not the one that was signed", index, l.count)
	}
	// Signed or not, bytes that nobody reads are no place to hide something.
	if used := l.below - index*fanOut; used < fanOut && len(bytes.TrimLeft(l.block[used*hashSize:], "\x00")) > 0 {
		return fota.Refuse(fota.StagePayload, "padding", "the hash tree is not filled up with zeros")
	}
	l.index = index
	return nil
}

// sum returns the salted hash of a block. It is valid until the next call.
func (t *tree) sum(b []byte) []byte {
	t.hash.Reset()
	t.hash.Write(t.salt[:])
	t.hash.Write(b)
	return t.hash.Sum(t.digest[:0])
}
