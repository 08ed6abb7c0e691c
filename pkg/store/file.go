package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// draftSuffix is appended to a file's name while its next contents are written.
// The name is fixed, so that a process that is killed leaves one draft at most.
const draftSuffix = ".new"

// lockPatience is how long Open waits for a lock. [Read] holds it for an instant,
// to see whether it can be had; an agent holds it for ever.
const lockPatience = 100 * time.Millisecond

var errTooBig = fmt.Errorf("more than %d bytes", fileLimit)

// An unsyncedError is a file that shows its new contents, which a power cut may
// yet take back.
type unsyncedError struct{ err error }

func (e *unsyncedError) Error() string { return e.err.Error() }
func (e *unsyncedError) Unwrap() error { return e.err }

// WriteFile replaces the file at path, or makes it, with the same promise as a
// Store's: old contents or new, and the new once it returned nil. On an error the
// file is as it was, unless the folder was what could not be synced.
func WriteFile(path string, text []byte, mode fs.FileMode) error {
	if err := replace(realDisk{}, path, text, mode); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return nil
}

// SyncFolder makes durable what was made, renamed and removed in the folder dir.
func SyncFolder(dir string) error {
	if err := (realDisk{}).syncFolder(dir); err != nil {
		return fmt.Errorf("cannot sync %s: %w", dir, err)
	}
	return nil
}

// replace writes text beside path, syncs it, renames it over path, and syncs the
// folder so that the rename itself survives a power cut. A disk without room is
// ErrFull.
func replace(d disk, path string, text []byte, mode fs.FileMode) error {
	draft := path + draftSuffix
	err := writeNew(d, draft, text, mode)
	if err == nil {
		err = d.rename(draft, path)
	}
	if err != nil {
		// A draft that stays is replaced by the next one.
		_ = d.remove(draft)
		return full(err)
	}
	if err := d.syncFolder(filepath.Dir(path)); err != nil {
		return &unsyncedError{full(err)}
	}
	return nil
}

// writeNew writes and syncs a file that nobody else has open.
func writeNew(d disk, path string, text []byte, mode fs.FileMode) error {
	f, err := d.create(path, mode)
	if errors.Is(err, fs.ErrExist) {
		if err := d.remove(path); err != nil {
			return err
		}
		f, err = d.create(path, mode)
	}
	if err != nil {
		return err
	}
	if _, err = f.Write(text); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// full marks an error that is about room with ErrFull.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// readFile reads a state file: a regular one, and not more than its limit.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, fileLimit+1))
	if err == nil && len(text) > fileLimit {
		err = errTooBig
	}
	return text, err
}

// makeFolder makes the folder path and those above it, for their owner only, and
// makes them durable.
func makeFolder(d disk, path string) error {
	err := d.mkdir(path, 0o700)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeFolder(d, filepath.Dir(path)); err != nil {
			return err
		}
		err = d.mkdir(path, 0o700)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return d.syncFolder(filepath.Dir(path))
}

// LockFolder takes the lock that a Store has on its folder, which is there: for whoever
// keeps something else in one. Closing the file gives it back, as does the end of the
// process. ErrLocked when another holds it for more than an instant.
func LockFolder(dir string) (*os.File, error) {
	f, err := lockFolder(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot lock %s: %w", dir, err)
	}
	return f, nil
}

func lockFolder(dir string) (*os.File, error) {
	for deadline := time.Now().Add(lockPatience); ; {
		f, err := tryLock(dir)
		if !errors.Is(err, ErrLocked) || time.Now().After(deadline) {
			return f, err
		}
		time.Sleep(lockPatience / 10)
	}
}

func tryLock(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = ErrLocked
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
