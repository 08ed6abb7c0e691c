package telemetry

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A crashDisk passes on what is done to a disk below root, notes it, and knows what
// a power cut may leave of it. It is stricter than file systems are:
//
//   - Until a file is synced, any part of what was written to it since may be there,
//     be missing, or read as zeros.
//   - Until a folder is synced, each name that was made, moved or removed in it may
//     be as before or as after, whatever became of the others and of the contents.
//
// before, if set, is asked before each call and may let it fail. A call in idle does
// nothing and says that it did.
type crashDisk struct {
	root   string
	before func(call string) error
	idle   string

	// Names are relative to root. nil is a folder.
	names   map[string]*crashFile // as programs see them
	durable map[string]*crashFile
	pending []func(map[string]*crashFile) // what was done to names since, by folder
	folders []string                      // the folder of each pending
}

// A crashFile is contents with any name or none.
type crashFile struct{ now, durable []byte }

// newCrashDisk begins with an image, all of it durable.
func newCrashDisk(tb testing.TB, img image) *crashDisk {
	root, err := os.MkdirTemp(scratch(), "crash")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(root) })
	d := &crashDisk{root: root, names: map[string]*crashFile{}}
	img.write(tb, d.root)
	for name, text := range img {
		d.names[name] = nil
		if text != nil {
			d.names[name] = &crashFile{text, text}
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

func (d *crashDisk) rel(path string) string {
	name, err := filepath.Rel(d.root, path)
	if err != nil || strings.HasPrefix(name, "..") {
		panic("outside of the disk: " + path)
	}
	return name
}

func (d *crashDisk) ask(call string) error {
	if d.before == nil {
		return nil
	}
	return d.before(call)
}

// entry does something to the names in the folder of path, not yet durably.
func (d *crashDisk) entry(path string, do func(map[string]*crashFile)) {
	do(d.names)
	d.pending = append(d.pending, do)
	d.folders = append(d.folders, filepath.Dir(d.rel(path)))
}

func (d *crashDisk) open(path string) (file, error) {
	if err := d.ask("open"); err != nil {
		return nil, err
	}
	f, err := realDisk{}.open(path)
	return d.opened(path, f, err)
}

func (d *crashDisk) create(path string) (file, error) {
	if err := d.ask("create"); err != nil {
		return nil, err
	}
	f, err := realDisk{}.create(path)
	if c := d.names[d.rel(path)]; err == nil && c != nil {
		c.now = nil
	}
	return d.opened(path, f, err)
}

func (d *crashDisk) opened(path string, f file, err error) (file, error) {
	if err != nil {
		return nil, err
	}
	name := d.rel(path)
	c := d.names[name]
	if c == nil {
		c = &crashFile{}
		d.entry(path, func(m map[string]*crashFile) { m[name] = c })
	}
	return &openFile{f, d, c}, nil
}

func (d *crashDisk) rename(from, to string) error {
	if err := d.ask("rename"); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	from, name := d.rel(from), d.rel(to)
	c := d.names[from]
	d.entry(to, func(m map[string]*crashFile) { delete(m, from); m[name] = c })
	return nil
}

func (d *crashDisk) remove(path string) error {
	if err := d.ask("remove"); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	name := d.rel(path)
	d.entry(path, func(m map[string]*crashFile) { delete(m, name) })
	return nil
}

func (d *crashDisk) syncFolder(path string) error {
	if err := d.ask("sync folder"); err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return err
	}
	if d.idle == "sync folder" {
		return nil
	}
	name := d.rel(path)
	var pending []func(map[string]*crashFile)
	var folders []string
	for i, do := range d.pending {
		if d.folders[i] == name {
			do(d.durable)
			continue
		}
		pending, folders = append(pending, do), append(folders, d.folders[i])
	}
	d.pending, d.folders = pending, folders
	return nil
}

type openFile struct {
	file
	disk *crashDisk
	c    *crashFile
}

// Write writes half when it is to fail: a disk does not fill up between files.
func (f *openFile) Write(b []byte) (int, error) {
	err := f.disk.ask("write")
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

func (f *openFile) Sync() error {
	if err := f.disk.ask("sync"); err != nil {
		return err
	}
	if f.disk.idle != "sync" {
		f.c.durable = f.c.now
	}
	return nil
}

func (f *openFile) Truncate(size int64) error {
	if err := f.disk.ask("truncate"); err != nil {
		return err
	}
	err := f.file.Truncate(size)
	if err == nil {
		f.c.now = slices.Clip(f.c.now[:size])
	}
	return err
}

func (f *openFile) Close() error {
	err := f.disk.ask("close")
	if cerr := f.file.Close(); err == nil {
		err = cerr
	}
	return err
}

// An image is what is on a disk: contents by name, nil for folders.
type image map[string][]byte

func (img image) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(img)) {
		if img[name] == nil {
			fmt.Fprintf(&b, "%s/\n", name)
		} else {
			fmt.Fprintf(&b, "%s: %q\n", name, img[name])
		}
	}
	return b.String()
}

func (img image) write(tb testing.TB, root string) {
	tb.Helper()
	for _, name := range slices.Sorted(maps.Keys(img)) { // folders come first
		path, err := filepath.Join(root, name), error(nil)
		if img[name] == nil {
			err = os.Mkdir(path, 0o700)
		} else {
			err = os.WriteFile(path, img[name], 0o600)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
}

// cut yields everything that a power cut now may leave.
func (d *crashDisk) cut(yield func(image)) {
	for subset := range 1 << len(d.pending) {
		names := maps.Clone(d.durable)
		for i, do := range d.pending {
			if subset>>i&1 == 1 {
				do(names)
			}
		}
		d.cutContents(image{}, slices.Sorted(maps.Keys(names)), names, yield)
	}
}

// cutContents adds to img what may be found under the names that are left.
func (d *crashDisk) cutContents(img image, left []string, names map[string]*crashFile, yield func(image)) {
	if len(left) == 0 {
		yield(maps.Clone(img))
		return
	}
	name := left[0]
	switch folder, c := filepath.Dir(name), names[name]; {
	case folder != "." && !has(img, folder): // what is in a folder goes with it
		d.cutContents(img, left[1:], names, yield)
	case c == nil:
		img[name] = nil
		d.cutContents(img, left[1:], names, yield)
		delete(img, name)
	default:
		for _, text := range remains(c.durable, c.now) {
			img[name] = text
			d.cutContents(img, left[1:], names, yield)
		}
		delete(img, name)
	}
}

func has(img image, name string) bool { _, ok := img[name]; return ok }

// remains are what may be read from a file that was synced and then written to:
// the old contents, every length of the new, and each of six blocks of the new
// there or still zero.
func remains(durable, now []byte) [][]byte {
	if bytes.Equal(durable, now) {
		return [][]byte{append([]byte{}, now...)}
	}
	const blocks = 6
	same := 0
	for same < min(len(durable), len(now)) && durable[same] == now[same] {
		same++
	}
	all := [][]byte{append([]byte{}, durable...)}
	for n := same; n <= len(now); n++ {
		all = append(all, append([]byte{}, now[:n]...))
	}
	fresh := len(now) - same
	for subset := range 1<<blocks - 1 {
		text := append([]byte{}, now...)
		for i := range blocks {
			if subset>>i&1 == 0 {
				clear(text[same+fresh*i/blocks : same+fresh*(i+1)/blocks])
			}
		}
		all = append(all, text)
	}
	return all
}
