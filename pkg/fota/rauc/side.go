package rauc

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
	"birthmark/pkg/fota/slot"
)

// A side is what a release is written to: a slot that the boot loader starts, and those
// that belong to it.
type side struct {
	name    string            // of the slot that is started: "rootfs.0"
	good    bool              // the boot loader would start it
	devices map[string]string // of all its slots, by class
}

// types are the types of slots that are written as they are, and nothing else: the bytes
// on the device are those of the image.
var types = []string{"raw", "ext4", "vfat"}

// sides finds in RAUC's slots, which have to be those of its settings, the side that runs
// and the other one. Slots that belong to neither are not used.
func sides(s settings, slots map[string]map[string]string) (running, other side, err error) {
	var booted []string
	for name, keys := range slots {
		group := s["slot."+name]
		if group == nil || keys["device"] != group["device"] || keys["bootname"] != group["bootname"] {
			return running, other, unsafe("RAUC has a slot %s (%s) that is not the one in /%s", name, keys["device"], settingsFile)
		}
		if keys["state"] == "booted" {
			booted = append(booted, name)
		}
	}
	if len(booted) != 1 {
		return running, other, fmt.Errorf("RAUC says that %d slots run, want one", len(booted))
	}
	class := slots[booted[0]]["class"]
	var others []string
	for name, keys := range slots {
		if keys["class"] == class && keys["bootname"] != "" && name != booted[0] {
			others = append(others, name)
		}
	}
	if len(others) != 1 {
		return running, other, unsafe("besides %s there are %d slots to start of its class, want one", booted[0], len(others))
	}
	if running, err = newSide(booted[0], s, slots); err == nil {
		other, err = newSide(others[0], s, slots)
	}
	if err == nil {
		err = apart(running, other)
	}
	return running, other, err
}

func newSide(name string, s settings, slots map[string]map[string]string) (side, error) {
	v := side{name: name, good: slots[name]["boot-status"] == "good", devices: map[string]string{}}
	for member, keys := range slots {
		if member != name && keys["parent"] != name {
			continue
		}
		class := keys["class"]
		switch _, twice := v.devices[class]; {
		case twice:
			return v, unsafe("%s has two slots of the class %s", name, class)
		case !slices.Contains(types, keys["type"]):
			return v, unsafe("slot %s is of the type %s, want one of %s", member, keys["type"], strings.Join(types, ", "))
		case !filepath.IsAbs(keys["device"]):
			return v, unsafe("the device of slot %s is %q, want a path", member, keys["device"])
		case s["slot."+member]["readonly"] == "true":
			return v, unsafe("slot %s is read-only", member)
		}
		v.devices[class] = keys["device"]
	}
	return v, nil
}

// apart refuses two sides that are not of the same classes, or of which two slots are on
// one device.
func apart(running, other side) error {
	if !slices.Equal(running.classes(), other.classes()) {
		return unsafe("%s has slots of %q, %s of %q", running.name, running.classes(), other.name, other.classes())
	}
	var seen []fs.FileInfo
	for _, v := range []side{running, other} {
		for _, class := range v.classes() {
			info, err := os.Stat(v.devices[class])
			if err != nil {
				return err
			}
			if slices.ContainsFunc(seen, func(before fs.FileInfo) bool { return sameDevice(before, info) }) {
				return unsafe("%s, of %s, is the device of two slots", v.devices[class], v.name)
			}
			seen = append(seen, info)
		}
	}
	return nil
}

// sameDevice reports whether two paths lead to one medium, by whatever names.
func sameDevice(a, b fs.FileInfo) bool {
	x, isX := a.Sys().(*syscall.Stat_t)
	y, isY := b.Sys().(*syscall.Stat_t)
	block := isX && isY && x.Mode&syscall.S_IFMT == syscall.S_IFBLK && y.Mode&syscall.S_IFMT == syscall.S_IFBLK
	return os.SameFile(a, b) || block && x.Rdev == y.Rdev
}

// classes are those of the slots, in order.
func (v side) classes() (classes []string) {
	for class := range v.devices {
		classes = append(classes, class)
	}
	slices.Sort(classes)
	return classes
}

// open opens all slots, for nobody else.
func (v side) open() (opened, error) {
	all := opened{}
	for class, device := range v.devices {
		s, err := slot.Open(device)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("cannot open the slot that is not in use: %w", err), all.close())
		}
		all[class] = s
	}
	return all, nil
}

// opened are the slots of a side, by class.
type opened map[string]*slot.Slot

func (o opened) close() (err error) {
	for _, s := range o {
		err = errors.Join(err, s.Close())
	}
	return err
}

// images finds the image for each slot, in the order of the manifest, of a release that
// has one for each and no others.
func (o opened) images(m *fota.Manifest) (total int64, err error) {
	for i, image := range m.Images {
		s := o[image.Slot]
		if s == nil || slices.ContainsFunc(m.Images[:i], func(before fota.Image) bool { return before.Slot == image.Slot }) {
			return 0, fota.Refuse(fota.StageSlot, "images", "it has an image for %s, which is not there, or has two", image.Slot)
		}
		if image.Size <= 0 || image.Size > s.Size {
			return 0, fota.Refuse(fota.StageSlot, "size", "image %s has %d bytes, its slot %s %d", image.File, image.Size, s.Path(), s.Size)
		}
		total += image.Size
	}
	if len(m.Images) != len(o) {
		return 0, fota.Refuse(fota.StageSlot, "images", "it has %d images, want one for each of the %d slots", len(m.Images), len(o))
	}
	return total, nil
}
