package slot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"birthmark/pkg/fota"
)

// CopyExactly copies size bytes from r, which has to end there, and returns their sum.
func CopyExactly(ctx context.Context, w io.Writer, r io.Reader, size int64) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	if err := copyExactly(ctx, io.MultiWriter(h, w), r, size); err != nil {
		return sum, err
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

func copyExactly(ctx context.Context, w io.Writer, r io.Reader, size int64) error {
	chunk := make([]byte, chunkSize)
	for left := size; left > 0; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		b := chunk[:min(left, chunkSize)]
		n, err := io.ReadFull(r, b)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return fmt.Errorf("it ends after %d bytes, want %d: %w", size-left+int64(n), size, io.ErrUnexpectedEOF)
		}
		if err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		left -= int64(n)
	}
	if n, err := io.ReadFull(r, chunk[:1]); n > 0 {
		return fmt.Errorf("it has more than %d bytes", size)
	} else if err != io.EOF {
		return err
	}
	return nil
}

// DropCache lets what is read from f, all of it synced, come from the medium.
func DropCache(f *os.File) error {
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return &os.PathError{Op: "fadvise", Path: f.Name(), Err: err}
	}
	return nil
}

// A Reader is an image on its way out of a bundle. It ends without an error only if the
// bundle says that all of it was right.
type Reader struct {
	*io.PipeReader
	image fota.Image
	done  chan error
}

// NewReader begins to read an image. [Reader.End] has to be called.
func NewReader(ctx context.Context, image fota.Image, copyImage fota.CopyImage, progress func(done, total int64)) *Reader {
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := copyImage(ctx, w, image, progress)
		w.CloseWithError(err)
		done <- err
	}()
	return &Reader{r, image, done}
}

// End waits for the image to be read, and says how it went, with what came of writing it
// and the sum of that. Whoever wrote is done: nothing reads any more.
func (r *Reader) End(wrote error, sum [sha256.Size]byte) error {
	r.CloseWithError(wrote)
	read := <-r.done
	switch {
	case read != nil && !errors.Is(read, io.ErrClosedPipe) && (wrote == nil || !errors.Is(read, wrote)):
		return read // which is why there was nothing to write
	case wrote != nil:
		return wrote
	case read != nil:
		return read
	case sum != r.image.SHA256:
		return ErrReadBack
	}
	return nil
}
