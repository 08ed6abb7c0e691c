// Package store keeps what a device must remember: one value, in one file,
// replaced so that a power cut leaves the old contents or the new, never a
// mixture, and never the old once [Store.Update] has returned.
//
// A [Store] owns a folder. It holds a lock on it (flock(2)) from [Open] to
// [Store.Close], so that no two agents work on the same state. Files in it:
//
//	state.json            the value, at most 64 KiB, readable by its owner only
//	state.json.new        the next value, while it is being written
//	state.json.damaged-N  what was found in place of a value that can be read
//
// The happy path of an Update, in system calls: open(state.json.new, O_EXCL),
// write, fsync, close, rename(state.json.new, state.json), fsync(folder). Only then
// does [Store.Get] show the change. On the sad path the draft is removed; where only
// the last fsync failed, the previous contents are written back the same way. The
// package's crash test enumerates what a disk may hold after a power cut between
// any two of these calls.
//
// # Compatibility
//
// An older agent must be able to work on the state of a newer one: after a
// rollback it does. Therefore fields are only ever added, their absence is
// harmless, and what this version does not know, in any struct of the value,
// is kept byte for byte and written back. In a list, an element keeps its unknown
// fields as long as its known ones do not change, or else the length of the list
// does not. A map's entry, a list's element or a struct behind a pointer takes its
// unknown fields with it when it is removed; a struct that is set to zero does not.
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

const (
	fileName  = "state.json"
	fileLimit = 64 << 10 // bytes of state.json
	// damagedLimit is how many damaged files are kept: the first ones, which
	// tell most, and the last.
	damagedLimit = 8
)

var (
	// ErrLocked: another agent holds the folder.
	ErrLocked = errors.New("in use by another process")
	// ErrFull: the disk, or a quota, has no room. Nothing was changed.
	ErrFull = errors.New("no room")
)

// A Store holds one value of the struct T in memory and on disk. It is safe for
// concurrent use.
type Store[T any] struct {
	// Cut, if set, is called with "before write" and "after write" around every
	// write of the file. Tests panic in it.
	Cut func(where string)

	dir     string
	disk    disk
	damaged string

	mu   sync.Mutex
	text []byte   // what state.json holds; nil if there is none
	lock *os.File // nil when closed
}

// Open opens the store in the folder dir, which is made, for its owner only, if it
// is not there. Without a state file, or with a damaged one, the store is empty;
// [Store.Damaged] tells which. ErrLocked when another process holds the folder.
func Open[T any](dir string) (*Store[T], error) { return open[T](dir, realDisk{}) }

func open[T any](dir string, d disk) (_ *Store[T], err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot open the state in %s: %w", dir, err)
		}
	}()
	if err := makeFolder(d, dir); err != nil {
		return nil, err
	}
	lock, err := lockFolder(dir)
	if err != nil {
		return nil, err
	}
	s := &Store[T]{dir: dir, disk: d, lock: lock}
	// A draft that cannot be removed now is replaced by the next one.
	_ = d.remove(s.path() + draftSuffix)
	if err := s.load(); err != nil {
		lock.Close()
		return nil, err
	}
	return s, nil
}

// load reads the state file and puts a damaged one aside.
func (s *Store[T]) load() error {
	text, err := readFile(s.path())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// The folder's own entry may be as new as this: whoever made it was
		// perhaps stopped before making it durable.
		err := s.disk.syncFolder(filepath.Dir(s.dir))
		if errors.Is(err, fs.ErrPermission) {
			return nil // not ours to sync: it is there since before us
		}
		return err
	case errors.Is(err, errTooBig):
	case err != nil:
		return err
	default:
		if _, err := decode[T](text); err == nil {
			s.text = text
			return nil
		}
	}
	s.damaged, err = setAside(s.disk, s.path())
	return err
}

// setAside renames a damaged file, and makes that durable, so that no later write
// can replace it.
func setAside(d disk, path string) (string, error) {
	var aside string
	for n := 1; n <= damagedLimit; n++ {
		aside = fmt.Sprintf("%s.damaged-%d", path, n)
		if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err := d.rename(path, aside); err != nil {
		return "", err
	}
	return aside, d.syncFolder(filepath.Dir(path))
}

// Damaged is the path under which a damaged state file was kept when the store
// was opened, "" if there was none.
func (s *Store[T]) Damaged() string { return s.damaged }

// Get returns a copy of the value. It shares nothing with the store: fields that
// are not written to JSON are zero in it.
func (s *Store[T]) Get() T {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := decode[T](s.text)
	if err != nil {
		panic("store: " + err.Error()) // Open and Update have decoded this text
	}
	return v
}

// Update lets change alter a copy of the value and, if it returns nil, makes that
// copy durable before anyone can see it. An error, whose cause may be ErrFull or
// change's own, leaves memory and disk as they were. A change to the same is not
// written. change must not call the store.
func (s *Store[T]) Update(change func(*T) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, err := decode[T](s.text)
	if err != nil {
		panic("store: " + err.Error()) // Open and Update have decoded this text
	}
	if err := change(&next); err != nil {
		return err
	}
	if err := s.writeLocked(next); err != nil {
		return fmt.Errorf("cannot write %s: %w", s.path(), err)
	}
	return nil
}

func (s *Store[T]) writeLocked(next T) error {
	if s.lock == nil {
		return fs.ErrClosed
	}
	text, err := encode(next, s.text)
	if err != nil {
		return err
	}
	if string(text) == string(s.text) {
		return nil
	}
	if len(text) > fileLimit {
		return fmt.Errorf("%d bytes, limit %d", len(text), fileLimit)
	}
	if _, err := decode[T](text); err != nil {
		return fmt.Errorf("could not be read again: %w", err)
	}
	if s.Cut != nil {
		s.Cut("before write")
		defer s.Cut("after write")
	}
	err = replace(s.disk, s.path(), text, 0o600)
	var unsynced *unsyncedError
	if errors.As(err, &unsynced) {
		return errors.Join(err, s.restoreLocked())
	}
	if err != nil {
		return err
	}
	s.text = text
	return nil
}

// restoreLocked puts back what the file held before a change that shows but may
// not last.
func (s *Store[T]) restoreLocked() error {
	var err error
	if s.text != nil {
		err = replace(s.disk, s.path(), s.text, 0o600)
	} else if err = s.disk.remove(s.path()); err == nil {
		err = s.disk.syncFolder(s.dir)
	}
	if err != nil {
		return fmt.Errorf("the change may still be found after a restart: %w", err)
	}
	return nil
}

// Close lets go of the folder. The store cannot be updated any more.
func (s *Store[T]) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lock == nil {
		return nil
	}
	err := s.lock.Close()
	s.lock = nil
	return err
}

// Read returns the value in the folder dir and whether a process holds it now. It
// neither takes the folder nor changes anything in it. fs.ErrNotExist when there
// is no state file.
func Read[T any](dir string) (v T, held bool, err error) {
	text, err := readFile(filepath.Join(dir, fileName))
	if err == nil {
		v, err = decode[T](text)
	}
	if err != nil {
		return v, false, fmt.Errorf("cannot read the state in %s: %w", dir, err)
	}
	lock, err := tryLock(dir)
	if err != nil {
		return v, errors.Is(err, ErrLocked), nil
	}
	lock.Close()
	return v, false, nil
}

func (s *Store[T]) path() string { return filepath.Join(s.dir, fileName) }

// decode reads a state file; none is a zero value. It must hold one JSON object
// whose known fields have their types.
func decode[T any](text []byte) (v T, err error) {
	if text == nil {
		return v, nil
	}
	if _, ok := members(text); !ok {
		return v, errors.New("not a JSON object")
	}
	err = json.Unmarshal(text, &v)
	return v, err
}
