package sdboot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/sdboot/pe/petest"
)

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

// A shipment is a release, as it comes out of a bundle.
type shipment struct {
	*fota.Manifest
	contents map[string][]byte // by class
	fails    error             // at the end of every image
}

// ship makes a release whose root file system has the hash tree of a byte, and whose UKI
// starts that of another.
func ship(t *testing.T, version string, root, starts byte) shipment {
	v, err := fota.ParseVersion(version)
	if err != nil {
		t.Fatal(err)
	}
	uki := petest.Program(petest.Section{Name: ".linux", Text: "kernel"},
		petest.Section{Name: ".osrel", Text: "IMAGE_VERSION=" + version + "\n"},
		petest.Section{Name: ".cmdline", Text: "init=/sbin/init " + commandLine(starts, 10)})
	s := shipment{Manifest: &fota.Manifest{Compatible: "birthmark", Version: v, Format: fota.FormatVerity}, contents: map[string][]byte{fota.RootSlot: append(make([]byte, 10*blockSize), treeTop(root)...), fota.UKISlot: uki}}
	for _, class := range []string{fota.RootSlot, fota.UKISlot} {
		b := s.contents[class]
		s.Images = append(s.Images, fota.Image{Slot: class, File: class + ".img", Size: int64(len(b)), SHA256: sha256.Sum256(b)})
	}
	return s
}

// resize makes the manifest right again.
func (s shipment) resize() {
	for i, image := range s.Images {
		b := s.contents[image.Slot]
		s.Images[i].Size, s.Images[i].SHA256 = int64(len(b)), sha256.Sum256(b)
	}
}

func (s shipment) copy(_ context.Context, w io.Writer, image fota.Image, progress func(done, total int64)) error {
	n, err := w.Write(s.contents[image.Slot])
	if err != nil {
		return err
	}
	progress(int64(n), image.Size)
	return s.fails
}

func (s shipment) into(t *testing.T, i Installer) error {
	return i.Install(t.Context(), s.Manifest, s.copy, func(done, total int64) {
		if done > total || total != s.Images[0].Size+s.Images[1].Size {
			t.Errorf("%d of %d bytes are done, of %d", done, total, s.Images[0].Size+s.Images[1].Size)
		}
	})
}

func (d device) status(i Installer) fota.Status {
	d.Helper()
	st, err := i.Status(d.Context())
	d.must(err)
	return st
}

func TestInstaller(t *testing.T) {
	d, i := newInstaller(t)
	st := d.status(i)
	if st.Compatible != "birthmark" || st.Running.String() != "1.0.0+sv1" || st.Floor != 1 || !st.Trial || st.Other.Mark != "" || st.Slots[fota.RootSlot] == 0 {
		t.Errorf("out of the factory the status is %+v", st)
	}
	d.must(i.Bless(t.Context()))
	if d.status(i).Trial {
		t.Error("blessed, and still on trial")
	}

	next := ship(t, "1.1.0+sv2", 2, 2)
	d.must(st.Policy().Check(next.Manifest))
	for range 2 {
		d.must(next.into(t, i))
		if o := d.status(i).Other; o.Mark != fota.Staged || o.Version != next.Version {
			t.Fatalf("installed, and the other release is %+v", o)
		}
	}
	if b, err := os.ReadFile(d.path("dev/disk/by-partlabel/root-b")); err != nil || !bytes.HasPrefix(b, next.contents[fota.RootSlot]) {
		t.Errorf("root-b does not hold what was installed (%v)", err)
	}
	if b, err := os.ReadFile(d.path("dev/disk/by-partlabel/root-a")); err != nil || !bytes.Equal(b[10*blockSize:11*blockSize], treeTop(1)) {
		t.Errorf("root-a, from which the device runs, was written to (%v)", err)
	}
	for range 2 {
		d.must(i.Arm(t.Context(), next.Manifest))
		if o := d.status(i).Other; o.Mark != fota.Armed || o.Tries != 3 {
			t.Errorf("armed, and the other release is %+v", o)
		}
	}
	d.wantFiles("birthmark_1.0.0+sv1+3.efi", "birthmark_1.1.0+sv2+3.efi")

	// The boot loader counts a try, and the new release runs.
	d.must(os.Rename(d.path("efi/EFI/Linux/birthmark_1.1.0+sv2+3.efi"), d.path("efi/EFI/Linux/birthmark_1.1.0+sv2+2-1.efi")))
	d.set(entrySelected, text("birthmark_1.1.0+sv2+3.efi"))
	d.set(bootCountPath, text(`\EFI\Linux\birthmark_1.1.0+sv2+2-1.efi`))
	d.runs("1.1.0+sv2")
	d.must(os.WriteFile(d.path("proc/cmdline"), []byte(commandLine(2, 10)), 0o644))
	if st := d.status(i); !st.Trial || st.Running != next.Version || st.Other.Mark != fota.Kept || st.Other.Version.String() != "1.0.0+sv1" {
		t.Errorf("after the start the status is %+v", st)
	}
	d.must(i.Bless(t.Context()))
	d.must(i.Cancel(t.Context())) // of nothing: the old release stays
	d.wantFiles("birthmark_1.0.0+sv1+3.efi", "birthmark_1.1.0+sv2+3.efi")
}

func TestInstallerComesBack(t *testing.T) {
	d, i := newInstaller(t)
	next := ship(t, "1.1.0+sv2", 2, 2)
	d.must(next.into(t, i))
	d.must(i.Cancel(t.Context()))
	d.wantFiles("birthmark_1.0.0+sv1+2-1.efi")
	wantRefusal(t, "arm what was taken back", i.Arm(t.Context(), next.Manifest), fota.StageBoot, "staged")

	d.must(next.into(t, i))
	d.must(i.Arm(t.Context(), next.Manifest))
	d.must(os.Rename(d.path("efi/EFI/Linux/birthmark_1.1.0+sv2+3.efi"), d.path("efi/EFI/Linux/birthmark_1.1.0+sv2+0-3.efi")))
	if o := d.status(i).Other; o.Mark != fota.Failed || o.Version != next.Version {
		t.Errorf("tried three times, and the other release is %+v", o)
	}
	wantRefusal(t, "arm what failed", i.Arm(t.Context(), next.Manifest), fota.StageBoot, "staged")
	d.must(i.Cancel(t.Context()))
	d.must(i.Cancel(t.Context()))
	d.wantFiles("birthmark_1.0.0+sv1+2-1.efi")
}

func TestInstallerLeavesNothingHalf(t *testing.T) {
	broken := errors.New("the bundle is not what it was")
	for name, c := range map[string]struct {
		spoil       func(*shipment)
		stage, code string
	}{
		"a program, but no UKI": {func(s *shipment) {
			s.contents[fota.UKISlot] = petest.Program(petest.Section{Name: ".text", Text: "shell"})
			s.resize()
		}, "boot", "uki"},
		"the bundle changes":               {func(s *shipment) { s.fails = broken }, "", ""},
		"other bytes than the manifest's":  {func(s *shipment) { s.Images[0].SHA256[0]++ }, "", ""},
		"fewer bytes":                      {func(s *shipment) { s.contents[fota.RootSlot] = s.contents[fota.RootSlot][:100] }, "", ""},
		"no UKI":                           {func(s *shipment) { s.Images = s.Images[:1] }, "slot", "images"},
		"two root file systems":            {func(s *shipment) { s.Images = append(s.Images, s.Images[0]) }, "slot", "images"},
		"a class that nobody knows":        {func(s *shipment) { s.Images[1].Slot = "appfs" }, "slot", "images"},
		"larger than the slot":             {func(s *shipment) { s.Images[0].Size = 1 << 40 }, "slot", "size"},
		"the UKI of another version":       {func(s *shipment) { s.Version.Minor = 7 }, "boot", "version"},
		"the UKI starts another root":      {func(s *shipment) { *s = ship(t, "1.1.0+sv2", 2, 3) }, "boot", "root"},
		"the UKI starts what runs already": {func(s *shipment) { *s = ship(t, "1.1.0+sv2", 2, 1) }, "boot", "root"},
	} {
		t.Run(name, func(t *testing.T) {
			d, i := newInstaller(t)
			s := ship(t, "1.1.0+sv2", 2, 2)
			s.Images = slices.Clone(s.Images)
			c.spoil(&s)
			err := s.into(t, i)
			switch {
			case err == nil:
				t.Fatal("it was installed")
			case c.stage != "":
				wantRefusal(t, name, err, fota.Stage(c.stage), c.code)
			case s.fails != nil && !errors.Is(err, broken):
				t.Errorf("got %v, want %v", err, broken)
			}
			d.wantFiles("birthmark_1.0.0+sv1+2-1.efi")
			if c.stage == "boot" && c.code != "root" {
				if b, err := os.ReadFile(d.path("dev/disk/by-partlabel/root-b")); err != nil || !bytes.Equal(b[10*blockSize:11*blockSize], treeTop(9)) {
					t.Errorf("the slot was written to for what does not start (%v)", err)
				}
			}
			if st := d.status(i); st.Other.Mark != "" || st.Running.String() != "1.0.0+sv1" {
				t.Errorf("afterwards the status is %+v", st)
			}
			if b, err := os.ReadFile(d.path("dev/disk/by-partlabel/root-a")); err != nil || !bytes.Equal(b[10*blockSize:11*blockSize], treeTop(1)) {
				t.Errorf("root-a, from which the device runs, was written to (%v)", err)
			}
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
