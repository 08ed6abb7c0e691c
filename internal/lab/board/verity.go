package board

import (
	"crypto/sha256"
	"slices"
)

const blockSize = 4096

// hashTree is the tree of hashes over data, whole blocks, with its top first: format 1 of
// the kernel's dm-verity with SHA-256, the salt before each block, and no superblock. The
// root is the hash of the top.
func hashTree(data []byte, salt [32]byte) (tree []byte, root [32]byte) {
	for level := data; ; {
		level = hashes(level, salt)
		tree = slices.Concat(level, tree)
		if len(level) == blockSize {
			return tree, blockHash(level, salt)
		}
	}
}

// hashes are those of all blocks, in whole blocks, the rest zero.
func hashes(data []byte, salt [32]byte) (level []byte) {
	for block := range slices.Chunk(data, blockSize) {
		sum := blockHash(block, salt)
		level = append(level, sum[:]...)
	}
	return pad(level)
}

func blockHash(block []byte, salt [32]byte) [32]byte {
	return sha256.Sum256(slices.Concat(salt[:], block))
}

// pad adds zeros up to a whole block.
func pad(b []byte) []byte { return append(b, make([]byte, -len(b)&(blockSize-1))...) }
