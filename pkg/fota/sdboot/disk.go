package sdboot

import (
	"crypto/sha256"
	"io"
	"os"
)

// A disk is all that this package does to change what lies on the EFI system partition.
// The crash test stands in between: it records what is done, and keeps some of it from
// happening.
type disk interface {
	// create makes a file that is not there yet.
	create(path string) (file, error)
	rename(from, to string) error
	remove(path string) error
	// sync makes durable what is in a file, and on FAT where it begins.
	sync(path string) error
	// syncFolder makes durable what was made, renamed and removed in a folder.
	syncFolder(path string) error
}

// A file is one that is being written.
type file interface {
	io.WriteCloser
	Sync() error
}

type realDisk struct{}

func (realDisk) rename(from, to string) error { return os.Rename(from, to) }
func (realDisk) remove(path string) error     { return os.Remove(path) }
func (realDisk) syncFolder(path string) error { return realDisk{}.sync(path) }

func (realDisk) create(path string) (file, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

func (realDisk) sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

const chunkSize = 1 << 20 // bytes that are copied at once

// hash is the sum of all that r has.
func hash(r io.Reader) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	if _, err := io.CopyBuffer(h, onlyReader{r}, make([]byte, chunkSize)); err != nil {
		return sum, err
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

type onlyReader struct{ io.Reader }
