package sdboot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/fotatest"
	"birthmark/pkg/fota/sdboot/pe/petest"
)

// TestSuite holds what every installer promises.
func TestSuite(t *testing.T) {
	fotatest.Run(t, func(t *testing.T) fotatest.Device {
		d, i := newInstaller(t)
		return &started{d, i, map[string]string{"1.0.0+sv1": commandLine(1, 10)}}
	})
}

// A started device is one with a boot loader.
type started struct {
	device
	installer Installer
	lines     map[string]string // the kernel's command lines, by release
}

// Installer implements [fotatest.Device].
func (d *started) Installer() fota.Installer { return d.installer }

// Start implements [fotatest.Device]: the newest entry that has tries left, and one that
// has none if there is no other.
func (d *started) Start() {
	d.Helper()
	l := d.loader()
	var best Entry
	better := func(e Entry) bool {
		v, err := fota.ParseVersion(e.Version)
		d.must(err)
		before, err := fota.ParseVersion(best.Version)
		bad, wasBad := e.Counted && e.Left == 0, best.Counted && best.Left == 0
		return err != nil || bad == wasBad && v.Compare(before) > 0 || !bad && wasBad
	}
	for name := range strings.FieldsSeq(d.files()) {
		if e, ok := l.parseEntry(name); ok && better(e) {
			best = e
		}
	}
	d.set(entrySelected, text(best.File))
	if best.Counted && best.Left > 0 {
		counted := fmt.Sprintf("birthmark_%s+%d-%d.efi", best.Version, best.Left-1, best.Done+1)
		d.must(os.Rename(d.entry(best.File), d.entry(counted)))
		best.File = counted
	}
	d.set(bootCountPath, text(`\EFI\Linux\`+best.File))
	d.runs(best.Version)
	d.must(os.WriteFile(d.path("proc/cmdline"), []byte(d.lines[best.Version]), 0o644))
}

func (d *started) entry(name string) string { return d.path("efi/EFI/Linux/" + name) }

// Release implements [fotatest.Device].
func (d *started) Release(version string) fotatest.Release {
	tree := byte(10 + len(d.lines))
	d.lines[version] = commandLine(tree, 10)
	return ship(d, version, tree, tree)
}

// parts are the file that starts a version and the slot with its root, "" if they are not
// there.
func (d *started) parts(version string, runs bool) (uki, root []byte) {
	d.Helper()
	for name := range strings.FieldsSeq(d.files()) {
		if strings.HasPrefix(name, "birthmark_"+version+"+") || name == ".birthmark_"+version+".new" {
			b, err := os.ReadFile(d.entry(name))
			d.must(err)
			uki = b
		}
	}
	line, err := os.ReadFile(d.path("proc/cmdline"))
	d.must(err)
	tree, err := parseTree(string(line))
	d.must(err)
	for _, name := range slotNames {
		is, err := tree.isIn(slotPath(d.root, name))
		d.must(err)
		if is == runs {
			root, err = os.ReadFile(slotPath(d.root, name))
			d.must(err)
		}
	}
	return uki, root
}

// Running implements [fotatest.Device].
func (d *started) Running() []byte {
	d.Helper()
	_, v, err := fota.Identity(os.DirFS(d.root))
	d.must(err)
	uki, root := d.parts(v.String(), true)
	if len(uki) == 0 {
		d.Fatalf("what starts %v is gone", v)
	}
	return append(root, uki...)
}

// Holds implements [fotatest.Device].
func (d *started) Holds(r fotatest.Release) bool {
	d.Helper()
	uki, root := d.parts(r.Version.String(), false)
	return bytes.Equal(uki, r.Contents[fota.UKISlot]) && bytes.HasPrefix(root, r.Contents[fota.RootSlot])
}

// Spoil implements [fotatest.Device]. It is the UKI, since the root file system is
// verified when it is used, against what the UKI says.
func (d *started) Spoil() {
	d.Helper()
	drafts, err := filepath.Glob(d.entry(".birthmark_*.new"))
	d.must(err)
	for _, draft := range drafts {
		b, err := os.ReadFile(draft)
		d.must(err)
		b[len(b)-1]++
		d.must(os.WriteFile(draft, b, 0o600))
	}
}

// newInstaller is a device on which 1.0.0+sv1 runs from root-a, out of the factory.
func newInstaller(tb testing.TB) (device, Installer) {
	d := newDevice(tb)
	d.slots(1, 9)
	d.delete("birthmark_1.0.0+2-1.efi")
	d.put("birthmark_1.0.0+sv1+2-1.efi", petest.UKI("1.0.0+sv1"))
	d.set(entrySelected, text("birthmark_1.0.0+sv1+3.efi"))
	d.set(bootCountPath, text(`\EFI\Linux\birthmark_1.0.0+sv1+2-1.efi`))
	d.must(os.MkdirAll(d.path("usr/lib"), 0o755))
	d.runs("1.0.0+sv1")
	return d, Installer{Root: d.root, Tries: 3}
}

// runs writes the os-release of what runs.
func (d device) runs(version string) {
	d.Helper()
	d.must(os.WriteFile(d.path("usr/lib/os-release"), []byte("IMAGE_ID=birthmark\nIMAGE_VERSION="+version+"\n"), 0o644))
}

// ship makes a release whose root file system has the hash tree of a byte, and whose UKI
// starts that of another.
func ship(t testing.TB, version string, root, starts byte) fotatest.Release {
	r := fotatest.NewRelease(t, "birthmark", version)
	r.Image(fota.RootSlot, append(make([]byte, 10*blockSize), treeTop(root)...))
	r.Image(fota.UKISlot, petest.Program(petest.Section{Name: ".linux", Text: "kernel"},
		petest.Section{Name: ".osrel", Text: "IMAGE_VERSION=" + version + "\n"},
		petest.Section{Name: ".cmdline", Text: "init=/sbin/init " + commandLine(starts, 10)}))
	return r
}

// What starts nothing, or something else, is refused, and not left behind.
func TestInstallerRefusesWhatDoesNotStart(t *testing.T) {
	for name, c := range map[string]struct {
		release func() fotatest.Release
		code    string
	}{
		"a program, but no UKI": {func() fotatest.Release {
			r := ship(t, "1.1.0+sv2", 2, 2)
			r.Images = r.Images[:1]
			r.Image(fota.UKISlot, petest.Program(petest.Section{Name: ".text", Text: "shell"}))
			return r
		}, "uki"},
		"the UKI of another version": {func() fotatest.Release {
			r := ship(t, "1.1.0+sv2", 2, 2)
			r.Version.Minor = 7
			return r
		}, "version"},
		"a release older than what runs":   {func() fotatest.Release { return ship(t, "0.9.0+sv1", 2, 2) }, "older"},
		"the UKI starts another root":      {func() fotatest.Release { return ship(t, "1.1.0+sv2", 2, 3) }, "root"},
		"the UKI starts what runs already": {func() fotatest.Release { return ship(t, "1.1.0+sv2", 2, 1) }, "root"},
	} {
		t.Run(name, func(t *testing.T) {
			d, i := newInstaller(t)
			r := c.release()
			err := i.Install(t.Context(), r.Manifest, func(_ context.Context, w io.Writer, image fota.Image, _ func(done, total int64)) error {
				_, err := w.Write(r.Contents[image.Slot])
				return err
			}, func(done, total int64) {})
			wantRefusal(t, name, err, fota.StageBoot, c.code)
			d.wantFiles("birthmark_1.0.0+sv1+2-1.efi")
			if c.code != "root" {
				if b, err := os.ReadFile(d.path("dev/disk/by-partlabel/root-b")); err != nil || !bytes.Equal(b[10*blockSize:11*blockSize], treeTop(9)) {
					t.Errorf("the slot was written to for what does not start (%v)", err)
				}
			}
		})
	}
}

// What nobody has judged is on trial, whatever its name looks like.
func TestWhatIsOnTrial(t *testing.T) {
	for _, c := range []struct {
		name     string
		selected string // what the loader started
		counted  string // what it says that it renamed it to, "" if nothing
		now      string // what it is called since
		trial    bool
	}{
		{"a try was counted", "+3", "+2-1", "+2-1", true},
		{"and it was blessed", "+3", "+2-1", "+3", false},
		{"the last try was counted", "+1-2", "+0-3", "+0-3", true},
		{"the loader could not rename it", "+3", "", "+3", true},
		{"the loader could not rename it, after a try that counted", "+2-1", "", "+2-1", true},
		{"nor this time, and it was blessed", "+2-1", "", "+3", true},
		{"an image as it was delivered", "", "", "", false},
		{"an image as it was delivered, blessed", "", "", "+3", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, i := newInstaller(t)
			d.delete("birthmark_1.0.0+sv1+2-1.efi")
			d.put("birthmark_1.0.0+sv1"+c.now+".efi", petest.UKI("1.0.0+sv1"))
			d.set(entrySelected, text("birthmark_1.0.0+sv1"+c.selected+".efi"))
			d.must(os.Remove(d.vars().path(bootCountPath)))
			if c.counted != "" {
				d.set(bootCountPath, text(`\EFI\Linux\birthmark_1.0.0+sv1`+c.counted+".efi"))
			}
			if st, err := i.Status(t.Context()); err != nil || st.Trial != c.trial {
				t.Errorf("trial: got %t, %v, want %t", st.Trial, err, c.trial)
			}
			// A bless is never refused: the device has to come up again.
			if err := i.Bless(t.Context()); err != nil {
				t.Errorf("bless: %v", err)
			}
			d.wantFiles("birthmark_1.0.0+sv1+3.efi")
		})
	}
}

func TestInstallerWithoutALoader(t *testing.T) {
	d, i := newInstaller(t)
	d.must(os.RemoveAll(d.path("efi")))
	if _, err := i.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "EFI/Linux") {
		t.Errorf("without an EFI system partition: got %v", err)
	}
}

func wantRefusal(t *testing.T, when string, err error, stage fota.Stage, code string) {
	t.Helper()
	var r *fota.Refusal
	if !errors.As(err, &r) || r.Stage != stage || r.Code != code {
		t.Errorf("%s: got %v, want a refusal at %s with the code %s", when, err, stage, code)
	}
}
