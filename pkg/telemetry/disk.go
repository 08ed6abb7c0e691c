package telemetry

import (
	"io"
	"os"
)

// A disk is all that this package does to change what lies on one. The crash test
// stands in between: it records what is done, and keeps some of it from happening.
type disk interface {
	// open opens a file to be read from its beginning and written to at its end, and
	// makes it if it is not there.
	open(path string) (file, error)
	// create does so with a file that has no contents yet, or loses them.
	create(path string) (file, error)
	rename(from, to string) error
	remove(path string) error
	// syncFolder makes durable what was made, renamed and removed in a folder.
	syncFolder(path string) error
}

type file interface {
	io.ReadWriteCloser
	Sync() error
	Truncate(size int64) error
}

type realDisk struct{}

func (realDisk) rename(from, to string) error { return os.Rename(from, to) }
func (realDisk) remove(path string) error     { return os.Remove(path) }

func (realDisk) open(path string) (file, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
}

func (realDisk) create(path string) (file, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_TRUNC, 0o600)
}

func (realDisk) syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
