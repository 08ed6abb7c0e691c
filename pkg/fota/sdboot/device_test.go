package sdboot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"birthmark/pkg/fota/sdboot/pe/petest"
)

// A device is a folder that looks like a device's file system.
type device struct {
	testing.TB
	root string
}

// newDevice is a device on which 1.0.0 runs, at its first try, without Secure Boot.
func newDevice(tb testing.TB) device {
	d := device{tb, tb.TempDir()}
	for _, folder := range []string{"efi/EFI/Linux", "efi/loader", "sys/firmware/efi/efivars", "dev/disk/by-partlabel", "proc"} {
		d.must(os.MkdirAll(filepath.Join(d.root, folder), 0o755))
	}
	d.put("birthmark_1.0.0+2-1.efi", petest.UKI("1.0.0"))
	d.set(entrySelected, text("birthmark_1.0.0+3.efi"))
	d.set(bootCountPath, text(`\EFI\Linux\birthmark_1.0.0+2-1.efi`))
	d.set(loaderInfo, text("systemd-boot 252.39-1~deb12u2"))
	d.set(loaderFeatures, binary.LittleEndian.AppendUint64(nil, 0x7f))
	d.set(secureBootState, []byte{0})
	return d
}

func (d device) must(err error) {
	d.Helper()
	if err != nil {
		d.Fatal(err)
	}
}

func (d device) path(name string) string { return filepath.Join(d.root, name) }

// put puts a file into EFI/Linux.
func (d device) put(name string, b []byte) {
	d.Helper()
	d.must(os.WriteFile(d.path("efi/EFI/Linux/"+name), b, 0o600))
}

func (d device) delete(name string) {
	d.Helper()
	d.must(os.Remove(d.path("efi/EFI/Linux/" + name)))
}

// set sets a variable as firmware and boot loader do.
func (d device) set(x variable, data []byte) {
	d.Helper()
	b := append(binary.LittleEndian.AppendUint32(nil, 6), data...)
	d.must(os.WriteFile(d.vars().path(x), b, 0o644))
}

func (d device) vars() variables { return variables{d.path("sys/firmware/efi/efivars")} }

// text is what a variable with text holds.
func text(s string) []byte { return encodeText(s) }

func (d device) loader() *Loader {
	d.Helper()
	l, err := Open(Config{Root: d.root, Name: "birthmark", Tries: 3})
	d.must(err)
	return l
}

// files are the names in EFI/Linux.
func (d device) files() string {
	d.Helper()
	names, err := readNames(d.path("efi/EFI/Linux"))
	d.must(err)
	return strings.Join(names, " ")
}

// stage stages a release that is right.
func (d device) stage(l *Loader, version string) [sha256.Size]byte {
	d.Helper()
	uki := petest.UKI(version)
	sum, err := l.Stage(d.Context(), bytes.NewReader(uki), int64(len(uki)), version)
	d.must(err)
	if sum != sha256.Sum256(uki) {
		d.Fatalf("Stage returned %x, want the sum of what was staged", sum)
	}
	return sum
}

func (d device) wantFiles(want ...string) {
	d.Helper()
	slices.Sort(want)
	if got := d.files(); got != strings.Join(want, " ") {
		d.Errorf("EFI/Linux holds %s, want %s", got, strings.Join(want, " "))
	}
}

const (
	running = "birthmark_1.0.0+2-1.efi"
	draft   = ".birthmark_2.0.0.new"
	armed   = "birthmark_2.0.0+3.efi"
)

func TestUpdate(t *testing.T) {
	d := newDevice(t)
	l := d.loader()
	d.must(l.Disarm())
	sum := d.stage(l, "2.0.0")
	d.wantFiles(running, draft)
	d.must(l.Arm("2.0.0", sum))
	d.must(l.Arm("2.0.0", sum))
	d.wantFiles(running, armed)
	got, err := os.ReadFile(d.path("efi/EFI/Linux/" + armed))
	if err != nil || !bytes.Equal(got, petest.UKI("2.0.0")) {
		t.Errorf("what is armed has other bytes than what was staged (%v)", err)
	}

	// The boot loader counts a try and starts it.
	d.must(os.Rename(d.path("efi/EFI/Linux/"+armed), d.path("efi/EFI/Linux/birthmark_2.0.0+2-1.efi")))
	if err := l.Arm("2.0.0", sum); !errors.Is(err, ErrTried) {
		t.Errorf("armed again after a try: got %v, want %v", err, ErrTried)
	}
	d.set(entrySelected, text("birthmark_2.0.0+3.efi"))
	s, err := l.Status()
	if err != nil || s.Running.Version != "2.0.0" || len(s.Others) != 1 || s.Others[0].File != running {
		t.Errorf("after the start, status is %+v, %v", s, err)
	}
	d.must(l.Bless())
	d.must(l.Bless())
	d.wantFiles(running, armed)

	// And on to the next one.
	d.must(l.Disarm())
	d.must(l.Disarm())
	d.must(l.Arm("3.0.0", d.stage(l, "3.0.0")))
	d.wantFiles(armed, "birthmark_3.0.0+3.efi")
}

func TestEntryNames(t *testing.T) {
	l := newDevice(t).loader()
	for name, want := range map[string]Entry{
		"birthmark_1.0.0.efi":         {Version: "1.0.0"},
		"birthmark_1.0.0+3.efi":       {Version: "1.0.0", Counted: true, Left: 3},
		"birthmark_1.0.0+0-3.efi":     {Version: "1.0.0", Counted: true, Done: 3},
		"BIRTHMARK_1.0.0+2-1.EFI":     {Version: "1.0.0", Counted: true, Left: 2, Done: 1},
		"birthmark_1.0.0+sv6.efi":     {Version: "1.0.0+sv6"},
		"birthmark_1.0.0+sv6+1-2.efi": {Version: "1.0.0+sv6", Counted: true, Left: 1, Done: 2},
	} {
		want.File = name
		if got, ok := l.parseEntry(name); !ok || got != want {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, ok, want)
		}
	}
	for _, name := range []string{
		"", "birthmark", "birthmark_.efi", "birthmark_1.0.0", "birthmark_1.0.0.efi.bak", "birthmark_1.0.efi", "birthmark_01.0.0.efi",
		"birthmark-1.0.0.efi", "other_1.0.0.efi", ".birthmark_1.0.0.new", "birthmark_1.0.0+.efi", "birthmark_1.0.0+3-.efi",
		"birthmark_1.0.0+-1.efi", "birthmark_1.0.0+03.efi", "birthmark_1.0.0+3-01.efi", "birthmark_1.0.0+1000.efi",
		"birthmark_1.0.0+3+2.efi", "birthmark_1.0.0+99999999999999999999.efi", "birthmark_1.0.0-rc1.efi", "birthmark_1.0.0+3-1-1.efi",
	} {
		if got, ok := l.parseEntry(name); ok {
			t.Errorf("%q was read as %+v", name, got)
		}
	}
}

func FuzzEntryName(f *testing.F) {
	f.Add("birthmark_1.0.0+sv6+1-2.efi")
	f.Add("birthmark_1.0.0+3.efi")
	l := &Loader{name: "birthmark"}
	f.Fuzz(func(t *testing.T, name string) {
		e, ok := l.parseEntry(name)
		if !ok {
			return
		}
		again := "birthmark_" + e.Version
		if e.Counted {
			again += fmt.Sprintf("+%d", e.Left)
		}
		if done := fmt.Sprintf("-%d", e.Done); e.Counted && strings.HasSuffix(strings.ToLower(name), done+".efi") {
			again += done
		}
		if again+".efi" != strings.ToLower(name) {
			t.Errorf("%q was read as %+v", name, e)
		}
	})
}

// What is not known is not touched, by anything.
func TestOthersFilesStay(t *testing.T) {
	d := newDevice(t)
	foreign := []string{"debian_12.efi", "birthmark_2.0.0-rc1+3.efi", "birthmark-lab_1.0.0+3.efi", ".birthmark.new", "readme.txt", "FSCK0000.REC"}
	for _, name := range foreign {
		d.put(name, []byte(name))
	}
	d.must(os.Mkdir(d.path("efi/EFI/Linux/birthmark_9.0.0.efi"), 0o755))
	l := d.loader()
	d.must(l.Disarm())
	d.must(l.Arm("2.0.0", d.stage(l, "2.0.0")))
	d.must(l.Cleanup())
	d.must(l.Bless())
	d.must(l.Disarm())
	d.wantFiles(append(foreign, "birthmark_1.0.0+3.efi", "birthmark_9.0.0.efi")...)
	s, err := l.Status()
	d.must(err)
	for _, name := range []string{"debian_12.efi", "birthmark_2.0.0-rc1+3.efi", "birthmark_9.0.0.efi", "FSCK0000.REC"} {
		if !strings.Contains(strings.Join(s.Warnings, "\n"), name) {
			t.Errorf("no warning tells of %s: %q", name, s.Warnings)
		}
	}
}

// Nothing is changed where it is not known which release runs.
func TestUnknownRunning(t *testing.T) {
	for name, change := range map[string]func(device){
		"no LoaderEntrySelected": func(d device) { d.must(os.Remove(d.vars().path(entrySelected))) },
		"another product runs":   func(d device) { d.set(entrySelected, text("debian_12.efi")) },
		"what runs is not there": func(d device) { d.set(entrySelected, text("birthmark_9.0.0+3.efi")) },
		"what runs is empty":     func(d device) { d.put(running, nil) },
	} {
		d := newDevice(t)
		d.put("birthmark_0.9.0+0-3.efi", petest.UKI("0.9.0"))
		change(d)
		before := d.files()
		l := d.loader()
		uki := petest.UKI("2.0.0")
		_, stageErr := l.Stage(t.Context(), bytes.NewReader(uki), int64(len(uki)), "2.0.0")
		_, statusErr := l.Status()
		for step, err := range map[string]error{
			"Disarm": l.Disarm(), "Stage": stageErr, "Arm": l.Arm("2.0.0", sha256.Sum256(uki)), "Bless": l.Bless(),
			"OneShot": l.OneShot(), "Cleanup": l.Cleanup(), "Status": statusErr,
		} {
			if !errors.Is(err, ErrUnknown) {
				t.Errorf("%s: %s: got %v, want %v", name, step, err, ErrUnknown)
			}
		}
		if after := d.files(); after != before {
			t.Errorf("%s: EFI/Linux held %s, now %s", name, before, after)
		}
	}
}

// The name that firmware told may be in another case, and one try behind.
func TestRunningIsFound(t *testing.T) {
	for _, c := range []struct{ selected, file string }{
		{"birthmark_1.0.0+3.efi", "birthmark_1.0.0+2-1.efi"},
		{"BIRTHMARK_1.0.0+3.EFI", "birthmark_1.0.0+2-1.efi"},
		{"birthmark_1.0.0.efi", "Birthmark_1.0.0+2-1.EFI"}, // systemd-boot 258 and later
		{"birthmark_1.0.0.efi", "birthmark_1.0.0.efi"},
	} {
		d := newDevice(t)
		d.delete(running)
		d.put(c.file, petest.UKI("1.0.0"))
		d.set(entrySelected, text(c.selected))
		s, err := d.loader().Status()
		if err != nil || s.Running.File != c.file || len(s.Others) != 0 {
			t.Errorf("%s selected: status is %+v, %v, want %s to run", c.selected, s, err, c.file)
		}
	}
}

func TestArmRefuses(t *testing.T) {
	sum := sha256.Sum256(petest.UKI("2.0.0"))
	for name, c := range map[string]struct {
		change func(device)
		want   error
	}{
		"nothing staged":           {func(device) {}, ErrNotStaged},
		"half of it staged":        {func(d device) { d.put(draft, petest.UKI("2.0.0")[:700]) }, ErrNotStaged},
		"another one staged":       {func(d device) { d.put(draft, petest.UKI("2.0.1")) }, ErrNotStaged},
		"another one in its place": {func(d device) { d.put(armed, petest.UKI("2.0.1")) }, ErrNotStaged},
		"one that is bad":          {func(d device) { d.put("birthmark_2.0.0+0-3.efi", petest.UKI("2.0.0")) }, ErrTried},
		"one that was tried":       {func(d device) { d.put("birthmark_2.0.0+2-1.efi", petest.UKI("2.0.0")) }, ErrTried},
		"one without a counter":    {func(d device) { d.put("birthmark_2.0.0.efi", petest.UKI("2.0.0")) }, ErrTried},
		"another release there": {func(d device) {
			d.put(draft, petest.UKI("2.0.0"))
			d.put("birthmark_0.9.0+3.efi", petest.UKI("0.9.0"))
		}, nil},
	} {
		d := newDevice(t)
		c.change(d)
		before := d.files()
		if err := d.loader().Arm("2.0.0", sum); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
		if after := d.files(); after != before {
			t.Errorf("%s: EFI/Linux held %s, now %s", name, before, after)
		}
	}
	d := newDevice(t)
	d.put("birthmark_2.0.0+5.efi", petest.UKI("2.0.0"))
	if err := d.loader().Arm("2.0.0", sum); err != nil {
		t.Errorf("armed, when a release got five tries: %v", err)
	}
	d = newDevice(t)
	if err := d.loader().Arm("1.0.0", sha256.Sum256(petest.UKI("1.0.0"))); err == nil {
		t.Error("the release that runs was armed")
	}
	d.wantFiles(running)
}

func TestDefaultIsReportedAndCleared(t *testing.T) {
	d := newDevice(t)
	d.set(entryDefault, text("birthmark_1*"))
	d.must(os.WriteFile(d.path("efi/loader/loader.conf"), []byte("timeout 0\ndefault birthmark_1*\n"), 0o644))
	l := d.loader()
	s, err := l.Status()
	d.must(err)
	all := strings.Join(s.Warnings, "\n")
	if !strings.Contains(all, "LoaderEntryDefault") || !strings.Contains(all, "loader.conf") {
		t.Errorf("warnings are %q, want both defaults among them", s.Warnings)
	}
	d.must(l.Arm("2.0.0", d.stage(l, "2.0.0")))
	if _, err := os.Stat(d.vars().path(entryDefault)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("LoaderEntryDefault is still there (%v)", err)
	}
}

func TestWarnings(t *testing.T) {
	for name, c := range map[string]struct {
		change func(device)
		want   string // "" for none
	}{
		"a healthy device":                  {func(device) {}, ""},
		"a loader that counts wrongly":      {func(d device) { d.set(loaderInfo, text("systemd-boot 258.3-1.fc43")) }, "258.3"},
		"another one":                       {func(d device) { d.set(loaderInfo, text("systemd-boot 259")) }, "259"},
		"a loader with a number like those": {func(d device) { d.set(loaderInfo, text("systemd-boot 258.30")) }, ""},
		"a loader that does not count":      {func(d device) { d.set(loaderFeatures, make([]byte, 8)) }, "does not say that it counts"},
		"a loader that says nothing":        {func(d device) { d.must(os.Remove(d.vars().path(loaderFeatures))) }, "does not say that it counts"},
		"a loader that counted no try":      {func(d device) { d.must(os.Remove(d.vars().path(bootCountPath))) }, "counted no try"},
		"an entry without a counter": {func(d device) {
			d.set(entrySelected, text("birthmark_1.0.0.efi"))
			d.must(os.Remove(d.vars().path(bootCountPath)))
		}, ""},
		"what fsck found": {func(d device) {
			d.must(os.WriteFile(d.path("efi/FSCK0000.REC"), nil, 0o644))
		}, "FSCK0000.REC"},
		"a twin": {func(d device) { d.put("birthmark_1.0.0.efi", petest.UKI("1.0.0")) }, "two names"},
	} {
		d := newDevice(t)
		c.change(d)
		s, err := d.loader().Status()
		if err != nil || (len(s.Warnings) == 0) != (c.want == "") || !strings.Contains(strings.Join(s.Warnings, "\n"), c.want) {
			t.Errorf("%s: warnings %q, %v, want %q", name, s.Warnings, err, c.want)
		}
	}
}

func TestOneShot(t *testing.T) {
	for name, c := range map[string]struct {
		selected string
		counted  bool // whether the boot loader renamed it
		want     string
	}{
		"names with counters":              {"birthmark_1.0.0+3.efi", true, "birthmark_2.0.0+0-3.efi"},
		"names without":                    {"birthmark_1.0.0.efi", true, "birthmark_2.0.0.efi"},
		"names of which nothing is known":  {"birthmark_1.0.0.efi", false, "birthmark_2.0.0+0-3.efi"},
		"names with counters, at +0 still": {"birthmark_1.0.0+0-3.efi", true, "birthmark_2.0.0+0-3.efi"},
	} {
		d := newDevice(t)
		d.put("Birthmark_2.0.0+0-3.EFI", petest.UKI("2.0.0"))
		d.set(entrySelected, text(c.selected))
		if !c.counted {
			d.must(os.Remove(d.vars().path(bootCountPath)))
		}
		l := d.loader()
		d.must(l.OneShot())
		b, err := os.ReadFile(d.vars().path(entryOneShot))
		if want := append([]byte{7, 0, 0, 0}, text(c.want)...); err != nil || !bytes.Equal(b, want) {
			t.Errorf("%s: LoaderEntryOneShot is %q, %v, want %q", name, b, err, want)
		}
		d.must(l.Disarm())
		if _, err := os.Stat(d.vars().path(entryOneShot)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: LoaderEntryOneShot is there after Disarm (%v)", name, err)
		}
	}
	d := newDevice(t)
	if err := d.loader().OneShot(); err == nil {
		t.Error("chose another release where there is none")
	}
}

func TestOpenRefuses(t *testing.T) {
	d := newDevice(t)
	for _, c := range []Config{
		{Root: d.root, Name: "", Tries: 3}, {Root: d.root, Name: "Birthmark", Tries: 3}, {Root: d.root, Name: "a/b", Tries: 3},
		{Root: d.root, Name: "a_b", Tries: 3}, {Root: d.root, Name: "birthmark", Tries: 0}, {Root: d.root, Name: "birthmark", Tries: 1000},
		{Root: t.TempDir(), Name: "birthmark", Tries: 3},
	} {
		if _, err := Open(c); err == nil {
			t.Errorf("%+v was opened", c)
		}
	}
	d.must(os.Rename(d.path("efi"), d.path("boot")))
	if _, err := Open(Config{Root: d.root, Name: "birthmark", Tries: 3}); err != nil {
		t.Errorf("an EFI system partition on /boot: %v", err)
	}
}
