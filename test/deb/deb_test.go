// Package deb tests the package for Debian that `make deb` made: by lintian, by man,
// and by installing, upgrading, removing and purging it with dpkg in a Debian root file
// system. The last needs root, for chroot.
package deb

import (
	"bufio"
	"bytes"
	"debug/buildinfo"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"birthmark/test/qemu/image"
)

// packaged is the package of an architecture.
func packaged(t *testing.T, arch string) string {
	t.Helper()
	found, err := filepath.Glob("../../bin/birthmark_*_" + arch + ".deb")
	if err != nil || len(found) != 1 {
		t.Fatalf("there are %d packages for %s in bin (%v), want 1: run make deb", len(found), arch, err)
	}
	path, err := filepath.Abs(found[0])
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// run runs a program, and returns what it printed.
func run(t *testing.T, program string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out), err
}

func must(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := run(t, program, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestLintianHasNothingToSay(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64", "armhf"} {
		must(t, "lintian", "--allow-root", "--fail-on", "error,warning", packaged(t, arch))
	}
}

// TestVersionsSortAsCommitsDo: each of these is newer than the one above.
func TestVersionsSortAsCommitsDo(t *testing.T) {
	last := "0~"
	for _, commit := range []struct{ describe, epoch string }{
		{"unknown", "1577836800"}, // an archive without git
		{"fffffff", "1577836801"}, // no release yet: the time decides
		{"0000000", "1577836802"},
		{"0000000-dirty", "1577836802"},
		{"v0.9.0-rc1", "1577836803"},
		{"v0.9.0-rc1-2-g1a2b3c4", "1577836804"},
		{"v0.9.0-rc2", "1577836805"},
		{"v0.9.0", "1577836806"},
		{"v0.9.0-dirty", "1577836806"},
		{"v0.9.0-9-gfffffff", "1577836807"},
		{"v0.9.0-10-g0000000", "1577836808"},
		{"v0.10.0", "1577836809"},
	} {
		version := strings.TrimSpace(must(t, "../../packaging/deb/version.sh", commit.describe, commit.epoch))
		must(t, "dpkg", "--validate-version", version)
		if strings.Contains(version, "-") {
			t.Errorf("%s is %s: the hyphen starts a Debian revision", commit.describe, version)
		}
		if _, err := run(t, "dpkg", "--compare-versions", version, "gt", last); err != nil {
			t.Errorf("%s is %s, which is not newer than %s", commit.describe, version, last)
		}
		last = version
	}
}

// extracted is the package, unpacked but not installed.
func extracted(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, "dpkg-deb", "--extract", packaged(t, "amd64"), dir)
	return dir
}

// TestTheManualRenders without a warning, and has a page for every verb that --help
// names.
func TestTheManualRenders(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(extracted(t), "usr/share/man/man*/*.gz"))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, page := range pages {
		names[strings.TrimSuffix(filepath.Base(page), ".gz")] = true
		if out := must(t, "man", "--warnings=w,!break", "--local-file", "-E", "UTF-8", "-T", "utf8", "-Z", page); strings.Contains(out, "warning:") {
			t.Errorf("%s:\n%s", filepath.Base(page), out[:min(len(out), 500)])
		}
	}
	help := must(t, "../../bin/birthmark", "--help")
	_, verbs, _ := strings.Cut(help, "Available Commands:\n")
	verbs, _, _ = strings.Cut(verbs, "\n\n")
	for line := range strings.Lines(verbs) {
		if verb := strings.Fields(line)[0]; verb != "help" && verb != "completion" && !names["birthmark-"+verb+".1"] {
			t.Errorf("there is no man page of %s", verb)
		}
	}
	for _, name := range []string{"birthmark.1", "birthmark.toml.5", "birthmark-agent.service.8"} {
		if !names[name] {
			t.Errorf("there is no %s", name)
		}
	}
}

// TestEveryLicenceIsNamed of the modules that are linked into the program.
func TestEveryLicenceIsNamed(t *testing.T) {
	dir := extracted(t)
	text, err := os.ReadFile(filepath.Join(dir, "usr/share/doc/birthmark/copyright"))
	if err != nil {
		t.Fatal(err)
	}
	info, err := buildinfo.ReadFile(filepath.Join(dir, "usr/bin/birthmark"))
	if err != nil {
		t.Fatal(err)
	}
	named := strings.Fields(string(text))
	for _, module := range info.Deps {
		found := false
		for _, word := range named {
			found = found || word == module.Path
		}
		if !found {
			t.Errorf("the copyright file does not name %s", module.Path)
		}
	}
}

// TestForeignArchitectures holds that each package has a program for its machine.
func TestForeignArchitectures(t *testing.T) {
	for arch, machine := range map[string]string{"amd64": "x86-64", "arm64": "aarch64", "armhf": "ARM"} {
		dir := t.TempDir()
		must(t, "dpkg-deb", "--extract", packaged(t, arch), dir)
		if says := must(t, "file", "--brief", filepath.Join(dir, "usr/bin/birthmark")); !strings.Contains(says, machine) || !strings.Contains(says, "statically linked") {
			t.Errorf("%s: %s", arch, says)
		}
	}
	if found, err := filepath.Glob("../../bin/birthmark_*_riscv64.tar.gz"); err != nil || len(found) != 1 {
		t.Errorf("%d tarballs for riscv64 (%v), want 1", len(found), err)
	}
}

// A debian is a Debian root file system in a folder.
type debian struct {
	*testing.T
	dir string
}

func newDebian(t *testing.T) debian {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("only root can install a package: run it as root, or in a container")
	}
	cache, err := image.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	tar, err := image.Rootfs(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	d := debian{t, t.TempDir()}
	must(t, "tar", "--extract", "--numeric-owner", "--same-permissions", "--file="+tar, "--directory="+d.dir)
	return d
}

// in runs a program in it.
func (d debian) in(program ...string) string {
	d.Helper()
	return must(d.T, "chroot", append([]string{d.dir}, program...)...)
}

// install installs a package.
func (d debian) install(deb string) {
	d.Helper()
	text, err := os.ReadFile(deb)
	if err != nil {
		d.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.dir, "tmp/birthmark.deb"), text, 0o644); err != nil {
		d.Fatal(err)
	}
	d.in("dpkg", "--install", "/tmp/birthmark.deb")
}

func (d debian) exists(path string) bool {
	_, err := os.Lstat(filepath.Join(d.dir, path))
	return err == nil
}

// older is the same package, of an older version.
func older(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	out := must(t, "../../packaging/deb/build.sh", "amd64", "0~git20200101.000000.0000000", "1577836800", dir, "../../bin/birthmark")
	return strings.TrimSpace(out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:])
}

func TestLifeOfAPackage(t *testing.T) {
	d := newDebian(t)
	d.install(older(t))
	for _, want := range []string{"passwd birthmark", "group birthmark-admin", "group birthmark-telemetry", "group tss"} {
		d.in(append([]string{"getent"}, strings.Fields(want)...)...)
	}
	units := map[string]string{
		"birthmark-agent.service":    "multi-user.target.wants",
		"birthmark-installer.socket": "sockets.target.wants",
		"birthmark-health.service":   "boot-complete.target.requires",
	}
	enabled := func(when string, want bool) {
		t.Helper()
		for unit, wants := range units {
			if got := d.exists(filepath.Join("etc/systemd/system", wants, unit)); got != want {
				t.Errorf("%s: %s is enabled: %v, want %v", when, unit, got, want)
			}
		}
	}
	enabled("installed", true)

	// What the device learns, and what its administrator decides, stays.
	state := filepath.Join(d.dir, "var/lib/birthmark")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(state, "state.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.in("systemctl", "disable", "birthmark-health.service")
	d.install(packaged(t, "amd64"))
	d.install(packaged(t, "amd64")) // twice is once
	if !d.exists("var/lib/birthmark/state.json") || d.exists("etc/systemd/system/boot-complete.target.requires/birthmark-health.service") {
		t.Error("the upgrade has deleted the state, or enabled what was disabled")
	}
	d.in("systemctl", "enable", "birthmark-health.service")
	d.holds()

	d.in("dpkg", "--remove", "birthmark")
	if !d.exists("var/lib/birthmark/state.json") || d.exists("usr/bin/birthmark") {
		t.Error("remove has deleted the state, or left the program")
	}
	says := d.in("dpkg", "--purge", "birthmark")
	for _, word := range []string{"TPM", "IDevID", "tpm2_clear"} {
		if !strings.Contains(says, word) {
			t.Errorf("purge does not say %q of what stays in the TPM:\n%s", word, says)
		}
	}
	if d.exists("var/lib/birthmark") {
		t.Error("purge has left the state")
	}
	enabled("purged", false)
	var left bytes.Buffer
	for line := range strings.Lines(d.in("find", "/etc", "/usr", "/var/lib/systemd", "-name", "*birthmark*")) {
		left.WriteString(line)
	}
	if left.Len() > 0 {
		t.Errorf("purge has left\n%s", &left)
	}
	d.install(packaged(t, "amd64")) // and it may come back
	enabled("installed again", true)
	d.in("dpkg", "--purge", "birthmark") // without a state
}

// holds holds what is installed against dpkg's list, and its modes against what a
// package may have.
func (d debian) holds() {
	d.Helper()
	n := 0
	for lines := bufio.NewScanner(strings.NewReader(d.in("dpkg", "--listfiles", "birthmark"))); lines.Scan(); n++ {
		path := lines.Text()
		info, err := os.Lstat(filepath.Join(d.dir, path))
		if err != nil {
			if !strings.Contains(path, "/share/man/") && !strings.Contains(path, "/share/doc/") { // an image may leave those out
				d.Error(err)
			}
			continue
		}
		if info.IsDir() { // it may be another package's, with a mode of its choice
			continue
		}
		want := fs.FileMode(0o644)
		if path == "/usr/bin/birthmark" {
			want = 0o755
		}
		if got := info.Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid); got != want {
			d.Errorf("%s has mode %v, want %v", path, got, want)
		}
	}
	if n < 20 {
		d.Errorf("dpkg lists %d files", n)
	}
}
