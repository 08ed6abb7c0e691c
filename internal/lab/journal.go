package lab

import (
	"errors"
	"fmt"
	"os"
)

// journalLimit is the size, in bytes, at which a journal begins anew.
const journalLimit = 16 << 20

// A journal is a file to append lines to, that does not grow for ever: what was in it
// goes to PATH.1, in place of what was there.
type journal struct {
	path  string
	limit int64
	file  *os.File // nil if it could not be opened again
	size  int64
}

func openJournal(path string) (*journal, error) {
	j := &journal{path: path, limit: journalLimit}
	return j, j.open()
}

func (j *journal) open() error {
	f, err := os.OpenFile(j.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	j.file, j.size = f, info.Size()
	return nil
}

// Write appends a line. After an error the next one tries again.
func (j *journal) Write(line []byte) (int, error) {
	if j.file == nil {
		if err := j.open(); err != nil {
			return 0, err
		}
	}
	if j.size+int64(len(line)) > j.limit {
		if err := j.turn(); err != nil {
			return 0, err
		}
	}
	n, err := j.file.Write(line)
	j.size += int64(n)
	return n, err
}

// turn begins a new file.
func (j *journal) turn() error {
	err := j.Close()
	if err == nil {
		err = os.Rename(j.path, j.path+".1")
	}
	if err == nil {
		err = j.open()
	}
	if err != nil {
		return fmt.Errorf("cannot begin %s anew: %w", j.path, err)
	}
	return nil
}

// Close closes the file.
func (j *journal) Close() error {
	f := j.file
	if f == nil {
		return nil
	}
	j.file = nil
	return f.Close()
}
