// Package crashdisk is a disk for tests that knows what a power cut may leave of it.
//
// A [Disk] is a folder of the real file system. Whatever is done to it through the
// Disk happens there at once, as a program sees it, and is noted. [Disk.Cut] then
// yields every [Image] that the disk could hold if the power failed now; a new Disk
// can begin with each. A [Survey] does that at every call, and holds what is found
// against what was promised.
//
// The model is stricter than file systems are, so that what endures here endures on
// all of them:
//
//   - What was in a file when it was last synced is there, as long as nothing was done
//     to the file since.
//   - Until the file is synced again, its old contents may be found, or the new ones up
//     to any length, or the new ones with any of their blocks (eight of equal size) torn:
//     read as zeros or, where the file was made shorter before, as what was there.
//   - Until a folder is synced, each name that was made, moved or removed in it may be as
//     before or as after, whatever became of the others and of the contents. A move
//     happens as a whole or not at all.
//   - A folder whose own name is lost takes with it what is in it.
//
// Not in the model: what was synced and decays, a disk that says it has synced and has
// not (but see [Disk.Idle]), moves from one folder to another, and writes that do not
// append. Files and folders that were not changed through the Disk are as they were in
// its first image.
package crashdisk

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The calls by the names that Before is asked with.
const (
	Mkdir      = "mkdir"
	Open       = "open"
	Rename     = "rename"
	Remove     = "remove"
	SyncFolder = "sync folder"
	Write      = "write"
	Truncate   = "truncate"
	Sync       = "sync"
	Close      = "close"
)

// A Disk passes on what is done below Root. It is for one goroutine at a time.
type Disk struct {
	Root string
	// Before, if set, is asked before each call and may let it fail.
	Before func(call string) error
	// Idle is a call, Sync or SyncFolder, that does nothing and says that it did: to see
	// a test go red.
	Idle string

	// Names are relative to Root. nil is a folder.
	names   map[string]*contents // as programs see them
	durable map[string]*contents
	pending []change // of names, not durable yet
}

// contents are those of a file, with any name or none.
type contents struct{ now, durable []byte }

// A change is what was done to the names in a folder.
type change struct {
	folder string
	do     func(map[string]*contents)
}

// New is a disk that holds img, all of it durable. It is removed at the end of the
// test, or before by Discard.
func New(tb testing.TB, img Image) *Disk {
	tb.Helper()
	root, err := os.MkdirTemp(scratch(), "crash")
	if err != nil {
		tb.Fatal(err)
	}
	d := &Disk{Root: root, names: map[string]*contents{}}
	tb.Cleanup(d.Discard)
	if err := img.write(root); err != nil {
		tb.Fatal(err)
	}
	for name, text := range img {
		d.names[name] = nil
		if text != nil {
			d.names[name] = &contents{text, text}
		}
	}
	d.durable = maps.Clone(d.names)
	return d
}

// scratch is in memory where that can be had: thousands of folders are made.
func scratch() string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return "/dev/shm"
	}
	return ""
}

// Discard removes what is below Root. A Survey makes thousands of disks in one test.
func (d *Disk) Discard() { os.RemoveAll(d.Root) }

// Mkdir is [os.Mkdir].
func (d *Disk) Mkdir(path string, mode fs.FileMode) error {
	name := d.rel(path)
	if err := d.ask(Mkdir); err != nil {
		return err
	}
	if err := os.Mkdir(path, mode); err != nil {
		return err
	}
	d.change(name, func(m map[string]*contents) { m[name] = nil })
	return nil
}

// OpenFile is [os.OpenFile], to append to a file or to make one.
func (d *Disk) OpenFile(path string, flag int, mode fs.FileMode) (*File, error) {
	name := d.rel(path)
	c := d.names[name]
	if c != nil && flag&(os.O_TRUNC|os.O_APPEND|os.O_EXCL) == 0 {
		panic("crashdisk: " + name + " is there, and not opened to append to")
	}
	if err := d.ask(Open); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, flag, mode)
	switch {
	case err != nil:
		return nil, err
	case c == nil:
		c = &contents{}
		d.change(name, func(m map[string]*contents) { m[name] = c })
	case flag&os.O_TRUNC != 0:
		c.now = nil
	}
	return &File{f, d, c}, nil
}

// Rename is [os.Rename] of a file within its folder.
func (d *Disk) Rename(from, to string) error {
	old, name := d.rel(from), d.rel(to)
	c, there := d.names[old]
	if there && c == nil || filepath.Dir(old) != filepath.Dir(name) {
		panic("crashdisk: " + old + " is a folder, or moves to another one")
	}
	if err := d.ask(Rename); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	d.change(name, func(m map[string]*contents) { delete(m, old); m[name] = c })
	return nil
}

// Remove is [os.Remove].
func (d *Disk) Remove(path string) error {
	name := d.rel(path)
	if err := d.ask(Remove); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	d.change(name, func(m map[string]*contents) { delete(m, name) })
	return nil
}

// SyncFolder makes durable what was done to the names in a folder.
func (d *Disk) SyncFolder(path string) error {
	folder := d.rel(path)
	if err := d.ask(SyncFolder); err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil || d.Idle == SyncFolder {
		return err
	}
	d.pending = slices.DeleteFunc(d.pending, func(c change) bool {
		if c.folder == folder {
			c.do(d.durable)
		}
		return c.folder == folder
	})
	return nil
}

// change does something to the names in the folder of name, not yet durably.
func (d *Disk) change(name string, do func(map[string]*contents)) {
	do(d.names)
	d.pending = append(d.pending, change{filepath.Dir(name), do})
}

func (d *Disk) ask(call string) error {
	if d.Before == nil {
		return nil
	}
	return d.Before(call)
}

func (d *Disk) rel(path string) string {
	name, err := filepath.Rel(d.Root, path)
	if err != nil || name == ".." || strings.HasPrefix(name, "../") {
		panic("crashdisk: outside of the disk: " + path)
	}
	return name
}

// A File is an open file of a Disk.
type File struct {
	file *os.File
	disk *Disk
	c    *contents
}

// Read reads, which changes nothing: it is not asked for.
func (f *File) Read(b []byte) (int, error) { return f.file.Read(b) }

// Write writes half when it is to fail: a disk does not fill up between files.
func (f *File) Write(b []byte) (int, error) {
	err := f.disk.ask(Write)
	if err != nil {
		b = b[:len(b)/2]
	}
	n, werr := f.file.Write(b)
	f.c.now = append(slices.Clip(f.c.now), b[:n]...)
	if err == nil {
		err = werr
	}
	return n, err
}

// Sync makes durable what is in the file, whatever its name.
func (f *File) Sync() error {
	if err := f.disk.ask(Sync); err != nil {
		return err
	}
	if f.disk.Idle != Sync {
		f.c.durable = f.c.now
	}
	return nil
}

// Truncate makes the file shorter.
func (f *File) Truncate(size int64) error {
	if err := f.disk.ask(Truncate); err != nil {
		return err
	}
	if size > int64(len(f.c.now)) {
		panic("crashdisk: a file is made longer")
	}
	if err := f.file.Truncate(size); err != nil {
		return err
	}
	f.c.now = slices.Clip(f.c.now[:size])
	return nil
}

// Close closes the file, even if it says that it cannot.
func (f *File) Close() error {
	err := f.disk.ask(Close)
	if cerr := f.file.Close(); err == nil {
		err = cerr
	}
	return err
}
