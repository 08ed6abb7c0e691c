package sdboot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/sdboot/pe"
	"birthmark/pkg/fota/slot"
)

// Disarm removes every release but the one that runs, and a wish to start one of them
// once. It comes before a slot is written, since what would be started from that slot is
// about to go.
func (l *Loader) Disarm() error {
	e, err := l.entries()
	if err != nil {
		return fmt.Errorf("cannot disarm: %w", err)
	}
	if err := l.vars.remove(entryOneShot); err != nil {
		return err
	}
	for _, entry := range e.others {
		if err := l.remove(entry.File); err != nil {
			return err
		}
	}
	return l.disk.syncFolder(l.path(""))
}

// Stage puts a release of size bytes on the EFI system partition, under a name that the
// boot loader passes over, and returns its SHA-256, which Arm wants to hear. What
// [Loader.Check] refuses does not stay there. The error is [ErrSpace] if there is too
// little room, and r's own if it fails; then Stage may be called again with all of it.
func (l *Loader) Stage(ctx context.Context, r io.Reader, size int64, version string) (sum [sha256.Size]byte, err error) {
	if !isVersion(version) {
		return sum, fota.Refuse(fota.StageBoot, "version", "no release can have the version %q", version)
	}
	if size <= 0 || size > pe.SizeLimit {
		return sum, fota.Refuse(fota.StageBoot, "pe", "it has %d bytes, limit %d", size, pe.SizeLimit)
	}
	sum, err = l.stage(ctx, r, size, version)
	if err != nil {
		return sum, fmt.Errorf("cannot stage %s: %w", version, err)
	}
	return sum, nil
}

func (l *Loader) stage(ctx context.Context, r io.Reader, size int64, version string) (sum [sha256.Size]byte, err error) {
	e, err := l.entries()
	if err != nil {
		return sum, err
	}
	if e.running.Version == version {
		return sum, fota.Refuse(fota.StageBoot, "version", "a release of the version %s runs", version)
	}
	if len(e.others) > 0 {
		return sum, fmt.Errorf("%s is still there: Disarm comes first", e.others[0].File)
	}
	if err := l.Cleanup(); err != nil && !errors.Is(err, ErrTwin) {
		return sum, err
	}
	if free, err := l.free(l.path("")); err != nil {
		return sum, err
	} else if free < size+reserve {
		return sum, fmt.Errorf("%w: %d bytes are free, %d needed", ErrSpace, free, size+reserve)
	}
	draft := l.path(l.draft(version))
	f, err := l.disk.create(draft)
	if errors.Is(err, fs.ErrExist) {
		return sum, ErrTwin // or Cleanup would have removed it
	}
	if err != nil {
		return sum, err
	}
	sum, err = slot.CopyExactly(ctx, f, r, size)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = l.readBack(draft, size, version, sum)
	}
	if err != nil {
		return sum, errors.Join(err, l.disk.remove(draft))
	}
	return sum, l.disk.syncFolder(l.path(""))
}

// readBack holds a draft against what was written, as the medium has it, and checks it.
func (l *Loader) readBack(draft string, size int64, version string, want [sha256.Size]byte) error {
	f, err := os.Open(draft)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := slot.DropCache(f); err != nil {
		return err
	}
	sum, err := hash(io.NewSectionReader(f, 0, size))
	if err != nil {
		return err
	}
	if sum != want {
		return slot.ErrReadBack
	}
	return l.Check(f, size, version)
}

// Arm lets the boot loader find a staged release, which gets all its tries. That release
// has to be there with the sum that Stage returned; else the error is [ErrNotStaged], and
// Disarm and Stage come first. What is armed already stays so; what was tried meanwhile
// is not armed again ([ErrTried]).
func (l *Loader) Arm(version string, sum [sha256.Size]byte) error {
	if err := l.arm(version, sum); err != nil {
		return fmt.Errorf("cannot arm %s: %w", version, err)
	}
	return nil
}

func (l *Loader) arm(version string, sum [sha256.Size]byte) error {
	e, err := l.entries()
	if err != nil {
		return err
	}
	if e.running.Version == version {
		return errors.New("a release of that version runs")
	}
	if len(e.others) > 1 || len(e.others) == 1 && e.others[0].Version != version {
		return fmt.Errorf("%s is still there: Disarm comes first", e.others[0].File)
	}
	// It would win over counted tries: the way back would be closed.
	if err := l.vars.remove(entryDefault); err != nil {
		return err
	}
	if len(e.others) == 1 {
		armed := e.others[0]
		switch same, err := l.holds(armed.File, sum); {
		case err != nil:
			return err
		case !same:
			return fmt.Errorf("%s is another one: %w", armed.File, ErrNotStaged)
		case armed.Left == 0 || armed.Done > 0: // or it has no counter, and nobody knows
			return fmt.Errorf("%s: %w", armed.File, ErrTried)
		}
		return l.settle(armed.File)
	}
	switch same, err := l.holds(l.draft(version), sum); {
	case errors.Is(err, fs.ErrNotExist) || err == nil && !same:
		return ErrNotStaged
	case err != nil:
		return err
	}
	if err := l.removeEmpty(e); err != nil {
		return err
	}
	return l.move(l.draft(version), l.file(version))
}

// Bless says that the release that runs is good: it gets all its tries anew. A device
// does so after every start that went well.
func (l *Loader) Bless() error {
	if err := l.bless(); err != nil {
		return fmt.Errorf("cannot bless what runs: %w", err)
	}
	return nil
}

func (l *Loader) bless() error {
	e, err := l.entries()
	if err != nil {
		return err
	}
	file := l.file(e.running.Version)
	for _, name := range append(e.twins, e.running) {
		if strings.EqualFold(name.File, file) {
			return l.settle(name.File)
		}
	}
	if len(e.twins) > 0 {
		return fmt.Errorf("%s and %s: %w", e.running.File, e.twins[0].File, ErrTwin)
	}
	if err := l.removeEmpty(e); err != nil {
		return err
	}
	return l.move(e.running.File, file)
}

// OneShot lets the boot loader start the release that does not run, once, whatever its
// counter says. After that start, or any other, the wish is gone.
func (l *Loader) OneShot() error {
	e, err := l.entries()
	if err == nil && len(e.others) != 1 {
		err = fmt.Errorf("there are %d releases that do not run, want 1", len(e.others))
	}
	if err != nil {
		return fmt.Errorf("cannot choose another release: %w", err)
	}
	id, err := l.id(e.others[0])
	if err != nil {
		return err
	}
	return l.vars.setText(entryOneShot, id)
}

// id is how the boot loader calls an entry: the name of its file in lower case, before
// any renaming. Newer versions leave the counter out; whether this one does is to be seen
// from how it called the entry that it started, if that has a counter.
func (l *Loader) id(e Entry) (string, error) {
	selected, err := l.selected()
	if err != nil {
		return "", err
	}
	_, err = l.vars.text(bootCountPath)
	if err == nil && !selected.Counted {
		return fmt.Sprintf("%s_%s.efi", l.name, e.Version), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return strings.ToLower(e.File), nil
}

// Cleanup removes what earlier attempts left: drafts, and entries without contents. What
// was staged before it can no longer be armed.
func (l *Loader) Cleanup() error {
	e, err := l.entries()
	if err != nil {
		return fmt.Errorf("cannot clean up: %w", err)
	}
	names, err := readNames(l.path(""))
	if err != nil {
		return err
	}
	var twins error
	for _, name := range names {
		if !l.isDraft(name) {
			continue
		}
		if err := l.remove(name); errors.Is(err, ErrTwin) {
			twins = err
		} else if err != nil {
			return err
		}
	}
	if err := l.removeEmpty(e); err != nil {
		return err
	}
	return errors.Join(twins, l.disk.syncFolder(l.path("")))
}

// removeEmpty removes entries without contents: no block is theirs.
func (l *Loader) removeEmpty(e entries) error {
	for _, entry := range e.empty {
		if err := l.disk.remove(l.path(entry.File)); err != nil {
			return err
		}
	}
	return nil
}

// remove removes a file of ours, unless it may be another name of one that stays: blocks
// that it frees could be the other's.
func (l *Loader) remove(file string) error {
	names, err := readNames(l.path(""))
	if err != nil {
		return err
	}
	for _, name := range names {
		if name == file {
			continue
		}
		same, err := sameContents(l.path(name), l.path(file))
		if err != nil {
			return err
		}
		if same {
			return fmt.Errorf("cannot remove %s, which is %s: %w", file, name, ErrTwin)
		}
	}
	return l.disk.remove(l.path(file))
}

// move renames a file. On FAT that is three writes: the new name, in it where the file
// begins, and the removal of the old name. To sync the file before the folder lets the
// first two reach the medium before the third, unless the kernel writes that on its own
// in between.
func (l *Loader) move(from, to string) error {
	if err := l.disk.rename(l.path(from), l.path(to)); err != nil {
		return err
	}
	return l.settle(to)
}

// settle makes a file and its name durable.
func (l *Loader) settle(file string) error {
	if err := l.disk.sync(l.path(file)); err != nil {
		return err
	}
	return l.disk.syncFolder(l.path(""))
}

// holds reports whether a file has a sum.
func (l *Loader) holds(file string, sum [sha256.Size]byte) (bool, error) {
	f, err := os.Open(l.path(file))
	if err != nil {
		return false, err
	}
	defer f.Close()
	got, err := hash(io.LimitReader(f, pe.SizeLimit+1))
	return got == sum, err
}

// sameContents reports whether two files hold the same, and something.
func sameContents(a, b string) (bool, error) {
	var files [2]*os.File
	var sizes [2]int64
	for i, name := range []string{a, b} {
		info, err := os.Lstat(name)
		if err != nil {
			return false, err
		}
		if !info.Mode().IsRegular() {
			return false, nil
		}
		sizes[i] = info.Size()
	}
	if sizes[0] != sizes[1] || sizes[0] == 0 {
		return false, nil
	}
	for i, name := range []string{a, b} {
		f, err := os.Open(name)
		if err != nil {
			return false, err
		}
		defer f.Close()
		files[i] = f
	}
	left, right := make([]byte, chunkSize), make([]byte, chunkSize)
	for {
		n, err := io.ReadFull(files[0], left)
		m, err2 := io.ReadFull(files[1], right)
		if n != m || !bytes.Equal(left[:n], right[:m]) {
			return false, nil
		}
		if err == nil && err2 == nil {
			continue
		}
		for _, err := range []error{err, err2} {
			if err != io.EOF && err != io.ErrUnexpectedEOF {
				return false, err
			}
		}
		return true, nil
	}
}
