package crashdisk

import (
	"bytes"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// An Image is what is on a disk: contents by name, relative to its root, nil for
// folders.
type Image map[string][]byte

// Has reports whether there is something of that name.
func (img Image) Has(name string) bool { _, ok := img[name]; return ok }

func (img Image) String() string {
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

func (img Image) write(root string) error {
	for _, name := range slices.Sorted(maps.Keys(img)) { // folders come first
		path, err := filepath.Join(root, name), error(nil)
		if img[name] == nil {
			err = os.Mkdir(path, 0o700)
		} else {
			err = os.WriteFile(path, img[name], 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Cut is everything that a power cut now may leave. Some of it may come twice.
func (d *Disk) Cut() iter.Seq[Image] {
	return func(yield func(Image) bool) {
		for subset := range 1 << len(d.pending) {
			names := maps.Clone(d.durable)
			for i, c := range d.pending {
				if subset>>i&1 == 1 {
					c.do(names)
				}
			}
			if !cutContents(Image{}, slices.Sorted(maps.Keys(names)), names, yield) {
				return
			}
		}
	}
}

// cutContents adds to img what may be found under the names that are left. It says
// whether to go on.
func cutContents(img Image, left []string, names map[string]*contents, yield func(Image) bool) bool {
	if len(left) == 0 {
		return yield(maps.Clone(img))
	}
	name := left[0]
	folder, c := filepath.Dir(name), names[name]
	if folder != "." && !img.Has(folder) { // what is in a folder goes with it
		return cutContents(img, left[1:], names, yield)
	}
	defer delete(img, name)
	if c == nil {
		img[name] = nil
		return cutContents(img, left[1:], names, yield)
	}
	for _, text := range remains(c.durable, c.now) {
		img[name] = text
		if !cutContents(img, left[1:], names, yield) {
			return false
		}
	}
	return true
}

// blocks is how many parts of what was written reach the disk, each by itself.
const blocks = 8

// remains are what may be read from a file that was synced and then written to: the
// old contents, every length of the new, and each block of the new there, or still
// zero, or still old.
func remains(durable, now []byte) [][]byte {
	now = append([]byte{}, now...) // nil would be a folder
	if bytes.Equal(durable, now) {
		return [][]byte{now}
	}
	same := 0
	for same < min(len(durable), len(now)) && durable[same] == now[same] {
		same++
	}
	all := [][]byte{append([]byte{}, durable...)}
	for n := same; n <= len(now); n++ {
		all = append(all, now[:n:n])
	}
	all = append(all, mixtures(now, make([]byte, len(now)), same)...)
	if len(durable) > same && len(now) > same {
		under := make([]byte, len(now))
		copy(under, durable)
		all = append(all, mixtures(now, under, same)...)
	}
	return all
}

// mixtures are now with some blocks after the first same bytes as they are in under.
func mixtures(now, under []byte, same int) (all [][]byte) {
	fresh := len(now) - same
	if fresh == 0 {
		return nil
	}
	for subset := range 1<<blocks - 1 {
		text := slices.Clone(now)
		for i := range blocks {
			if subset>>i&1 == 0 {
				from, to := same+fresh*i/blocks, same+fresh*(i+1)/blocks
				copy(text[from:to], under[from:to])
			}
		}
		all = append(all, text)
	}
	return all
}
