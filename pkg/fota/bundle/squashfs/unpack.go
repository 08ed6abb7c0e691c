package squashfs

import (
	"bytes"
	"errors"
	"io"

	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// An unpacker unpacks all of src into dst and returns the number of bytes. More than dst
// holds is an error, as is anything behind the end in src. It keeps neither.
type unpacker func(dst, src []byte) (int, error)

var (
	errTooLong  = errors.New("it unpacks to more than it may")
	errTrailing = errors.New("there are bytes behind its end")
)

// newGzip unpacks zlib's format (RFC 1950), which squashfs calls gzip.
func newGzip() unpacker {
	var in bytes.Reader
	var z io.ReadCloser
	return func(dst, src []byte) (n int, err error) {
		in.Reset(src)
		if z == nil {
			z, err = zlib.NewReader(&in)
		} else {
			err = z.(zlib.Resetter).Reset(&in, nil)
		}
		if err != nil {
			return 0, err
		}
		if n, err = readAll(dst, z); err == nil && in.Len() > 0 {
			err = errTrailing
		}
		return n, err
	}
}

// newZstd unpacks Zstandard frames (RFC 8878). Their window is limited like the block.
func newZstd() unpacker {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxMemory(blockLimit), zstd.WithDecoderMaxWindow(blockLimit))
	return func(dst, src []byte) (int, error) {
		if err != nil {
			return 0, err
		}
		out, err := z.DecodeAll(src, dst[:0:len(dst)])
		if err != nil {
			return 0, err
		}
		return copy(dst, out), nil // where it is already
	}
}

// readAll reads r to its end into dst.
func readAll(dst []byte, r io.Reader) (int, error) {
	n := 0
	for n < len(dst) {
		m, err := r.Read(dst[n:])
		n += m
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
	var more [1]byte
	switch _, err := io.ReadFull(r, more[:]); err {
	case io.EOF:
		return n, nil
	case nil:
		return n, errTooLong
	default:
		return n, err
	}
}
