// Package rauc is the boot loader's side of an update on a device whose boot loader RAUC
// knows: barebox, GRUB, U-Boot, EFI, or one with a program of its maker's.
//
// RAUC does two things: it installs bundles, and it tells boot loaders what to start. Here
// it does the second only, over D-Bus (GetSlotStatus, GetPrimary, Mark). What verifies a
// bundle and writes it is the same as on every other device, and stricter; a bundle needs
// no room of its own. docs/decisions says more.
//
// # What RAUC has to be like
//
// Of /etc/rauc/system.conf and what surrounds it is asked, at every call,
//
//   - compatible= is the IMAGE_ID of os-release(5);
//   - bootloader= is one that comes back from what does not start, and efi-use-bootnext=
//     is true, if it is there;
//   - statusfile= is a file. Without one RAUC mounts slots to write there what it knows,
//     into what was verified;
//   - there is no [keyring] and no [autoinstall], so that RAUC installs nothing: it knows
//     no floor, and takes what is refused here;
//   - there are no handlers, which nobody would run;
//   - two slots of one class have a bootname=; they and the slots whose parent= they are
//     are block devices, all different, and written as they are (type= raw, ext4 or vfat);
//   - nobody but root may speak to RAUC on the bus. The rules that come with it let
//     everybody;
//   - rauc-mark-good.service, which calls every start good, is masked, or not there.
//
// Otherwise every method refuses, at [fota.StageBoot] with the code "settings", and says
// why. A release that brings such settings is not blessed, therefore, and left again. One
// that was blessed before is blessed at its later starts, too, and its status has a note:
// a file that came to the device since is no reason to let it run out of tries.
//
// # What is remembered
//
// RAUC does not know which release is in a slot that it has not installed, whether it is
// whole, and whether what runs was found good. That is remembered in [Installer.State],
// and is believed as far as the boot loader does not say otherwise: what is marked
// [fota.Armed] there and is not what starts next, has failed. The record is changed before a
// slot is written, and after a slot was armed: if power is lost between the two, a release
// that was tried may be armed once more, and none is taken to be good.
//
// As with every boot loader that counts starts, each start has to be blessed: until
// then [fota.Status] says that what runs is on trial.
//
// # Limits
//
// How often a release is tried is between RAUC and the boot loader (GRUB: once; U-Boot and
// barebox: boot-attempts-primary, 3), and how many tries are left is not told. Whether
// firmware asks for signatures is not known, nor is an image held against them. Slots in raw
// flash (ubivol, nand, nor), in an eMMC's boot partitions, and those that are
// switched (boot-…) are not written.
package rauc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"birthmark/pkg/fota"
	"birthmark/pkg/store"
)

// An Installer is the [fota.Installer] of a device with RAUC. What the device is, and
// which release runs, it takes from os-release(5).
type Installer struct {
	Root  string // of the file system, "/" on a device
	Bus   string // the socket of D-Bus
	State string // a folder for what is remembered; nobody else's
}

var _ fota.Installer = Installer{}

// Has reports whether a device is set up for RAUC.
func Has(root string) bool {
	_, err := os.Stat(filepath.Join(root, settingsFile))
	return err == nil
}

// A memory is what is remembered.
type memory struct {
	// Sides is what the slots hold that are started, by their names. One that is not
	// there may hold anything.
	Sides map[string]release `json:"sides,omitempty"`
	// Blessed is the start of the system, by its boot_id, in which what runs was blessed.
	Blessed string `json:"blessed,omitempty"`
}

// A release is what a side holds, all of it.
type release struct {
	Version  fota.Version   `json:"version"`
	Mark     fota.Mark      `json:"mark"`               // Staged, Armed, or Kept: it was blessed
	Manifest *fota.Manifest `json:"manifest,omitempty"` // nil if it came from the factory
}

// A device is all there is to know at one call.
type device struct {
	*service
	memory         *store.Store[memory]
	compatible     string
	version        fota.Version
	boot           string // the boot_id
	running, other side
	next           string // the slot that starts next
	unsafe         error  // why nothing is installed
}

// open finds out all there is to know, and refuses settings that are not safe. The
// device has to be closed.
func (i Installer) open(ctx context.Context) (*device, error) {
	d, err := i.openKept(ctx)
	if err == nil && d.unsafe != nil {
		err = errors.Join(d.unsafe, d.close())
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// openKept is open, but the refusal is no more than a word, d.unsafe, if what runs was
// blessed before: what has changed since is no reason to let it run out of tries.
func (i Installer) openKept(ctx context.Context) (d *device, err error) {
	d = &device{}
	if d.compatible, d.version, err = fota.Identity(os.DirFS(i.Root)); err != nil {
		return nil, err
	}
	id, err := os.ReadFile(filepath.Join(i.Root, "proc/sys/kernel/random/boot_id"))
	if err != nil {
		return nil, err
	}
	d.boot = strings.TrimSpace(string(id))
	if d.memory, err = store.Open[memory](i.State); err != nil {
		return nil, fmt.Errorf("cannot know what the slots hold: %w", err)
	}
	s, no := readSettings(i.Root, d.compatible)
	if no == nil {
		no = checkBus(i.Root)
	}
	if no == nil {
		no = checkMarkGood(i.Root)
	}
	d.unsafe = no
	if no != nil && !slices.ContainsFunc(slices.Collect(maps.Keys(d.memory.Get().Sides)), d.kept) {
		return nil, errors.Join(no, d.memory.Close())
	}
	if d.service, err = dial(ctx, i.Bus, busLimit); err != nil {
		return nil, errors.Join(no, err, d.memory.Close())
	}
	err = d.look(ctx, s)
	if err == nil && no != nil && !d.kept(d.running.name) {
		err = no
	}
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// kept reports whether a side is known to hold what runs, and that it was blessed.
func (d *device) kept(side string) bool {
	r := d.memory.Get().Sides[side]
	return r.Mark == fota.Kept && r.Version == d.version
}

// look asks RAUC for the slots, and what starts next.
func (d *device) look(ctx context.Context, s settings) error {
	slots, err := d.slots(ctx)
	if err != nil {
		return err
	}
	if d.running, d.other, err = sides(s, slots); err != nil {
		return err
	}
	d.next, err = d.primary(ctx)
	return err
}

func (d *device) close() error {
	d.service.close()
	return d.memory.Close()
}

// Status implements [fota.Installer]. The floor is the security version that runs.
func (i Installer) Status(ctx context.Context) (st fota.Status, err error) {
	d, err := i.openKept(ctx)
	if err != nil {
		return st, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	known := d.memory.Get()
	st = fota.Status{Compatible: d.compatible, Running: d.version, Floor: d.version.Security,
		Trial: known.Blessed != d.boot, Other: d.mark(), Slots: map[string]int64{}}
	note := func(format string, args ...any) { st.Notes = append(st.Notes, fmt.Sprintf(format, args...)) }
	if d.unsafe != nil {
		note("nothing is installed: %v", d.unsafe)
	}
	if path := d.memory.Damaged(); path != "" {
		note("what was known of the slots is damaged, and was set aside as %s", path)
	}
	if runs, ok := known.Sides[d.running.name]; ok && runs.Version != d.version {
		note("%s was written with %v, and os-release says %v", d.running.name, runs.Version, d.version)
	}
	if d.next != d.running.name && st.Other.Mark != fota.Armed {
		note("%s starts next, and nobody here has armed it", d.next)
	}
	all, err := d.other.open()
	if err != nil {
		note("%v", err)
		return st, nil
	}
	for class, s := range all {
		st.Slots[class] = s.Size
	}
	return st, all.close()
}

// mark is what is known of the other side, as far as the boot loader does not know better.
func (d *device) mark() fota.Other {
	r, ok := d.memory.Get().Sides[d.other.name]
	if !ok {
		return fota.Other{}
	}
	mark := r.Mark
	switch {
	case mark != fota.Kept && d.next == d.other.name:
		mark = fota.Armed
	case mark == fota.Armed, mark == fota.Kept && !d.other.good:
		mark = fota.Failed
	}
	return fota.Other{Version: r.Version, Mark: mark}
}

// remember changes what is known of a side; nil is nothing.
func (d *device) remember(side string, r *release) error {
	return d.memory.Update(func(m *memory) error {
		if m.Sides == nil {
			m.Sides = map[string]release{}
		}
		delete(m.Sides, side)
		if r != nil {
			m.Sides[side] = *r
		}
		return nil
	})
}

// disarm lets nothing start what the other side holds. The side that runs comes first, so
// that at no time there is nothing to start.
func (d *device) disarm(ctx context.Context) error {
	if d.next != d.running.name {
		if err := d.activate(ctx, d.running.name); err != nil {
			return err
		}
		d.next = d.running.name
	}
	// Nor is it a last resort. Until it is forgotten it may be whole, and is called failed.
	if err := d.service.mark(ctx, "bad", d.other.name); err != nil {
		return err
	}
	return d.remember(d.other.name, nil)
}

// Install implements [fota.Installer]. It refuses at [fota.StageSlot] a release without
// exactly an image for each class of slots ("images"), or with one that does not fit
// ("size").
func (i Installer) Install(ctx context.Context, m *fota.Manifest, copyImage fota.CopyImage, progress func(done, total int64)) (err error) {
	d, err := i.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	all, err := d.other.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, all.close()) }()
	total, err := all.images(m)
	if err != nil {
		return err
	}
	if m.Version == d.version {
		return fota.Refuse(fota.StageBoot, "version", "a release of the version %v runs", m.Version)
	}
	if err := d.disarm(ctx); err != nil {
		return err
	}
	var before int64
	for _, image := range m.Images {
		err := all[image.Slot].Install(ctx, image, copyImage, func(done, _ int64) { progress(before+done, total) })
		if err != nil {
			return err
		}
		before += image.Size
	}
	return d.remember(d.other.name, &release{Version: m.Version, Mark: fota.Staged, Manifest: m})
}

// Arm implements [fota.Installer]. It reads the slots again: what starts is what was
// verified.
func (i Installer) Arm(ctx context.Context, m *fota.Manifest) (err error) {
	d, err := i.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	no := func(format string, args ...any) error { return fota.Refuse(fota.StageBoot, "staged", format, args...) }
	known := d.memory.Get().Sides[d.other.name]
	switch mark := d.mark().Mark; {
	case known.Manifest == nil || !reflect.DeepEqual(known.Manifest, m):
		return no("%v is not what %s holds", m.Version, d.other.name)
	case mark != fota.Staged && mark != fota.Armed:
		return no("%v was tried before", m.Version)
	}
	all, err := d.other.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, all.close()) }()
	for _, image := range m.Images {
		s := all[image.Slot]
		if s == nil {
			return no("there is no slot for %s any more", image.Slot)
		}
		sum, err := s.Sum(ctx, image.Size)
		if err != nil {
			return err
		}
		if sum != image.SHA256 {
			return no("%s does not hold %s any more", s.Path(), image.File)
		}
	}
	if d.next != d.other.name {
		if err := d.activate(ctx, d.other.name); err != nil {
			return err
		}
	}
	known.Mark = fota.Armed
	return d.remember(d.other.name, &known)
}

// Cancel implements [fota.Installer]. A release that was good once stays.
func (i Installer) Cancel(ctx context.Context) (err error) {
	d, err := i.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	if r, ok := d.memory.Get().Sides[d.other.name]; !ok || r.Mark == fota.Kept {
		return nil
	}
	return d.disarm(ctx)
}

// Bless implements [fota.Installer]. What is armed stays armed.
func (i Installer) Bless(ctx context.Context) (err error) {
	d, err := i.openKept(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.service.mark(ctx, "good", d.running.name); err != nil {
		return err
	}
	if d.next, err = d.primary(ctx); err != nil {
		return err
	}
	if d.next != d.running.name && d.mark().Mark != fota.Armed {
		if err := d.activate(ctx, d.running.name); err != nil {
			return err
		}
	}
	return d.memory.Update(func(m *memory) error {
		if m.Sides == nil {
			m.Sides = map[string]release{}
		}
		r := m.Sides[d.running.name]
		if r.Version != d.version {
			r.Manifest = nil
		}
		r.Version, r.Mark = d.version, fota.Kept
		m.Sides[d.running.name], m.Blessed = r, d.boot
		return nil
	})
}
