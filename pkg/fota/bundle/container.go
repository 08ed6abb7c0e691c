package bundle

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"birthmark/pkg/fota"
)

const (
	trailerSize    = 8        // bytes: the length of the signature, big endian
	signatureLimit = 64 << 10 // bytes; what RAUC allows
)

// A container says where the parts of a bundle are:
//
//	payload | CMS | length of the CMS
type container struct {
	payload   int64  // bytes of the payload, which begins the file
	signature []byte // CMS, DER
}

// readContainer reads the last bytes of a bundle, and nothing of its payload.
func readContainer(r io.ReaderAt, size int64) (container, error) {
	if size < trailerSize {
		return container{}, fota.Refuse(fota.StageContainer, "trailer", "%d bytes are no bundle", size)
	}
	var trailer [trailerSize]byte
	if err := readFull(r, trailer[:], size-trailerSize); err != nil {
		return container{}, fmt.Errorf("cannot read the end of the bundle: %w", err)
	}
	// Compared while it is unsigned: half of its values are negative as an int64.
	n := binary.BigEndian.Uint64(trailer[:])
	switch rest := uint64(size - trailerSize); {
	case n == 0:
		return container{}, fota.Refuse(fota.StageContainer, "unsigned", "the bundle has no signature")
	case n > signatureLimit:
		return container{}, fota.Refuse(fota.StageContainer, "trailer", "a signature of %d bytes, limit %d", n, signatureLimit)
	case n >= rest:
		return container{}, fota.Refuse(fota.StageContainer, "trailer", "a signature of %d bytes leaves no payload in %d", n, size)
	}
	c := container{payload: size - trailerSize - int64(n), signature: make([]byte, n)}
	if err := readFull(r, c.signature, c.payload); err != nil {
		return container{}, fmt.Errorf("cannot read the signature: %w", err)
	}
	return c, nil
}

// readFull fills p from off, or says why not. A source that ends early is in trouble:
// its size was known.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}
