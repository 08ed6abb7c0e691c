package board

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/sdboot/pe"
)

const entryFolder = "efi/EFI/Linux"

// An entry is what the boot loader may start.
type entry struct {
	file       string // its name
	version    fota.Version
	counted    bool
	left, done int
}

// counter is at the end of the names of what is counted, by the Boot Loader
// Specification, "Boot counting".
var counter = regexp.MustCompile(`^(.*)\+(\d+)(?:-(\d+))?\.efi$`)

// entries reads EFI/Linux. What is no UKI is passed over, as is what is empty or hidden.
func (b *Board) entries() ([]entry, error) {
	names, err := b.Entries()
	var all []entry
	for _, name := range names {
		if strings.HasPrefix(name, ".") || !strings.HasSuffix(strings.ToLower(name), ".efi") {
			continue
		}
		var release string
		err := b.program(name, func(program *pe.File) (err error) {
			release, err = section(program, ".osrel")
			return err
		})
		if err != nil {
			continue
		}
		e := entry{file: name}
		for line := range strings.Lines(release) {
			if text, ok := strings.CutPrefix(strings.TrimSpace(line), "IMAGE_VERSION="); ok {
				e.version, _ = fota.ParseVersion(text) // one that is none is older than every other
			}
		}
		if m := counter.FindStringSubmatch(strings.ToLower(name)); m != nil {
			e.counted = true
			e.left, _ = strconv.Atoi(m[2])
			e.done, _ = strconv.Atoi(m[3])
		}
		all = append(all, e)
	}
	return all, err
}

// program opens a UKI for use.
func (b *Board) program(file string, use func(*pe.File) error) error {
	f, err := os.Open(b.path(entryFolder, file))
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	program, err := pe.Parse(f, info.Size())
	if err != nil {
		return err
	}
	return use(program)
}

func section(program *pe.File, name string) (string, error) {
	r, ok := program.Section(name)
	if !ok {
		return "", fmt.Errorf("it has no section %s", name)
	}
	text, err := io.ReadAll(r)
	return strings.TrimRight(string(text), "\x00"), err
}

// before reports whether the boot loader prefers e: one with tries left, the newest, the
// one with more tries left, the one that was tried less.
func (e entry) before(other entry) bool {
	if out := e.counted && e.left == 0; out != (other.counted && other.left == 0) {
		return !out
	}
	if c := e.version.Compare(other.version); c != 0 {
		return c > 0
	}
	if e.left != other.left {
		return e.left > other.left
	}
	return e.done < other.done
}

// boot is what the boot loader does: it chooses an entry, counts a try, and says so.
func (b *Board) boot() (file string, err error) {
	all, err := b.entries()
	if err != nil {
		return "", err
	}
	if len(all) == 0 {
		return "", nil
	}
	slices.SortFunc(all, func(x, y entry) int {
		if x.before(y) {
			return -1
		}
		return 1
	})
	chosen := all[0]
	once, err := b.get(entryOneShot)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	for _, e := range all {
		if strings.EqualFold(e.file, narrow(once)) {
			chosen = e
		}
	}
	const features = 1<<1 | 1<<2 | 1<<4 // default and one-shot entries, boot counting
	err = errors.Join(
		b.unset(entryOneShot),
		b.set(loaderInfo, wide("systemd-boot 252, played by the lab")),
		b.set(loaderFeatures, binary.LittleEndian.AppendUint64(nil, features)),
		b.set(secureBoot, []byte{1}),
		b.set(entrySelected, wide(strings.ToLower(chosen.file))),
		b.unset(bootCountPath))
	if err != nil || !chosen.counted {
		return chosen.file, err
	}
	name := counter.FindStringSubmatch(strings.ToLower(chosen.file))[1]
	counted := fmt.Sprintf("%s+%d-%d.efi", name, max(chosen.left-1, 0), chosen.done+1)
	return counted, errors.Join(
		os.Rename(b.path(entryFolder, chosen.file), b.path(entryFolder, counted)),
		b.set(bootCountPath, wide(`\`+strings.ReplaceAll(filepath.Join("EFI/Linux", counted), "/", `\`))))
}
