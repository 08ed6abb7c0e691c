package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
)

// A disk is all that this package does to change what lies on one. Tests stand in
// between: they let it fail, and cut its power.
type disk interface {
	mkdir(path string) error
	// open opens a file to append to, and makes it if it is not there.
	open(path string) (file, error)
	rename(from, to string) error
	syncFolder(path string) error
}

type file interface {
	io.WriteCloser
	Sync() error
	Truncate(size int64) error
}

type realDisk struct{}

func (realDisk) mkdir(path string) error      { return os.Mkdir(path, 0o700) }
func (realDisk) rename(from, to string) error { return os.Rename(from, to) }

func (realDisk) open(path string) (file, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
}

func (realDisk) syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// readFile reads one file of a log.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f)
}

func readAll(r io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, fileLimit+1))
	if err == nil && len(text) > fileLimit {
		err = errTooBig
	}
	return text, err
}

// hashFile is the SHA-256 of a file of any size, in hex.
func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
