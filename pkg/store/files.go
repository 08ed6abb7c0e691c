package store

import (
	"fmt"
	"io/fs"
	"path/filepath"
)

// A File is what [WriteFiles] writes.
type File struct {
	Name string
	Text []byte
	Mode fs.FileMode
}

// WriteFiles replaces files of the folder dir, or makes them, with one sync of the
// folder for all. Each has its old contents or its new ones at any moment, and all
// have the new once it returned nil; before that, some may be old and others new.
func WriteFiles(dir string, files ...File) error {
	if err := replaceAll(realDisk{}, dir, files); err != nil {
		return fmt.Errorf("cannot write files in %s: %w", dir, err)
	}
	return nil
}

// replaceAll syncs every draft before the first takes its place.
func replaceAll(d disk, dir string, files []File) (err error) {
	draft := func(f File) string { return filepath.Join(dir, f.Name+draftSuffix) }
	defer func() {
		if err == nil {
			return
		}
		err = full(err)
		for _, f := range files {
			_ = d.remove(draft(f)) // one that stays is replaced by the next
		}
	}()
	for _, f := range files {
		if err := writeNew(d, draft(f), f.Text, f.Mode); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := d.rename(draft(f), filepath.Join(dir, f.Name)); err != nil {
			return err
		}
	}
	return d.syncFolder(dir)
}
