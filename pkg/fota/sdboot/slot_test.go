package sdboot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
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
		var opened []*Slot
		got, err := pick([2]bool{true, true}, func(name string) (*Slot, error) {
			err := map[string]error{"root-a": c.a, "root-b": c.b}[name]
			if err != nil {
				return nil, &fs.PathError{Op: "open", Path: name, Err: err}
			}
			s, _ := slotOf(t, blockSize)
			s.Name = name
			opened = append(opened, s)
			return s, nil
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

// slotOf is a slot of some bytes, all 0xff.
func slotOf(tb testing.TB, size int) (*Slot, string) {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "dev/disk/by-partlabel/root-b")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte{0xff}, size), 0o600); err != nil {
		tb.Fatal(err)
	}
	root := strings.TrimSuffix(path, "/dev/disk/by-partlabel/root-b")
	s, err := openSlot(root, "root-b")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s, path
}

func TestSlotIsWritten(t *testing.T) {
	const most = syncSpan + chunkSize + 512
	random := rand.NewChaCha8([32]byte{1})
	release := make([]byte, most)
	random.Read(release)
	for _, c := range []struct{ n, slot int }{
		{1, blockSize}, {511, 512}, {blockSize, blockSize}, {chunkSize, 2 * chunkSize}, {chunkSize + 1, 2 * chunkSize},
		{syncSpan, most}, {most - 1, most}, {most, most}, // synced on the way
	} {
		s, path := slotOf(t, c.slot)
		sum, err := s.Write(t.Context(), iotest.HalfReader(bytes.NewReader(release[:c.n])), int64(c.n))
		if err != nil || sum != sha256.Sum256(release[:c.n]) {
			t.Errorf("%d bytes: sum %x, %v, want %x", c.n, sum, err, sha256.Sum256(release[:c.n]))
		}
		got, err := os.ReadFile(path)
		if err != nil || len(got) != c.slot || !bytes.Equal(got[:c.n], release[:c.n]) || len(bytes.Trim(got[c.n:], "\xff")) != 0 {
			t.Errorf("%d bytes: the slot holds something else (%d bytes, %v)", c.n, len(got), err)
		}
	}
}

func TestSlotIsNotWritten(t *testing.T) {
	const size = 3 << 20
	broken := errors.New("broken")
	canceled, cancel := context.WithCancelCause(t.Context())
	cancel(broken)
	all := bytes.Repeat([]byte{1}, size)
	for _, c := range []struct {
		name string
		ctx  context.Context
		r    io.Reader
		size int64
		want error // nil for any
	}{
		{"more than fits", t.Context(), bytes.NewReader(append(all, 1)), size + 1, nil},
		{"nothing", t.Context(), bytes.NewReader(nil), 0, nil},
		{"less than nothing", t.Context(), bytes.NewReader(nil), -1, nil},
		{"a source that ends", t.Context(), bytes.NewReader(all[:size/2]), size, io.ErrUnexpectedEOF},
		{"a source that goes on", t.Context(), bytes.NewReader(all), size - 1, nil},
		{"a source that fails", t.Context(), io.MultiReader(bytes.NewReader(all[:size/2]), iotest.ErrReader(broken)), size, broken},
		{"a context that is done", canceled, bytes.NewReader(all), size, broken},
	} {
		s, path := slotOf(t, size)
		if _, err := s.Write(c.ctx, c.r, c.size); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
		if info, err := os.Stat(path); err != nil || info.Size() != size {
			t.Errorf("%s: the slot has another size, %v", c.name, err)
		}
	}
}

// A medium that loses what it said it has is found.
func TestSlotIsReadBack(t *testing.T) {
	const size = 2 << 20
	s, path := slotOf(t, size)
	release := bytes.Repeat([]byte{1}, size)
	decaying := &after{r: bytes.NewReader(release), do: func() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte{0}, 12345); err != nil {
			t.Fatal(err)
		}
	}}
	if _, err := s.Write(t.Context(), decaying, size); !errors.Is(err, errReadBack) {
		t.Errorf("got %v, want %v", err, errReadBack)
	}
}

// after does something when r is at its end.
type after struct {
	r  io.Reader
	do func()
}

func (a *after) Read(b []byte) (int, error) {
	n, err := a.r.Read(b)
	if err == io.EOF {
		a.do()
	}
	return n, err
}
