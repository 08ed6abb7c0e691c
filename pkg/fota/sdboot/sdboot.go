// Package sdboot is the boot loader's side of an update on a UEFI device: two slots,
// systemd-boot, and releases that are unified kernel images, signed for Secure Boot. It
// writes a slot, puts a release where the loader finds it, and tells the loader how
// often to try it.
//
//	loader, err := sdboot.Open(sdboot.Config{Root: "/", Name: "birthmark", Tries: 3})
//	slot, err := sdboot.Inactive("/")
//
//	loader.Disarm()                                   // nothing starts what is about to change
//	slot.Install(ctx, image, copyImage, progress)     // and read it back
//	sum, err := loader.Stage(ctx, uki, size, "2.0.0")
//	// remember that 2.0.0 is staged, and sum
//	loader.Arm("2.0.0", sum)                          // the next start tries 2.0.0
//	// after it, in 2.0.0, when it is well
//	loader.Bless()
//
// Every step may be done again after a crash or a power cut, and then ends well or says
// which one has to be done before. No step but Bless touches the release that runs.
//
// # Entries
//
// A release is a file in EFI/Linux of the EFI system partition, by the Boot Loader
// Specification (UAPI group), Type #2 and "Boot counting":
//
//	birthmark_2.0.0+3.efi      new: three tries
//	birthmark_2.0.0+1-2.efi    one try is left, two were made
//	birthmark_2.0.0+0-3.efi    bad: started only when nothing else is left
//
// The loader takes the newest by IMAGE_VERSION, and counts a try, by renaming the file,
// before it starts it. So an older release cannot win by being armed; [Loader.OneShot]
// starts it once, and when it is good, and has disarmed the newer one, it is the only
// one. A file without a counter would be tried for ever, also when damage is
// found later: Bless winds the counter back to full instead of removing it, and
// systemd-bless-boot.service has to be masked.
//
// Which release runs is what LoaderEntrySelected says. What bears other names is
// somebody else's and is not touched.
//
// LoaderEntryDefault and `default` in loader.conf let the loader start an entry without
// looking at its counter, again and again. The former is never set here, and is cleared
// before anything is armed; the latter is reported.
//
// # The file system
//
// It is FAT, on which a rename is two writes. The kernel writes the new name first, and
// what is done here makes it durable before the old one goes (see disk.move); mounted
// with the option dirsync that holds in every case. A power cut between leaves two names
// of one file. As long as both are there neither may be removed, since that would free
// what the other holds; fsck.vfat empties one of them, and an empty file is removed. The
// loader renames at every start too, with less care: a release to fall back to is what
// helps then.
//
// # Secure Boot
//
// What firmware refuses to start costs a restart, and where firmware stops in its menu a
// visit. So [Loader.Stage] holds a release against the firmware's own lists, db and dbx:
// see [Loader.Check]. If Secure Boot is off, and [Status] says so, no signature is asked
// for: nobody would look at it, and who made the release was verified before by the
// bundle that it came in.
//
// # Limits
//
// Shim and its own lists (MOK) are not known here, nor entries on an extended boot
// loader partition (XBOOTLDR).
package sdboot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"birthmark/pkg/fota"
)

// Config says what a device looks like.
type Config struct {
	Root  string // of the file system, "/" on a device
	Name  string // of the product: what the names of its entries begin with
	Tries int    // that a release gets
}

// A Loader is the boot loader, and what it finds. It is for one goroutine at a time, and
// for one process: nothing else may change entries of its name.
type Loader struct {
	name  string
	tries int
	esp   string // where the EFI system partition is mounted
	vars  variables
	disk  disk
	free  func(folder string) (int64, error) // bytes
}

// Open finds the EFI system partition. It changes nothing.
func Open(c Config) (*Loader, error) {
	if !isProduct(c.Name) || c.Tries < 1 || c.Tries > counterLimit {
		return nil, fmt.Errorf("cannot have entries with the name %q and %d tries", c.Name, c.Tries)
	}
	for _, mount := range []string{"efi", "boot", "boot/efi"} { // as systemd looks for it
		esp := filepath.Join(c.Root, mount)
		if info, err := os.Stat(filepath.Join(esp, entryFolder)); err == nil && info.IsDir() {
			return &Loader{name: c.Name, tries: c.Tries, esp: esp, disk: realDisk{}, free: freeBytes,
				vars: variables{filepath.Join(c.Root, "sys/firmware/efi/efivars")}}, nil
		}
	}
	return nil, fmt.Errorf("cannot find %s in /efi, /boot or /boot/efi: is the EFI system partition mounted?", entryFolder)
}

// The errors by which a caller decides.
var (
	// ErrUnknown means that it is not known which release runs. Nothing is changed then.
	ErrUnknown = errors.New("it is not known which entry runs")
	// ErrNotStaged means that there is nothing to arm: Stage has to come first.
	ErrNotStaged = errors.New("the release is not staged")
	// ErrTried means that a release was armed and started before, and is not running.
	ErrTried = errors.New("the release was tried before")
	// ErrSpace means that the EFI system partition is too full.
	ErrSpace = errors.New("not enough room on the EFI system partition")
	// ErrTwin means that a power cut left two names of one file, and that fsck.vfat has
	// to be run, as at the next start it should.
	ErrTwin = errors.New("two names of one file: fsck.vfat has to look at it")
)

// Status is what there is before anything is done.
type Status struct {
	Loader     string  // by its own account, such as "systemd-boot 252.39"; "" if it says nothing
	SecureBoot bool    // whether the firmware asks for signatures
	Running    Entry   // the release that runs
	Others     []Entry // those that do not; one at the most, unless something went wrong
	// Uncounted: the loader started a release with a counter, and counted no try. So its
	// name says nothing about whether it was ever found good.
	Uncounted bool

	// Warnings are what an owner should know, one sentence each.
	Warnings []string
}

// Status looks at everything. Its error is ErrUnknown at the end of the chain when only
// that is missing.
func (l *Loader) Status() (Status, error) {
	var s Status
	var err error
	if s.SecureBoot, err = l.vars.secureBoot(); err != nil {
		return s, err
	}
	if s.Loader, err = l.vars.text(loaderInfo); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	s.Warnings, err = l.warnings(s.Loader)
	if err != nil {
		return s, err
	}
	counted, err := l.wasCounted()
	if err != nil {
		return s, err
	}
	if s.Uncounted = !counted; s.Uncounted {
		s.Warnings = append(s.Warnings, "the boot loader started an entry with a counter, and counted no try: a bad release would be started for ever, so what runs stays on trial")
	}
	e, err := l.entries()
	s.Running, s.Others = e.running, e.others
	for _, twin := range e.twins {
		s.Warnings = append(s.Warnings, fmt.Sprintf("%s and %s are two names of the release that runs", e.running.File, twin.File))
	}
	for _, name := range e.odd {
		s.Warnings = append(s.Warnings, name+" in EFI/Linux is none of ours: it is left alone, and the boot loader may start it")
	}
	return s, err
}

// warnings are what endangers the way back.
func (l *Loader) warnings(loader string) (warnings []string, err error) {
	warn := func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }
	if bad := brokenLoader(loader); bad != "" {
		warn("%s %s", loader, bad)
	}
	switch counts, err := l.vars.countsBoots(); {
	case err != nil:
		return nil, err
	case !counts:
		warn("the boot loader does not say that it counts tries: a bad release would be started for ever")
	}
	switch value, err := l.vars.text(entryDefault); {
	case err == nil:
		warn("LoaderEntryDefault is %q: it overrides counted tries, and is cleared before a release is armed", value)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	switch pattern, err := l.configuredDefault(); {
	case err != nil:
		return nil, err
	case pattern != "":
		warn("loader.conf has the default %q, which overrides counted tries", pattern)
	}
	for _, folder := range []string{l.esp, filepath.Join(l.esp, entryFolder)} {
		names, err := readNames(folder)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if upper := strings.ToUpper(name); strings.HasPrefix(upper, "FSCK") && strings.HasSuffix(upper, ".REC") {
				warn("fsck.vfat left %s on the EFI system partition: it is left alone", name)
			}
		}
	}
	return warnings, nil
}

// wasCounted reports whether the boot loader counted the try that it was to count. It
// says where the file is that it renamed.
func (l *Loader) wasCounted() (bool, error) {
	selected, err := l.selected()
	if errors.Is(err, ErrUnknown) || err == nil && !selected.Counted {
		return true, nil // nothing to count, or nothing to tell it by
	}
	if err != nil {
		return false, err
	}
	_, err = l.vars.text(bootCountPath)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// configuredDefault is the default of loader.conf, "" if there is none.
func (l *Loader) configuredDefault() (pattern string, err error) {
	text, err := fota.ReadFile(filepath.Join(l.esp, "loader/loader.conf"), configLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == "default" {
			pattern = words[1]
		}
	}
	return pattern, err
}

// brokenLoader says what is known to be wrong with a version of systemd-boot.
func brokenLoader(info string) string {
	version, _ := strings.CutPrefix(info, "systemd-boot ")
	// Distributions append "-1", "~rc1", ".fc43" and the like.
	number, _, _ := strings.Cut(version, "-")
	number, _, _ = strings.Cut(number, "~")
	if slices.Contains([]string{"258.3", "259"}, number) {
		// github.com/systemd/systemd/issues/40192 and 40405.
		return "is known not to count tries rightly: a bad release may be started for ever"
	}
	return ""
}

const (
	entryFolder = "EFI/Linux"
	configLimit = 64 << 10 // bytes of loader.conf
	reserve     = 1 << 20  // bytes that stay free on the EFI system partition: folders grow
)

func freeBytes(folder string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(folder, &s); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: folder, Err: err}
	}
	return int64(s.Bavail) * int64(s.Bsize), nil
}
