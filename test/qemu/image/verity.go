package image

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
)

const blockSize = 4096

// A Verity is how the kernel verifies a root file system, block by block.
type Verity struct {
	Root, Salt [32]byte
	Blocks     int64 // of data; the tree is behind them
}

// Arguments are those of the kernel's command line that the initrd reads.
func (v Verity) Arguments() string {
	return fmt.Sprintf("verity.blocks=%d verity.salt=%x verity.hash=%x", v.Blocks, v.Salt, v.Root)
}

// addTree writes the hash tree of the file system in a file behind it: format 1 of
// the kernel's dm-verity, without superblock, the same as "veritysetup format
// --no-superblock".
func addTree(f *os.File, blocks int64, salt [32]byte) (Verity, error) {
	tree, err := hashTree(f, blocks, salt)
	if err != nil {
		return Verity{}, err
	}
	_, err = f.WriteAt(tree, blocks*blockSize)
	return Verity{Root: blockHash(tree[:blockSize], salt), Salt: salt, Blocks: blocks}, err
}

// hashTree is that of some blocks, the top first.
func hashTree(r io.ReaderAt, blocks int64, salt [32]byte) (tree []byte, err error) {
	level, err := hashes(io.NewSectionReader(r, 0, blocks*blockSize), blocks, salt)
	if err != nil {
		return nil, err
	}
	tree = level
	for len(level) > blockSize {
		if level, err = hashes(bytes.NewReader(level), int64(len(level))/blockSize, salt); err != nil {
			return nil, err
		}
		tree = append(level[:len(level):len(level)], tree...)
	}
	return tree, nil
}

// Check reports whether a slot holds the file system of v and its tree, all of both. That it
// holds another is found at once.
func (v Verity) Check(slot io.ReaderAt) error {
	top := make([]byte, blockSize)
	if _, err := slot.ReadAt(top, v.Blocks*blockSize); err != nil {
		return err
	}
	if got := blockHash(top, v.Salt); got != v.Root {
		return fmt.Errorf("the root hash is %x, want %x", got, v.Root)
	}
	tree, err := hashTree(slot, v.Blocks, v.Salt)
	if err != nil {
		return err
	}
	behind := make([]byte, len(tree))
	if _, err := slot.ReadAt(behind, v.Blocks*blockSize); err != nil {
		return err
	}
	if !bytes.Equal(behind, tree) {
		return errors.New("the tree is not that of the file system before it")
	}
	return nil
}

// hashes are those of all blocks that r has, in whole blocks, the rest zero.
func hashes(r io.Reader, blocks int64, salt [32]byte) ([]byte, error) {
	perBlock := int64(blockSize / sha256.Size)
	level := make([]byte, 0, (blocks+perBlock-1)/perBlock*blockSize)
	block := make([]byte, blockSize)
	for range blocks {
		if _, err := io.ReadFull(r, block); err != nil {
			return nil, err
		}
		sum := blockHash(block, salt)
		level = append(level, sum[:]...)
	}
	return level[:cap(level)], nil
}

func blockHash(block []byte, salt [32]byte) [32]byte {
	return sha256.Sum256(append(salt[:len(salt):len(salt)], block...))
}
