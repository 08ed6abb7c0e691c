package rauc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"birthmark/pkg/fota"
)

// settings is RAUC's system.conf: keys and values, by group.
type settings map[string]map[string]string

const settingsFile = "etc/rauc/system.conf"

const (
	settingsLimit = 64 << 10 // bytes
	groupLimit    = 64
)

// unsafe refuses what this device is set up like. It is not a bundle's fault, but no
// bundle will do any better.
func unsafe(format string, args ...any) error {
	return fota.Refuse(fota.StageBoot, "settings", format, args...)
}

// readSettings reads system.conf and holds it against what package rauc asks of it. They
// are returned also if they are refused, as far as they could be read.
func readSettings(root, compatible string) (settings, error) {
	text, err := fota.ReadFile(filepath.Join(root, settingsFile), settingsLimit)
	if err != nil {
		return nil, err
	}
	s, err := parseSettings(string(text))
	if err != nil {
		return nil, unsafe("/%s: %w", settingsFile, err)
	}
	if err := s.check(compatible); err != nil {
		return s, unsafe("/%s: %w", settingsFile, err)
	}
	return s, nil
}

// parseSettings reads GKeyFile's syntax. A group or key that is there twice is refused:
// RAUC would take the last one, and who reads the file the first.
func parseSettings(text string) (settings, error) {
	s := settings{}
	var group map[string]string
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimRight(line, " \t\n")
		switch {
		case strings.ContainsFunc(line, func(r rune) bool { return r != '\t' && unicode.IsControl(r) }):
			return nil, fmt.Errorf("line %d has a control character", n)
		case line == "" || strings.TrimLeft(line, " \t")[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			return nil, fmt.Errorf("line %d begins with a blank", n) // which RAUC passes over
		case line[0] == '[':
			name, ok := strings.CutSuffix(line[1:], "]")
			switch _, twice := s[name]; {
			case !ok || name == "" || strings.ContainsAny(name, "[]"):
				return nil, fmt.Errorf("line %d is not the name of a group", n)
			case twice:
				return nil, fmt.Errorf("group %s is there twice", name)
			case len(s) == groupLimit:
				return nil, fmt.Errorf("more than %d groups", groupLimit)
			}
			group = map[string]string{}
			s[name] = group
		default:
			key, value, ok := strings.Cut(line, "=")
			key, value = strings.TrimRight(key, " \t"), strings.TrimLeft(value, " \t")
			if !ok || key == "" || group == nil {
				return nil, fmt.Errorf("line %d is neither a group nor a key of one", n)
			}
			if _, twice := group[key]; twice {
				return nil, fmt.Errorf("line %d: %s is there twice", n, key)
			}
			group[key] = value
		}
	}
	return s, nil
}

// loaders are the values of bootloader= with which RAUC can say what starts next, and the
// loader comes back from what does not start.
var loaders = []string{"barebox", "custom", "efi", "grub", "uboot"}

// check says why RAUC, set up like this, is not safe beside what verifies firmware here.
func (s settings) check(compatible string) error {
	system := s["system"]
	central := system["statusfile"]
	if central == "" && system["data-directory"] != "" {
		central = filepath.Join(system["data-directory"], "central.raucs") // RAUC's own default then
	}
	bootNext, isSet := system["efi-use-bootnext"]
	switch {
	case system["compatible"] != compatible:
		return fmt.Errorf("compatible is %q, and the image that runs is %q", system["compatible"], compatible)
	case !slices.Contains(loaders, system["bootloader"]):
		return fmt.Errorf("bootloader is %q, want one of %s", system["bootloader"], strings.Join(loaders, ", "))
	case isSet && bootNext != "true":
		return errors.New("efi-use-bootnext is not true: EFI would not come back from what does not start")
	case !filepath.IsAbs(central):
		return errors.New("statusfile is not set to a path: RAUC would mount slots, and write to them")
	case s["keyring"] != nil:
		return errors.New("it has a [keyring]: RAUC would install what is not verified here, below the floor, too")
	case s["autoinstall"] != nil:
		return errors.New("it has [autoinstall]: RAUC would install what it finds at a start")
	}
	for key := range s["handlers"] {
		if key != "bootloader-custom-backend" && key != "system-info" {
			return fmt.Errorf("it has a handler, %s, which is not run here", key)
		}
	}
	return nil
}

const markGood = "rauc-mark-good.service"

// unitFolders are where systemd looks for units; the first that has one wins. See
// systemd.unit(5).
var unitFolders = []string{
	"etc/systemd/system.control", "run/systemd/system.control", "run/systemd/transient", "run/systemd/generator.early",
	"etc/systemd/system", "etc/systemd/system.attached", "run/systemd/system", "run/systemd/system.attached",
	"run/systemd/generator", "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system",
	"run/systemd/generator.late",
}

// checkMarkGood refuses a system in which a start may be called good when it is done. Who
// starts the unit, and when, is not asked: there are too many ways.
func checkMarkGood(root string) error {
	for _, folder := range unitFolders {
		unit := filepath.Join(root, folder, markGood)
		if _, err := os.Lstat(unit); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if to, err := os.Readlink(unit); err != nil || to != "/dev/null" {
			return unsafe("%s would call every start good: it has to be masked", unit)
		}
		return nil
	}
	return nil
}
