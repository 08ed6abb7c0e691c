package sdboot

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"birthmark/internal/crashdisk"
	"birthmark/pkg/fota/sdboot/pe/petest"
)

// A crashDisk is an EFI system partition that knows what a power cut leaves of it.
type crashDisk struct {
	*crashdisk.Disk
	// renamed, if set, is told of each rename before anything else is done.
	renamed func(from, to string)
}

func (d crashDisk) remove(path string) error     { return d.Remove(path) }
func (d crashDisk) syncFolder(path string) error { return d.SyncFolder(path) }

func (d crashDisk) create(path string) (file, error) {
	return d.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

func (d crashDisk) rename(from, to string) error {
	err := d.Rename(from, to)
	if err == nil && d.renamed != nil {
		d.renamed(from, to)
	}
	return err
}

func (d crashDisk) sync(path string) error {
	f, err := d.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

const folder = "efi/EFI/Linux"

// image is a device's disk with some files in EFI/Linux.
func image(files map[string][]byte) crashdisk.Image {
	img := crashdisk.Image{"efi": nil, "efi/EFI": nil, folder: nil}
	for name, b := range files {
		img[filepath.Join(folder, name)] = b
	}
	return img
}

// A scene is a device of which the EFI system partition alone can lose power.
type scene struct {
	device
	version string // that runs
}

// loaderOn is the boot loader of the scene, with its entries on d.
func (s scene) loaderOn(d crashDisk) *Loader {
	l := s.loader()
	l.esp, l.disk = filepath.Join(d.Root, "efi"), d
	return l
}

// fatRenames are the further images that FAT may leave of a rename that is not durable
// yet, by what of it was written: before is one without it.
func fatRenames(before crashdisk.Image, from, to string, ordered bool) []crashdisk.Image {
	with := func(change func(crashdisk.Image)) crashdisk.Image {
		img := maps.Clone(before)
		change(img)
		return img
	}
	images := []crashdisk.Image{
		with(func(img crashdisk.Image) { img[to] = img[from] }), // both names
		with(func(img crashdisk.Image) { img[to] = []byte{} }),  // the new one does not say yet where the file begins
	}
	if !ordered {
		images = append(images,
			with(func(img crashdisk.Image) { delete(img, from) }), // no name
			with(func(img crashdisk.Image) { delete(img, from); img[to] = []byte{} }))
	}
	return images
}

// powerCuts does something on a disk and lets check look at what a power cut before,
// within and after each effect may leave.
func (s scene) powerCuts(w *crashdisk.Survey, files map[string][]byte, ordered bool, do func(*Loader), check func(crashdisk.Image) string) {
	d := crashDisk{Disk: crashdisk.New(s, image(files))}
	d.Before = func(string) error { w.Look(d.Disk, s.version, check); return nil }
	d.renamed = func(from, to string) {
		rel := func(path string) string { name, err := filepath.Rel(d.Root, path); s.must(err); return name }
		for img := range d.Cut() {
			if _, moved := img[rel(to)]; moved {
				continue
			}
			for _, odd := range fatRenames(img, rel(from), rel(to), ordered) {
				if w.Done() {
					return
				}
				w.Cuts++
				if fault := check(odd); fault != "" {
					w.Faults = append(w.Faults, fault+", after a rename that was cut and left "+names(odd))
				}
			}
		}
	}
	do(s.loaderOn(d))
	w.Look(d.Disk, s.version, check)
}

// repair does what fsck.vfat does at a start: of two names of one file the second, or the
// first, is emptied.
func repair(img crashdisk.Image, first bool) crashdisk.Image {
	fixed := maps.Clone(img)
	for a, b := range img {
		for other, c := range img {
			if a < other && len(b) > 0 && bytes.Equal(b, c) {
				if first {
					other = a
				}
				fixed[other] = []byte{}
			}
		}
	}
	return fixed
}

// names are those in EFI/Linux, with their sizes.
func names(img crashdisk.Image) string {
	var all []string
	for name, b := range img {
		if b != nil {
			all = append(all, fmt.Sprintf("%s (%d bytes)", filepath.Base(name), len(b)))
		}
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// bootable are the names of whole releases that the boot loader would find.
func bootable(img crashdisk.Image, version string) (names []string) {
	for name, b := range img {
		if strings.HasSuffix(name, ".efi") && bytes.Equal(b, petest.UKI(version)) {
			names = append(names, filepath.Base(name))
		}
	}
	return names
}

// update is what an installer does to get 2.0.0 armed, from its beginning.
func (s scene) update(l *Loader) error {
	uki := petest.UKI("2.0.0")
	if err := l.Disarm(); err != nil {
		return err
	}
	sum, err := l.Stage(s.Context(), bytes.NewReader(uki), int64(len(uki)), "2.0.0")
	if err != nil {
		return err
	}
	return l.Arm("2.0.0", sum)
}

// A power cut at any point of an update leaves what runs as it was, and the update done
// once more gets to its end.
func TestPowerCutInAnUpdate(t *testing.T) {
	s := scene{newDevice(t), "1.0.0"}
	l := s.loader()
	if l.disk != (realDisk{}) {
		t.Fatal("a loader does not use the real disk")
	}
	whole := func(img crashdisk.Image) string {
		if !bytes.Equal(img[filepath.Join(folder, running)], petest.UKI("1.0.0")) || len(bootable(img, "1.0.0")) != 1 {
			return "what runs is not what it was"
		}
		for name, b := range img {
			if strings.HasSuffix(name, ".efi") && len(b) > 0 && !bytes.Equal(b, petest.UKI("1.0.0")) && !bytes.Equal(b, petest.UKI("2.0.0")) &&
				!bytes.Equal(b, petest.UKI("0.9.0")) {
				return name + " is a part of a release"
			}
		}
		for _, first := range []bool{false, true} {
			fixed := repair(img, first)
			if first && maps.EqualFunc(fixed, img, bytes.Equal) {
				continue
			}
			if fault := s.again(fixed); fault != "" {
				return fault
			}
		}
		return ""
	}
	var w crashdisk.Survey
	s.powerCuts(&w, map[string][]byte{running: petest.UKI("1.0.0"), "birthmark_0.9.0+0-3.efi": petest.UKI("0.9.0")}, false,
		func(l *Loader) { s.must(s.update(l)) }, whole)
	w.Report(t, 1000)
}

// again does the last step again, and if that cannot be done the update, on what a power
// cut left.
func (s scene) again(img crashdisk.Image) (fault string) {
	uki := petest.UKI("2.0.0")
	d := crashDisk{Disk: crashdisk.New(s, img)}
	defer d.Discard()
	l := s.loaderOn(d)
	err := l.Arm("2.0.0", sha256.Sum256(uki))
	if armedNow := len(bootable(imageOf(s, d), "2.0.0")) == 1; (err == nil) != armedNow {
		return fmt.Sprintf("Arm after it returned %v, and 2.0.0 is armed: %v", err, armedNow)
	}
	// One part of a draft is like another: of most it is enough that they are not armed.
	if part := img[filepath.Join(folder, draft)]; err != nil && len(part)%64 != 0 {
		return ""
	}
	if err != nil {
		err = s.update(l)
	}
	after := imageOf(s, d)
	if got := bootable(after, "2.0.0"); err != nil || len(got) != 1 || got[0] != armed || len(bootable(after, "1.0.0")) != 1 {
		return fmt.Sprintf("the update after it returned %v and left %s", err, names(after))
	}
	return ""
}

// imageOf is what is on a disk now, as a program sees it.
func imageOf(tb testing.TB, d crashDisk) crashdisk.Image {
	img := crashdisk.Image{}
	names, err := readNames(filepath.Join(d.Root, folder))
	if err != nil {
		tb.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(d.Root, folder, name))
		if err != nil {
			tb.Fatal(err)
		}
		img[filepath.Join(folder, name)] = b
	}
	return img
}

// A power cut while what runs is blessed leaves it where the boot loader finds it, and a
// second time it is blessed. Where the file system writes names out of order, it is the
// release to fall back to that is left in the worst case.
func TestPowerCutInABlessing(t *testing.T) {
	s := scene{newDevice(t), "1.0.0"}
	const other = "birthmark_0.9.0+3.efi"
	files := map[string][]byte{running: petest.UKI("1.0.0"), other: petest.UKI("0.9.0")}
	for _, ordered := range []bool{true, false} {
		check := func(img crashdisk.Image) string {
			if !bytes.Equal(img[filepath.Join(folder, other)], petest.UKI("0.9.0")) {
				return "the other release was touched"
			}
			lost := len(bootable(img, "1.0.0")) == 0
			if lost && ordered {
				return "what runs is lost"
			}
			for _, first := range []bool{false, true} {
				d := crashDisk{Disk: crashdisk.New(s, repair(img, first))}
				err := s.loaderOn(d).Bless()
				after := imageOf(s, d)
				d.Discard()
				got := bootable(after, "1.0.0")
				if lost && errors.Is(err, ErrUnknown) && len(bootable(after, "0.9.0")) == 1 {
					continue
				}
				if err != nil || len(got) != 1 || got[0] != "birthmark_1.0.0+3.efi" {
					return fmt.Sprintf("Bless after it returned %v and left %s", err, names(after))
				}
			}
			return ""
		}
		var w crashdisk.Survey
		s.powerCuts(&w, files, ordered, func(l *Loader) { s.must(l.Bless()) }, check)
		w.Report(t, 2)
	}
}

// After an update that is said to be armed, and a blessing that is said to be done, a
// power cut takes neither back.
func TestWhatIsDoneStays(t *testing.T) {
	s := scene{newDevice(t), "1.0.0"}
	for name, c := range map[string]struct {
		do   func(*Loader) error
		want string
	}{
		"armed":   {s.update, armed},
		"blessed": {(*Loader).Bless, "birthmark_1.0.0+3.efi"},
		"armed twice": {func(l *Loader) error {
			return errors.Join(s.update(l), l.Arm("2.0.0", sha256.Sum256(petest.UKI("2.0.0"))))
		}, armed},
	} {
		var w crashdisk.Survey
		d := crashDisk{Disk: crashdisk.New(t, image(map[string][]byte{running: petest.UKI("1.0.0")}))}
		s.must(c.do(s.loaderOn(d)))
		w.Look(d.Disk, name, func(img crashdisk.Image) string {
			if len(img[filepath.Join(folder, c.want)]) == 0 || img.Has(filepath.Join(folder, draft)) {
				return c.want + " is not there, or more is"
			}
			return ""
		})
		w.Report(t, 1)
	}
}

// As long as both names of a file are there, neither is removed: the blocks would go.
func TestTwinsStay(t *testing.T) {
	uki := petest.UKI("2.0.0")
	sum := sha256.Sum256(uki)
	t.Run("armed, with its draft", func(t *testing.T) {
		d := newDevice(t)
		d.put(draft, uki)
		d.put(armed, uki)
		l := d.loader()
		d.must(l.Arm("2.0.0", sum))
		for step, err := range map[string]error{"Disarm": l.Disarm(), "Cleanup": l.Cleanup()} {
			if !errors.Is(err, ErrTwin) {
				t.Errorf("%s: got %v, want %v", step, err, ErrTwin)
			}
		}
		d.wantFiles(running, draft, armed)
		d.put(draft, nil) // fsck.vfat
		d.must(l.Cleanup())
		d.wantFiles(running, armed)
	})
	t.Run("what runs", func(t *testing.T) {
		d := newDevice(t)
		d.put("birthmark_1.0.0+1-2.efi", petest.UKI("1.0.0"))
		l := d.loader()
		if err := l.Bless(); !errors.Is(err, ErrTwin) {
			t.Errorf("blessed: got %v, want %v", err, ErrTwin)
		}
		d.must(l.Disarm())
		d.must(l.Cleanup())
		d.wantFiles(running, "birthmark_1.0.0+1-2.efi")
	})
	t.Run("another version's draft", func(t *testing.T) {
		d := newDevice(t)
		d.put(".birthmark_0.9.0.new", petest.UKI("1.0.0"))
		l := d.loader()
		d.must(l.Arm("2.0.0", d.stage(l, "2.0.0")))
		d.wantFiles(running, ".birthmark_0.9.0.new", armed)
	})
}

// Whatever call fails, the error says so, what runs is not touched, and on a disk that is
// well again the update gets to its end.
func TestFailedCalls(t *testing.T) {
	s := scene{newDevice(t), "1.0.0"}
	for _, fault := range []error{syscall.ENOSPC, syscall.EIO, syscall.EROFS} {
		failed := 0
		for n := 1; ; n++ {
			d := crashDisk{Disk: crashdisk.New(t, image(map[string][]byte{running: petest.UKI("1.0.0"), "birthmark_0.9.0.efi": petest.UKI("0.9.0")}))}
			calls, call := 0, ""
			d.Before = func(c string) error {
				if calls++; calls == n {
					call = c
					return fault
				}
				return nil
			}
			l := s.loaderOn(d)
			err := s.update(l)
			if call == "" {
				break
			}
			failed++
			if !errors.Is(err, fault) {
				t.Errorf("call %d, %s: the update returned %v, want %v", n, call, err, fault)
			}
			if !bytes.Equal(imageOf(t, d)[filepath.Join(folder, running)], petest.UKI("1.0.0")) {
				t.Errorf("call %d, %s: what runs is not what it was", n, call)
			}
			if err := s.update(l); err != nil {
				t.Errorf("call %d, %s: the update after it returned %v", n, call, err)
			}
			d.Discard()
		}
		if failed < 10 {
			t.Errorf("%d calls failed, want at least 10", failed)
		}
	}
}
