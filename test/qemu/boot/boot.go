// Package boot tells what a device would start from its disk, without starting it.
//
// [Entries] reads an EFI system partition as firmware does, before anybody has repaired
// it, and lists the releases in EFI/Linux in the order in which systemd-boot takes them
// (Boot Loader Specification, "Sorting" and "Boot counting", as version 252 has it): what
// has no tries left comes last, then the newest is first, and of two names of one version
// the one with more tries left, with fewer done. The first is what is started.
//
// What systemd-boot passes over is not in the list: folders, names that begin with a dot
// or do not end with .efi, and files that are empty. The version is that in the name; in
// the name of a release it is the same as in what is in the file.
package boot

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"birthmark/pkg/fota"
)

// An Entry is a release that the boot loader sees.
type Entry struct {
	Name    string
	Version fota.Version
	Counted bool // Left and Done are said
	Left    int  // tries
	Done    int
	Program []byte // as much of it as can be read
}

// folder is where releases are.
const folder = "EFI/Linux"

// Entries are those on an EFI system partition, what is started first. An error says that
// the file system or a name in the folder cannot be read.
func Entries(esp io.ReaderAt) ([]Entry, error) {
	entries, err := readEntries(esp)
	if err != nil {
		return nil, fmt.Errorf("cannot tell what is started: %w", err)
	}
	return entries, nil
}

func readEntries(esp io.ReaderAt) ([]Entry, error) {
	v, err := open(esp)
	if err != nil {
		return nil, err
	}
	files, err := v.folder(strings.Split(folder, "/")...)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for _, f := range files {
		if f.folder || strings.HasPrefix(f.name, ".") || !strings.HasSuffix(strings.ToLower(f.name), ".efi") || f.size == 0 || f.first == 0 {
			continue
		}
		e, err := parse(f.name)
		if err != nil {
			return nil, err
		}
		e.Program = v.read(f)
		entries = append(entries, e)
	}
	slices.SortStableFunc(entries, order)
	return entries, nil
}

// parse reads PRODUCT_VERSION[+LEFT[-DONE]].efi, where VERSION has a sign of its own.
func parse(name string) (e Entry, err error) {
	e.Name = name
	_, text, _ := strings.Cut(strings.ToLower(name), "_")
	text = strings.TrimSuffix(text, ".efi")
	if strings.Count(text, "+") == 2 {
		at := strings.LastIndexByte(text, '+')
		left, done, tried := strings.Cut(text[at+1:], "-")
		e.Counted = true
		if e.Left, err = strconv.Atoi(left); err == nil && tried {
			e.Done, err = strconv.Atoi(done)
		}
		text = text[:at]
	}
	if err == nil {
		e.Version, err = fota.ParseVersion(text)
	}
	if err != nil {
		return e, fmt.Errorf("%q is no name of a release: %w", name, err)
	}
	return e, nil
}

// order is config_entry_compare of systemd-boot.
func order(a, b Entry) int {
	bad := func(e Entry) int {
		if e.Counted && e.Left == 0 {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(bad(a), bad(b)), b.Version.Compare(a.Version), cmp.Compare(b.Left, a.Left), cmp.Compare(a.Done, b.Done))
}
