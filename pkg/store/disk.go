package store

import (
	"io"
	"io/fs"
	"os"
)

// A disk is all that this package does to change what lies on one. The crash test
// stands in between: it records what is done, and keeps some of it from
// happening.
type disk interface {
	mkdir(path string, mode fs.FileMode) error
	// create makes a file that is not there yet.
	create(path string, mode fs.FileMode) (file, error)
	rename(from, to string) error
	remove(path string) error
	// syncFolder makes durable what was made, renamed and removed in a folder.
	syncFolder(path string) error
}

// A file is one that is being written.
type file interface {
	io.WriteCloser
	// Sync makes the contents durable; the name is the folder's.
	Sync() error
}

type realDisk struct{}

func (realDisk) mkdir(path string, mode fs.FileMode) error { return os.Mkdir(path, mode) }
func (realDisk) rename(from, to string) error              { return os.Rename(from, to) }
func (realDisk) remove(path string) error                  { return os.Remove(path) }

func (realDisk) create(path string, mode fs.FileMode) (file, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
}

func (realDisk) syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
