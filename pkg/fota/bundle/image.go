package bundle

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"reflect"
	"slices"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/bundle/squashfs"
)

// Verify reads everything: every image, and then what is in the payload besides. Progress,
// if there is one, is told how many bytes of images and payload are done. What was read
// for an image is not read again, so of a verity bundle little is fetched twice.
func (b *Bundle) Verify(ctx context.Context, progress func(done, total int64)) error {
	t := &tally{report: progress}
	for _, image := range b.Manifest.Images {
		t.total += image.Size
	}
	payload := b.payload.visit(t)
	files, err := b.open(payload)
	if err != nil {
		return err
	}
	for _, image := range b.Manifest.Images {
		d := newDigest()
		err := copyImage(ctx, d, files, image, t)
		if sum := d.end(); err == nil {
			err = checkDigest(image, sum)
		}
		if err != nil {
			return err
		}
	}
	return payload.rest(ctx)
}

// CopyImage writes an image to w while it is verified. If it returns an error, what was
// written so far must not be used. Nothing is written if another image of the bundle is
// missing or has another size than the manifest says.
func (b *Bundle) CopyImage(ctx context.Context, w io.Writer, image fota.Image, progress func(done, total int64)) error {
	if !slices.Contains(b.Manifest.Images, image) {
		return fmt.Errorf("cannot copy image %s: it is not one of the bundle", image.File)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.files == nil { // its tables lie far from the images: they are fetched once
		var err error
		if b.files, err = b.open(b.payload); err != nil {
			return err
		}
	}
	h := sha256.New()
	if err := copyImage(ctx, io.MultiWriter(h, w), b.files, image, &tally{total: image.Size, report: progress}); err != nil {
		return err
	}
	return checkDigest(image, [sha256.Size]byte(h.Sum(nil)))
}

// open opens the file system in the payload, read through r, and holds it against the manifest as far
// as that is possible without reading images.
func (b *Bundle) open(r io.ReaderAt) (*squashfs.FS, error) {
	files, err := openFiles(r, b.payload.size)
	if err != nil {
		return nil, err
	}
	inner, err := readInner(files)
	if err != nil {
		return nil, err
	}
	// Nobody here acts upon the manifest in the payload if there is one in the signature.
	// But somebody else might, and two readers must not see two releases.
	signed := *b.Manifest
	signed.Verity = fota.Verity{}
	if inner != nil && !reflect.DeepEqual(signed, *inner) {
		return nil, refuse("inner", "the manifest in the payload is not the one that was signed")
	}
	for _, image := range b.Manifest.Images {
		if _, err := openImage(files, image); err != nil {
			return nil, err
		}
	}
	return files, nil
}

func openFiles(r io.ReaderAt, size int64) (*squashfs.FS, error) {
	files, err := squashfs.Open(r, size)
	if err != nil {
		return nil, unreadable("file system", err)
	}
	return files, nil
}

// readInner reads the manifest in the payload; nil if there is none.
func readInner(files *squashfs.FS) (*fota.Manifest, error) {
	r, err := files.Open(manifestName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, unreadable(manifestName, err)
	}
	if r.Size() > manifestLimit {
		return nil, refuse("size", "a manifest of %d bytes, limit %d", r.Size(), manifestLimit)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, unreadable(manifestName, err)
	}
	return readManifest(text, inside)
}

func openImage(files *squashfs.FS, image fota.Image) (*squashfs.Reader, error) {
	r, err := files.Open(image.File)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fota.Refuse(fota.StageImage, "missing", "there is no %s in the payload", image.File)
	case err != nil:
		return nil, unreadable(image.File, err)
	case r.Size() != image.Size:
		return nil, fota.Refuse(fota.StageImage, "size", "%s has %d bytes, not the %d that were signed", image.File, r.Size(), image.Size)
	}
	return r, nil
}

// copyImage writes an image to w. Its digest is the caller's to check.
func copyImage(ctx context.Context, w io.Writer, files *squashfs.FS, image fota.Image, t *tally) error {
	r, err := openImage(files, image)
	if err != nil {
		return err
	}
	c := &copied{ctx: ctx, w: w, tally: t}
	_, err = r.WriteTo(c) // all its bytes, which openImage has counted
	switch {
	case c.err != nil:
		return fmt.Errorf("cannot write image %s: %w", image.File, c.err)
	case err != nil:
		return unreadable(image.File, err)
	}
	return nil
}

func checkDigest(image fota.Image, sum [sha256.Size]byte) error {
	if sum != image.SHA256 {
		return fota.Refuse(fota.StageImage, "digest", "%s is not the image that was signed", image.File)
	}
	return nil
}

// Copied is what goes through to a writer, whose errors it tells from a reader's.
type copied struct {
	ctx   context.Context
	w     io.Writer
	tally *tally
	err   error // of w, or the context's
}

func (c *copied) Write(p []byte) (n int, err error) {
	if c.err = c.ctx.Err(); c.err != nil {
		return 0, c.err
	}
	n, c.err = c.w.Write(p)
	if c.err == nil && n < len(p) {
		c.err = io.ErrShortWrite
	}
	c.tally.add(n)
	return n, c.err
}

// unreadable says of an error of package squashfs whether it refuses the payload, or is
// about reading it.
func unreadable(what string, err error) error {
	var format *squashfs.FormatError
	if errors.As(err, &format) {
		return &fota.Refusal{Stage: fota.StageSquashfs, Code: format.Code, Err: fmt.Errorf("%s: %w", what, format.Err)}
	}
	return err
}
