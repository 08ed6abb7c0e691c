package firmware

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"

	"birthmark/pkg/fota"
)

// A device is the files of one on which a release runs, from the slot root-a.
type device struct {
	*testing.T
	maker
	root   string
	before map[string][32]byte

	socket string // of its installer
	esp    string // as the installer sees it; the device's own, but for one with a mount of its own
	stop   func() // the installer
}

const (
	entries   = "efi/EFI/Linux"
	variables = "sys/firmware/efi/efivars"
	labels    = "dev/disk/by-partlabel"

	loaderVendor = "-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
	globalVendor = "-8be4df61-93ca-11d2-aa0d-00e098032b8c"
)

func newDevice(t *testing.T) *device {
	t.Helper()
	m, err := theMaker()
	if err != nil {
		t.Fatal(err)
	}
	d := &device{T: t, maker: m, root: t.TempDir()}
	d.esp = d.path("efi")
	for _, folder := range []string{entries, "efi/loader", variables, labels, "proc", "usr/lib", "trust"} {
		d.must(os.MkdirAll(d.path(folder), 0o755))
	}
	d.put(entries+"/"+entryOf(runs), programOf(runs))
	for slot, v := range map[string]string{"root-a": runs, "root-b": "0.9.0+sv1"} {
		d.put(labels+"/"+slot, append(rootOf(v), make([]byte, slotSize-rootSize-blockSize)...))
	}
	d.set("SecureBoot"+globalVendor, []byte{0})
	d.set("LoaderInfo"+loaderVendor, text("systemd-boot 252.39"))
	d.set("LoaderFeatures"+loaderVendor, binary.LittleEndian.AppendUint64(nil, 0x7f))
	d.started(runs, entryOf(runs))
	for name, from := range map[string]string{"anchors.pem": d.Anchors, "signing-cas.pem": d.SigningCAs, "crls.pem": d.CRLs} {
		b, err := os.ReadFile(from)
		d.must(err)
		d.put("trust/"+name, b)
	}
	d.before = d.sums()
	return d
}

func (d *device) must(err error) {
	d.Helper()
	if err != nil {
		d.Fatal(err)
	}
}

func (d *device) path(name string) string { return filepath.Join(d.root, name) }

func (d *device) put(name string, b []byte) {
	d.Helper()
	d.must(os.WriteFile(d.path(name), b, 0o600))
}

// set sets a variable as firmware and boot loader do.
func (d *device) set(name string, data []byte) {
	d.Helper()
	d.put(variables+"/"+name, append(binary.LittleEndian.AppendUint32(nil, 6), data...))
}

// text is what a variable with text holds.
func text(s string) (b []byte) {
	for _, u := range utf16.Encode([]rune(s + "\x00")) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// entryOf is the file of a release that has all its tries.
func entryOf(v string) string { return product + "_" + v + "+3.efi" }

// started is what firmware, kernel and image say after the start of an entry.
func (d *device) started(v, entry string) {
	d.Helper()
	d.set("LoaderEntrySelected"+loaderVendor, text(entry))
	d.set("LoaderBootCountPath"+loaderVendor, text(`\EFI\Linux\`+entry))
	d.put("usr/lib/os-release", []byte("IMAGE_ID="+product+"\nIMAGE_VERSION="+v+"\n"))
	d.put("proc/cmdline", []byte(commandLine(v)))
}

// sums are those of all files of the device, but for the slot that does not run; the EFI
// system partition as the installer sees it.
func (d *device) sums() map[string][32]byte {
	d.Helper()
	sums := map[string][32]byte{}
	for name, folder := range map[string]string{"efi": d.esp, variables: d.path(variables), labels: d.path(labels)} {
		d.must(filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || e.Name() == "root-b" {
				return err
			}
			b, err := os.ReadFile(path)
			sums[name+strings.TrimPrefix(path, folder)] = sha256.Sum256(b)
			return err
		}))
	}
	return sums
}

// slot is the sum of what the slot that does not run holds.
func (d *device) slot() [32]byte {
	d.Helper()
	b, err := os.ReadFile(d.path(labels + "/root-b"))
	d.must(err)
	return sha256.Sum256(b)
}

// counted is an entry and its tries that are left, as the Boot Loader Specification has it.
var counted = regexp.MustCompile(`^` + product + `_([0-9.]+\+sv[0-9]+)(?:\+([0-9]+)(?:-[0-9]+)?)?\.efi$`)

// next is what systemd-boot would start: the newest release that has tries left.
func (d *device) next() string {
	d.Helper()
	names, err := os.ReadDir(filepath.Join(d.esp, "EFI/Linux"))
	d.must(err)
	var best fota.Version
	for _, e := range names {
		m := counted.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		if left, err := strconv.Atoi(m[2]); err == nil && left == 0 {
			continue
		}
		if v := version(m[1]); v.Compare(best) > 0 {
			best = v
		}
	}
	return best.String()
}

// wantUntouched holds that nothing is armed, that the next start is that of what runs,
// and that all is as it was but for the slot that does not run.
func (d *device) wantUntouched() {
	d.Helper()
	if got := d.next(); got != runs {
		d.Errorf("the next start is that of %s, want %s", got, runs)
	}
	if now := d.sums(); !maps.Equal(now, d.before) {
		d.Errorf("the device's files are not what they were: %s", difference(d.before, now))
	}
}

// wantArmed holds that the next start tries a release, and that all of it is there.
func (d *device) wantArmed(v string) {
	d.Helper()
	if got := d.next(); got != v {
		d.Errorf("the next start is that of %s, want %s", got, v)
	}
	slot, err := os.ReadFile(d.path(labels + "/root-b"))
	d.must(err)
	if string(slot[:rootSize+blockSize]) != string(rootOf(v)) {
		d.Errorf("%s is armed, and the slot holds something else", v)
	}
}

func difference(before, now map[string][32]byte) string {
	var lines []string
	for name, sum := range now {
		if was, ok := before[name]; !ok {
			lines = append(lines, name+" is new")
		} else if was != sum {
			lines = append(lines, name+" is another")
		}
	}
	for name := range before {
		if _, ok := now[name]; !ok {
			lines = append(lines, name+" is gone")
		}
	}
	return fmt.Sprint(strings.Join(lines, ", "))
}
