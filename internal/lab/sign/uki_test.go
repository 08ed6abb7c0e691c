package sign

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"birthmark/pkg/fota"
)

const (
	osRelease   = "ID=acme\nIMAGE_ID=acme-gw\nIMAGE_VERSION=1.1.0+sv2\n"
	root        = "b7f5a4e8a1d1f1a3a3f4f1f6f6c1c8f0c4d5c9d3b2a1908f7e6d5c4b3a291807"
	commandLine = "console=ttyS0 init=/sbin/init roothash=" + root
)

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// makeUKI makes a UKI as makers do, not signed yet, and returns its path. A section
// without text is left out.
func makeUKI(t *testing.T, osRelease, commandLine string) string {
	t.Helper()
	return makeProgram(t, osRelease, commandLine, strings.Repeat("kernel ", 2000))
}

func makeProgram(t *testing.T, osRelease, commandLine, linux string) string {
	t.Helper()
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	var args []string
	for _, s := range []struct{ name, text, at string }{
		{".osrel", osRelease, "0x20000"}, {".cmdline", commandLine, "0x30000"}, {".linux", linux, "0x2000000"},
	} {
		if s.text != "" {
			args = append(args, "--add-section", s.name+"="+put(t, file(s.name), []byte(s.text)), "--change-section-vma", s.name+"="+s.at)
		}
	}
	run(t, "objcopy", append(args, "/usr/lib/systemd/boot/efi/linuxx64.efi.stub", file("linux.efi"))...)
	return file("linux.efi")
}

// signUKI signs one for Secure Boot.
func signUKI(t *testing.T, path string) string {
	t.Helper()
	key, cert := filepath.Join(t.TempDir(), "db.key"), filepath.Join(t.TempDir(), "db.pem")
	run(t, "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=db", "-keyout", key, "-out", cert)
	run(t, "sbsign", "--key", key, "--cert", cert, "--output", path+".signed", path)
	return path + ".signed"
}

// TestUKIInARelease: it is an image for the slot uki, and the record has the digest that
// sbsign signed, and the root hash.
func TestUKIInARelease(t *testing.T) {
	by, r := mustLab(t, t.TempDir()), release(t)
	path := signUKI(t, makeUKI(t, osRelease, commandLine))
	r.Images = append(r.Images, Image{fota.UKISlot, path})
	out := filepath.Join(t.TempDir(), "a.raucb")
	record, err := Firmware(t.Context(), r, by, out, quiet)
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := hex.DecodeString(record.UKI.Authenticode)
	if err != nil || len(digest) != 32 || !bytes.Contains(program, digest) {
		t.Errorf("got the digest %q, which is not in what sbsign has signed", record.UKI.Authenticode)
	}
	if record.UKI.RootHash != root {
		t.Errorf("got the root hash %s, want %s", record.UKI.RootHash, root)
	}
	if m := open(t, by, out).Manifest; m.Images[2].Slot != "uki" || m.Images[2].Size != int64(len(program)) {
		t.Errorf("a device finds %+v, want the UKI of %d bytes as the third image", m.Images, len(program))
	}
}

func TestUKIWithoutRootHash(t *testing.T) {
	record, err := readUKI(signUKI(t, makeUKI(t, osRelease, "init=/sbin/init root=/dev/vda2")), fota.Version{Major: 1, Minor: 1, Security: 2})
	if err != nil || record.RootHash != "" {
		t.Errorf("got %+v, %v, want a record without a root hash", record, err)
	}
}

func TestUKIIsRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		path func() string
		says string
	}{
		{"no program", func() string { return put(t, filepath.Join(t.TempDir(), "linux.efi"), []byte("MZ, and no more")) }, "it ends within its headers"},
		{"nobody signed it", func() string { return makeUKI(t, osRelease, commandLine) }, "not signed for Secure Boot"},
		{"no kernel", func() string { return signUKI(t, makeProgram(t, osRelease, commandLine, "")) }, "no section .linux"},
		{"no os-release", func() string { return signUKI(t, makeUKI(t, "", commandLine)) }, "no section .osrel"},
		{"no command line", func() string { return signUKI(t, makeUKI(t, osRelease, "")) }, "no section .cmdline"},
		{"a command line without end", func() string {
			return signUKI(t, makeUKI(t, osRelease, commandLine+strings.Repeat(" quiet", 64<<10/6)))
		}, "at most 65536 bytes"},
		{"of another release", func() string {
			return signUKI(t, makeUKI(t, strings.ReplaceAll(osRelease, "1.1.0", "1.0.0"), commandLine))
		}, "IMAGE_VERSION=1.0.0+sv2, and the release is 1.1.0+sv2"},
		{"of two releases", func() string { return signUKI(t, makeUKI(t, osRelease+"IMAGE_VERSION=1.0.0+sv2\n", commandLine)) }, "IMAGE_VERSION twice"},
		{"no init", func() string { return signUKI(t, makeUKI(t, osRelease, "roothash="+root)) }, "no init="},
		{"of no release", func() string { return signUKI(t, makeUKI(t, "ID=acme\n", commandLine)) }, "IMAGE_VERSION=, and"},
	} {
		record, err := readUKI(c.path(), fota.Version{Major: 1, Minor: 1, Security: 2})
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %+v, %v, want an error that says %q", c.name, record, err, c.says)
		}
	}
}

// TestABadUKIStopsARelease: before the work, and not as a mistake of the command line.
func TestABadUKIStopsARelease(t *testing.T) {
	by, r := mustLab(t, t.TempDir()), release(t)
	r.Images = append(r.Images, Image{fota.UKISlot, makeUKI(t, osRelease, commandLine)})
	standIn(t, "touch packed; exit 1")
	t.Chdir(t.TempDir())
	_, err := Firmware(t.Context(), r, by, "a.raucb", quiet)
	var bad *ReleaseError
	if err == nil || errors.As(err, &bad) || !strings.Contains(err.Error(), "a device cannot start from UKI") {
		t.Errorf("got %v, want that the UKI is not good", err)
	}
	wantFiles(t, "a bad UKI", ".")
}

func TestRootHash(t *testing.T) {
	for _, c := range []struct {
		name, line string
		want       string
		says       string // of the error; "" for none
	}{
		{"one", "quiet roothash=" + root, root, ""},
		{"our virtual device's", "verity.salt=00 verity.hash=" + root, root, ""},
		{"none", "init=/sbin/init quiet", "", ""},
		{"lines", "init=/sbin/init\nroothash=" + root + "\n", root, ""},
		{"a word that begins like it", "init=/i roothash_sig=x rd.roothash=y", "", ""},
		{"two", fmt.Sprintf("init=/i roothash=%s roothash=%s", root, root), "", "two root hashes"},
		{"one for each reader", fmt.Sprintf("init=/i roothash=%s verity.hash=%s", root, root), "", "two root hashes"},
		{"a short one", "init=/i roothash=" + root[2:], "", "64 lower-case"},
		{"a long one", "init=/i roothash=" + root + "00", "", "64 lower-case"},
		{"upper case", "init=/i roothash=" + strings.ToUpper(root), "", "64 lower-case"},
		{"empty", "init=/i roothash=", "", "64 lower-case"},
		{"an empty line", "", "", ""},
	} {
		got, err := rootHash(c.line)
		if got != c.want || (err != nil) != (c.says != "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %q, %v, want %q and an error that says %q", c.name, got, err, c.want, c.says)
		}
	}
}

// FuzzRootHash holds that what is said about a UKI stands in it.
func FuzzRootHash(f *testing.F) {
	f.Add(commandLine)
	f.Add("roothash=")
	f.Fuzz(func(t *testing.T, line string) {
		if got, err := rootHash(line); err == nil && (!strings.Contains(line, got) || got != "" && len(got) != 64) {
			t.Errorf("got the root hash %q of %q", got, line)
		}
	})
}
