package sdboot

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"birthmark/pkg/fota/slot"
)

// treeTop is the block of a release's hash tree that its root is the hash of.
func treeTop(release byte) []byte { return bytes.Repeat([]byte{release}, blockSize) }

// commandLine is the kernel's for a release whose tree is at a block.
func commandLine(release byte, block int) string {
	salt := sha256.Sum256([]byte("salt"))
	root := sha256.Sum256(append(salt[:], treeTop(release)...))
	return fmt.Sprintf("quiet init=/sbin/init verity.hash=%x verity.salt=%x verity.blocks=%d\n", root, salt, block)
}

// slots gives a device two slots of 20 blocks, with a tree in each behind ten.
func (d device) slots(a, b byte) {
	d.Helper()
	for name, release := range map[string]byte{"root-a": a, "root-b": b} {
		slot := make([]byte, 20*blockSize)
		copy(slot[10*blockSize:], treeTop(release))
		d.must(os.WriteFile(d.path("dev/disk/by-partlabel/"+name), slot, 0o600))
	}
	d.must(os.WriteFile(d.path("proc/cmdline"), []byte(commandLine(1, 10)), 0o600))
}

func TestInactiveSlot(t *testing.T) {
	for _, c := range []struct {
		name   string
		a, b   byte
		change func(device)
		want   string // "" for an error
	}{
		{"a runs", 1, 2, nil, "root-b"},
		{"b runs", 2, 1, nil, "root-a"},
		{"neither runs", 2, 3, nil, ""},
		{"the same in both, and nothing tells which is in use", 1, 1, nil, ""},
		{"the other one too small for a tree", 1, 2, func(d device) {
			d.must(os.Truncate(d.path("dev/disk/by-partlabel/root-b"), 8*blockSize))
		}, "root-b"},
		{"another salt", 1, 2, func(d device) {
			line := commandLine(1, 10)
			at := strings.Index(line, "verity.salt=") + len("verity.salt=")
			d.must(os.WriteFile(d.path("proc/cmdline"), []byte(line[:at]+"00"+line[at+2:]), 0o600))
		}, ""},
		{"a tree elsewhere", 1, 2, func(d device) {
			d.must(os.WriteFile(d.path("proc/cmdline"), []byte(commandLine(1, 11)), 0o600))
		}, ""},
		{"no command line", 1, 2, func(d device) { d.must(os.Remove(d.path("proc/cmdline"))) }, ""},
		{"no slot b", 1, 2, func(d device) { d.must(os.Remove(d.path("dev/disk/by-partlabel/root-b"))) }, ""},
		{"a folder as slot b", 1, 2, func(d device) {
			d.must(os.Remove(d.path("dev/disk/by-partlabel/root-b")))
			d.must(os.Mkdir(d.path("dev/disk/by-partlabel/root-b"), 0o700))
		}, ""},
	} {
		d := newDevice(t)
		d.slots(c.a, c.b)
		if c.change != nil {
			c.change(d)
		}
		s, err := Inactive(d.root)
		switch {
		case err != nil && c.want != "":
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		case err == nil && s.Name != c.want:
			t.Errorf("%s: got %s, want %q", c.name, s.Name, c.want)
		}
		if err == nil {
			d.must(s.Close())
		}
	}
}

// With the same release in both slots, the one that is in use is the one that cannot be
// had.
func TestSameReleaseInBothSlots(t *testing.T) {
	d := newDevice(t)
	d.slots(1, 1)
	broken := errors.New("broken")
	for _, c := range []struct {
		name string
		a, b error // of opening them
		want string
	}{
		{"a in use", syscall.EBUSY, nil, "root-b"},
		{"b in use", nil, syscall.EBUSY, "root-a"},
		{"neither in use", nil, nil, ""},
		{"both in use", syscall.EBUSY, syscall.EBUSY, ""},
		{"a broken", broken, nil, ""},
		{"b broken", nil, broken, ""},
	} {
		var opened []*slot.Slot
		got, err := pick([2]bool{true, true}, func(name string) (*slot.Slot, error) {
			err := map[string]error{"root-a": c.a, "root-b": c.b}[name]
			if err != nil {
				return nil, &fs.PathError{Op: "open", Path: name, Err: err}
			}
			s, err := slot.Open(slotPath(d.root, name))
			opened = append(opened, s)
			return s, err
		})
		switch {
		case c.want == "" && err == nil:
			t.Errorf("%s: got %s, want none", c.name, got.Name)
		case c.want != "" && (err != nil || got.Name != c.want):
			t.Errorf("%s: got %v, %v, want %s", c.name, got, err, c.want)
		}
		for _, s := range opened {
			if err := s.Close(); s != got && err == nil {
				t.Errorf("%s: %s was left open", c.name, s.Name)
			}
		}
	}
}

func TestDiskOfPartition(t *testing.T) {
	d := newDevice(t)
	d.must(os.MkdirAll(d.path("sys/dev/block"), 0o755))
	for number, to := range map[string]string{
		"259:2":   "../../devices/pci0000:00/nvme/nvme0/nvme0n1/nvme0n1p2",
		"259:300": "../../devices/pci0000:00/nvme/nvme0/nvme0n1/nvme0n1p3",
		"8:17":    "../../devices/pci0000:00/usb1/block/sdb/sdb1",
	} {
		d.must(os.Symlink(to, d.path("sys/dev/block/"+number)))
	}
	nvme, usb := "../../devices/pci0000:00/nvme/nvme0/nvme0n1", "../../devices/pci0000:00/usb1/block/sdb"
	for device, want := range map[uint64]string{0x10302: nvme, 0x11032c: nvme, 0x811: usb} {
		if got, err := diskOf(d.root, device); err != nil || got != want {
			t.Errorf("device %#x is on %s, %v, want %s", device, got, err, want)
		}
	}
	if got, err := diskOf(d.root, 0x812); err == nil {
		t.Errorf("a device that the kernel does not know is on %s", got)
	}
}

func TestCommandLineIsReadStrictly(t *testing.T) {
	good := strings.TrimSpace(commandLine(1, 10))
	if tree, err := parseTree(good); err != nil || tree.blocks != 10 {
		t.Errorf("got %+v, %v, want ten blocks", tree, err)
	}
	for name, line := range map[string]string{
		"nothing":          "",
		"a root twice":     good + " " + strings.Fields(good)[2],
		"blocks twice":     good + " verity.blocks=10",
		"no blocks":        strings.Replace(good, "verity.blocks=10", "", 1),
		"zero blocks":      strings.Replace(good, "verity.blocks=10", "verity.blocks=0", 1),
		"negative blocks":  strings.Replace(good, "verity.blocks=10", "verity.blocks=-1", 1),
		"too many blocks":  strings.Replace(good, "verity.blocks=10", "verity.blocks=4294967296", 1),
		"a root too short": strings.Replace(good, "verity.hash=", "verity.hash= ", 1),
		"a root too long":  strings.Replace(good, "verity.hash=", "verity.hash=00", 1),
		"a root of no hex": strings.Replace(good, "verity.hash=", "verity.hash=zz", 1),
	} {
		if tree, err := parseTree(line); err == nil {
			t.Errorf("%s: %q was read as %+v", name, line, tree)
		}
	}
}

func FuzzCommandLine(f *testing.F) {
	f.Add(commandLine(1, 10))
	f.Add("verity.blocks=1 verity.hash=")
	f.Fuzz(func(t *testing.T, line string) {
		if tree, err := parseTree(line); err == nil && (tree.blocks <= 0 || tree.blocks >= 1<<32) {
			t.Errorf("%q was read as %+v", line, tree)
		}
	})
}
