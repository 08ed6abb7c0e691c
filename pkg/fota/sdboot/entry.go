package sdboot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"birthmark/pkg/fota"
)

const (
	counterLimit = 999 // tries
	namesLimit   = 4096
)

// An Entry is a release in EFI/Linux.
type Entry struct {
	File    string // its name there
	Version string // as the name has it: X.Y.Z, or X.Y.Z+svN
	Counted bool   // the name has a counter
	Left    int    // tries
	Done    int
}

// parseEntry reads the name of an entry. FAT knows no case, so a name is the same in
// any.
func (l *Loader) parseEntry(file string) (e Entry, ok bool) {
	e.File = file
	rest, ok := strings.CutPrefix(strings.ToLower(file), l.name+"_")
	if !ok {
		return e, false
	}
	rest, ok = strings.CutSuffix(rest, ".efi")
	if !ok {
		return e, false
	}
	e.Version = rest
	if at := strings.LastIndexByte(rest, '+'); at >= 0 {
		left, done, two := strings.Cut(rest[at+1:], "-")
		var okLeft, okDone bool
		e.Left, okLeft = parseCounter(left)
		e.Done, okDone = parseCounter(done)
		if okLeft && (okDone || !two) {
			e.Version, e.Counted = rest[:at], true
		}
	}
	return e, isVersion(e.Version)
}

func parseCounter(s string) (int, bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil && n >= 0 && n <= counterLimit && strconv.Itoa(n) == s
}

// isVersion reports whether a release may have that version. N of +svN, when it is
// there, is part of it.
func isVersion(s string) bool {
	if !strings.Contains(s, "+") {
		s += "+sv0"
	}
	_, err := fota.ParseVersion(s)
	return err == nil
}

// isProduct reports whether the name of a product can be part of the names of its
// entries, on FAT and in a variable.
func isProduct(s string) bool {
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-')
	})
}

// file is the name of an entry that has all its tries before it.
func (l *Loader) file(version string) string {
	return fmt.Sprintf("%s_%s+%d.efi", l.name, version, l.tries)
}

// draft is the name of a release that is staged: the boot loader passes over it.
func (l *Loader) draft(version string) string { return "." + l.name + "_" + version + draftSuffix }

const draftSuffix = ".new"

func (l *Loader) isDraft(file string) bool {
	file = strings.ToLower(file)
	return strings.HasPrefix(file, "."+l.name+"_") && strings.HasSuffix(file, draftSuffix)
}

// entries are what lies in EFI/Linux.
type entries struct {
	running Entry
	others  []Entry
	// twins are further names of the release that runs.
	twins []Entry
	// empty are entries that a power cut, or fsck.vfat after it, left without contents.
	// The boot loader does not see them.
	empty []Entry
	odd   []string // what is not ours, and may be started
}

// entries reads EFI/Linux, and finds which entry runs. If that is not known, the error
// says so, and all are among the others.
func (l *Loader) entries() (e entries, err error) {
	names, err := readNames(l.path(""))
	if err != nil {
		return e, err
	}
	var all []Entry
	for _, name := range names {
		entry, ok := l.parseEntry(name)
		if !ok {
			if strings.HasSuffix(strings.ToLower(name), ".efi") {
				e.odd = append(e.odd, name)
			}
			continue
		}
		info, err := os.Lstat(l.path(name))
		switch {
		case err != nil:
			return e, err
		case !info.Mode().IsRegular():
			e.odd = append(e.odd, name)
		case info.Size() == 0:
			e.empty = append(e.empty, entry)
		default:
			all = append(all, entry)
		}
	}
	selected, err := l.selected()
	if err != nil {
		e.others = all
		return e, err
	}
	for _, entry := range all {
		if entry.Version == selected.Version {
			e.twins = append(e.twins, entry)
		} else {
			e.others = append(e.others, entry)
		}
	}
	if len(e.twins) == 0 {
		return e, fmt.Errorf("LoaderEntrySelected is %q, which is not in EFI/Linux: %w", selected.File, ErrUnknown)
	}
	// Of two names the one with more tries is the one that was given last.
	slices.SortStableFunc(e.twins, func(a, b Entry) int { return l.leftOf(b) - l.leftOf(a) })
	e.running, e.twins = e.twins[0], e.twins[1:]
	return e, nil
}

// leftOf is how many tries an entry has, of those that matter.
func (l *Loader) leftOf(e Entry) int {
	if !e.Counted {
		return counterLimit + 1
	}
	return e.Left
}

// selected is the entry that the boot loader started, by the name that the file had
// before: since then a try was counted.
func (l *Loader) selected() (Entry, error) {
	id, err := l.vars.text(entrySelected)
	if errors.Is(err, fs.ErrNotExist) {
		return Entry{}, fmt.Errorf("there is no LoaderEntrySelected: %w", ErrUnknown)
	}
	if err != nil {
		return Entry{}, err
	}
	e, ok := l.parseEntry(id)
	if !ok {
		return e, fmt.Errorf("LoaderEntrySelected is %q, no entry of %s: %w", id, l.name, ErrUnknown)
	}
	return e, nil
}

func (l *Loader) path(file string) string { return filepath.Join(l.esp, entryFolder, file) }

// readNames lists a folder.
func readNames(folder string) ([]string, error) {
	f, err := os.Open(folder)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	if len(names) > namesLimit {
		return nil, fmt.Errorf("%s holds %d files, limit %d", folder, len(names), namesLimit)
	}
	slices.Sort(names)
	return names, nil
}
