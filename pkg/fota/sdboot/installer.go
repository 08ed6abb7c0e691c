package sdboot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/sdboot/pe"
	"birthmark/pkg/fota/slot"
)

// An Installer is the [fota.Installer] of a device with systemd-boot: a [Loader] and two
// slots. What the device is, and which release runs, it takes from os-release(5):
// IMAGE_ID, which is also what the names of entries begin with, and IMAGE_VERSION.
type Installer struct {
	Root  string // of the file system, "/" on a device
	Tries int    // that a release gets
}

var _ fota.Installer = Installer{}

// open finds the boot loader, and what runs.
func (i Installer) open() (*Loader, fota.Status, error) {
	id, version, err := fota.Identity(os.DirFS(i.Root))
	st := fota.Status{Compatible: id, Running: version}
	if err != nil {
		return nil, st, err
	}
	l, err := Open(Config{Root: i.Root, Name: id, Tries: i.Tries})
	return l, st, err
}

// Status implements [fota.Installer]. The floor is the security version that runs. What a
// loader started without counting the try is on trial, since nobody can tell whether it was
// blessed before. What has no counter in its name, as an image may be delivered, is not.
func (i Installer) Status(context.Context) (fota.Status, error) {
	l, st, err := i.open()
	if err != nil {
		return st, err
	}
	found, err := l.Status()
	if err != nil {
		return st, err
	}
	st.Floor, st.SecureBoot, st.Notes = st.Running.Security, found.SecureBoot, found.Warnings
	st.Trial = found.Uncounted || found.Running.Counted && (found.Running.Left < i.Tries || found.Running.Done > 0)
	if got := found.Running.Version; got != st.Running.String() {
		st.Notes = append(st.Notes, fmt.Sprintf("the boot loader started %s, and os-release says %v", got, st.Running))
	}
	st.Slots = map[string]int64{fota.UKISlot: pe.SizeLimit}
	switch to, err := Inactive(i.Root); {
	case err != nil:
		st.Notes = append(st.Notes, err.Error())
	default:
		st.Slots[fota.RootSlot] = to.Size
		if err := to.Close(); err != nil {
			return st, err
		}
	}
	st.Other, err = l.other(st.Running, found.Others)
	return st, err
}

// other is the release that does not run. Of several, which only an accident leaves, it
// is the one that the boot loader would start.
func (l *Loader) other(running fota.Version, others []Entry) (best fota.Other, err error) {
	for _, e := range others {
		v, err := fota.ParseVersion(e.Version)
		if err != nil {
			continue // of a time before security versions; it can be fallen back to, and that is all
		}
		o := fota.Other{Version: v, Mark: fota.Kept}
		switch {
		case e.Counted && e.Left == 0:
			o.Mark = fota.Failed
		case v.Compare(running) > 0:
			o.Mark, o.Tries = fota.Armed, e.Left
		}
		if best.Mark == "" || v.Compare(best.Version) > 0 {
			best = o
		}
	}
	if best.Mark != "" {
		return best, nil
	}
	names, err := readNames(l.path(""))
	for _, name := range names {
		if !l.isDraft(name) {
			continue
		}
		version := strings.TrimSuffix(strings.TrimPrefix(strings.ToLower(name), "."+l.name+"_"), draftSuffix)
		if v, err := fota.ParseVersion(version); err == nil {
			best = fota.Other{Version: v, Mark: fota.Staged}
		}
	}
	return best, err
}

// Install implements [fota.Installer]. Besides what [Loader.Check] refuses, it refuses at
// [fota.StageSlot] a release without exactly an image for each class, and at
// [fota.StageBoot] a UKI that does not start the root file system beside it, with the code
// "root", and a release older than what runs, with "older": an owner may permit one, and
// the boot loader would not start it.
func (i Installer) Install(ctx context.Context, m *fota.Manifest, copyImage fota.CopyImage, progress func(done, total int64)) (err error) {
	root, _, err := images(m)
	if err != nil {
		return err
	}
	l, st, err := i.open()
	if err != nil {
		return err
	}
	if m.Version.Compare(st.Running) < 0 {
		return fota.Refuse(fota.StageBoot, "older", "systemd-boot starts the newest release that has tries left: %v would not be tried beside %v", m.Version, st.Running)
	}
	to, err := Inactive(i.Root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	if root.Size > to.Size {
		return fota.Refuse(fota.StageSlot, "size", "the root file system has %d bytes, the slot %s %d", root.Size, to.Name, to.Size)
	}
	if err := l.Disarm(); err != nil {
		return err
	}
	if err := l.Cleanup(); err != nil && !errors.Is(err, ErrTwin) {
		return err
	}
	// A draft starts nothing, and what the firmware would not start is to be refused
	// before the slot is written.
	if err := write(ctx, m, l, to, copyImage, progress); err != nil {
		return errors.Join(err, l.Cleanup())
	}
	return nil
}

// write stages the UKI, writes the root file system, and holds one against the other.
func write(ctx context.Context, m *fota.Manifest, l *Loader, to *slot.Slot, copyImage fota.CopyImage, progress func(done, total int64)) error {
	root, uki, err := images(m)
	if err != nil {
		return err
	}
	total := root.Size + uki.Size
	r := slot.NewReader(ctx, uki, copyImage, func(done, _ int64) { progress(done, total) })
	sum, err := l.Stage(ctx, r, uki.Size, m.Version.String())
	if err := r.End(err, sum); err != nil {
		return err
	}
	if err := to.Install(ctx, root, copyImage, func(done, _ int64) { progress(uki.Size+done, total) }); err != nil {
		return err
	}
	return l.starts(m.Version.String(), to.Path())
}

// images finds the image for each class.
func images(m *fota.Manifest) (root, uki fota.Image, err error) {
	found := map[string][]fota.Image{}
	for _, image := range m.Images {
		found[image.Slot] = append(found[image.Slot], image)
	}
	if len(m.Images) != 2 || len(found[fota.RootSlot]) != 1 || len(found[fota.UKISlot]) != 1 {
		return root, uki, fota.Refuse(fota.StageSlot, "images", "it has %d images, want one for %s and one for %s", len(m.Images), fota.RootSlot, fota.UKISlot)
	}
	return found[fota.RootSlot][0], found[fota.UKISlot][0], nil
}

// starts holds a staged UKI against the slot that it has to start.
func (l *Loader) starts(version, root string) error {
	f, err := os.Open(l.path(l.draft(version)))
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	uki, err := ReadUKI(f, info.Size())
	if err != nil {
		return err
	}
	tree, err := parseTree(uki.CommandLine)
	if err != nil {
		return fota.Refuse(fota.StageBoot, "root", "it does not say what it starts: %w", err)
	}
	is, err := tree.isIn(root)
	if err == nil && !is {
		err = fota.Refuse(fota.StageBoot, "root", "it starts another root file system than the one beside it")
	}
	return err
}

// Arm implements [fota.Installer].
func (i Installer) Arm(_ context.Context, m *fota.Manifest) error {
	_, uki, err := images(m)
	if err != nil {
		return err
	}
	l, _, err := i.open()
	if err != nil {
		return err
	}
	err = l.Arm(m.Version.String(), uki.SHA256)
	if errors.Is(err, ErrNotStaged) || errors.Is(err, ErrTried) {
		return fota.Refuse(fota.StageBoot, "staged", "%w", err)
	}
	return err
}

// Cancel implements [fota.Installer]. A release that was good once stays.
func (i Installer) Cancel(ctx context.Context) error {
	st, err := i.Status(ctx)
	if err != nil {
		return err
	}
	l, _, err := i.open()
	if err != nil {
		return err
	}
	if mark := st.Other.Mark; mark == fota.Armed || mark == fota.Failed {
		if err := l.Disarm(); err != nil {
			return err
		}
	}
	return l.Cleanup()
}

// Bless implements [fota.Installer].
func (i Installer) Bless(context.Context) error {
	l, _, err := i.open()
	if err != nil {
		return err
	}
	return l.Bless()
}
