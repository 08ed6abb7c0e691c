package bundle

import (
	"crypto/sha256"
	"slices"
)

// A digest is the SHA-256 of an image, computed by a goroutine while the next blocks are
// read, verified and unpacked: by a second processor, if there is one. It costs a copy,
// which who has one processor only does without.
type digest struct {
	full, free chan []byte // copies of what was written; spanSize each
	sum        chan [sha256.Size]byte
}

// newDigest begins one, which has to be ended.
func newDigest() *digest {
	const ahead = 4 // buffers
	d := &digest{full: make(chan []byte, ahead), free: make(chan []byte, ahead), sum: make(chan [sha256.Size]byte, 1)}
	for range ahead {
		d.free <- make([]byte, 0, spanSize)
	}
	go func() {
		h := sha256.New()
		for b := range d.full {
			h.Write(b)
			d.free <- b[:0]
		}
		d.sum <- [sha256.Size]byte(h.Sum(nil))
	}()
	return d
}

// Write never fails.
func (d *digest) Write(p []byte) (int, error) {
	for part := range slices.Chunk(p, spanSize) {
		d.full <- append(<-d.free, part...)
	}
	return len(p), nil
}

// end returns the digest of what was written. It is called once.
func (d *digest) end() [sha256.Size]byte {
	close(d.full)
	return <-d.sum
}
