// Package units tests what `make install` puts into an image besides the binary: what
// systemd and its friends make of it, and that it fits the binary that `make build`
// has made.
package units

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is for any program that is started here.
const patience = 2 * time.Minute

const (
	unitFolder = "usr/lib/systemd/system"
	binary     = "usr/bin/birthmark"
	// exposureLimit is in tenths, as systemd-analyze takes it.
	exposureLimit = "15"
)

// run runs a program and returns all that it printed, and its exit code.
func run(t *testing.T, program string, args ...string) (output string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "SYSTEMD_COLORS=0")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatalf("%v: run make setup", err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

func must(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, code := run(t, program, args...)
	if code != 0 {
		t.Fatalf("%s %q: exit code %d\n%s", program, args, code, out)
	}
	return out
}

// install is the root of an image with nothing but our files in it.
func install(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	must(t, "make", "-s", "-C", "../..", "install", "DESTDIR="+root)
	return root
}

// units are the names of the installed units.
func units(t *testing.T, root, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root, unitFolder, pattern))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no %s is installed: %v", pattern, err)
	}
	return paths
}

// settings are the values of a setting in a unit, in their order.
func settings(t *testing.T, unit, name string) []string {
	t.Helper()
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	var values []string
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+"="); ok {
			values = append(values, value)
		}
	}
	return values
}

// TestSystemdFindsNoFaultInTheUnits has it load them, with our binary where it is.
func TestSystemdFindsNoFaultInTheUnits(t *testing.T) {
	root := install(t)
	paths := units(t, root, "*")
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text = bytes.ReplaceAll(text, []byte("/"+binary), []byte(filepath.Join(root, binary)))
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("SYSTEMD_UNIT_PATH", filepath.Join(root, unitFolder)+":") // and systemd's own
	if out := must(t, "systemd-analyze", append([]string{"verify", "--man=no"}, paths...)...); strings.Contains(out, "birthmark") {
		t.Errorf("systemd-analyze verify says:\n%s", out)
	}
}

func TestExposureIsWithinItsLimit(t *testing.T) {
	for _, unit := range units(t, install(t), "*.service") {
		out, code := run(t, "systemd-analyze", "security", "--no-pager", "--offline=yes", "--threshold="+exposureLimit, unit)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		t.Log(lines[len(lines)-1])
		if code != 0 {
			t.Errorf("%s: exit code %d\n%s", filepath.Base(unit), code, out)
		}
	}
}

// TestEveryCommandIsThere holds that units start nothing but verbs that the binary has,
// and programs that every Debian has.
func TestEveryCommandIsThere(t *testing.T) {
	root := install(t)
	ours := filepath.Join(root, binary)
	help := must(t, ours, "--help")
	essential := []string{"/bin/sh", "/usr/bin/install"}
	verbs := 0
	for _, unit := range units(t, root, "*.service") {
		for _, setting := range []string{"ExecStart", "ExecStartPre", "ExecReload", "ExecStop"} {
			for _, command := range settings(t, unit, setting) {
				words := strings.Fields(strings.TrimLeft(command, "-+!@:"))
				if words[0] != "/"+binary {
					if !slices.Contains(essential, words[0]) {
						t.Errorf("%s starts %s, which not every image has", filepath.Base(unit), words[0])
					}
					continue
				}
				verbs++
				out, code := run(t, ours, append(words[1:], "--help")...)
				if code != 0 || out == help {
					t.Errorf("%s starts %q: the binary has no such verb (exit code %d)", filepath.Base(unit), words, code)
				}
			}
		}
	}
	if verbs < 3 {
		t.Errorf("units start %d verbs, want the agent's, the installer's and the one for health", verbs)
	}
}

// TestOnlyTheAgentHasANetwork holds what the other services are promised to be without.
func TestOnlyTheAgentHasANetwork(t *testing.T) {
	for _, unit := range units(t, install(t), "*.service") {
		if filepath.Base(unit) == "birthmark-agent.service" {
			continue
		}
		capability := ""
		if filepath.Base(unit) == "birthmark-installer.service" {
			capability = "CAP_LINUX_IMMUTABLE" // for efivarfs
		}
		for name, want := range map[string]string{
			"PrivateNetwork": "yes", "IPAddressDeny": "any", "RestrictAddressFamilies": "AF_UNIX", "CapabilityBoundingSet": capability,
		} {
			if got := settings(t, unit, name); !slices.Equal(got, []string{want}) {
				t.Errorf("%s has %s=%q, want %q", filepath.Base(unit), name, got, want)
			}
		}
	}
}

// TestTheDevicesOfTheInstaller holds which ones what runs as root may open.
func TestTheDevicesOfTheInstaller(t *testing.T) {
	unit := filepath.Join(install(t), unitFolder, "birthmark-installer.service")
	for name, want := range map[string][]string{
		"DevicePolicy":        {"closed"},
		"DeviceAllow":         {"/dev/disk/by-partlabel/root-a rw", "/dev/disk/by-partlabel/root-b rw", "/dev/tpmrm0 rw"},
		"SupplementaryGroups": {"tss"},
	} {
		if got := settings(t, unit, name); !slices.Equal(got, want) {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// TestNoUnitPlaysADevice holds that no variable of systemd's manager, or of a drop-in, has a
// program take a folder for the device.
func TestNoUnitPlaysADevice(t *testing.T) {
	for _, unit := range units(t, install(t), "*.service") {
		if got, want := settings(t, unit, "UnsetEnvironment"), []string{"BIRTHMARK_ROOT"}; !slices.Equal(got, want) {
			t.Errorf("%s has UnsetEnvironment=%q, want %q", filepath.Base(unit), got, want)
		}
	}
}

// TestNothingNewerThanDebian12 holds that units use no setting which systemd 252 does
// not know: it would only say so in its log.
func TestNothingNewerThanDebian12(t *testing.T) {
	newer := regexp.MustCompile(`(?m)^(Type=notify-reload|RestartSteps|RestartMaxDelaySec|ImportCredential|RestartMode|NFTSet|PollLimit|MemoryPressure|PrivatePIDs|ProtectHostname=private)`)
	for _, unit := range units(t, install(t), "*") {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		if found := newer.Find(text); found != nil {
			t.Errorf("%s uses %s", filepath.Base(unit), found)
		}
	}
}

func TestUsersAndFolders(t *testing.T) {
	root := install(t)
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	out := must(t, "systemd-sysusers", "--root="+root, "--dry-run")
	for _, want := range []string{"user 'birthmark'", "group 'birthmark-admin'", "group 'birthmark-telemetry'", "group 'tss'"} {
		if !strings.Contains(out, want) {
			t.Errorf("systemd-sysusers does not make the %s:\n%s", want, out)
		}
	}
	if os.Geteuid() != 0 { // only root can give files away
		return
	}
	must(t, "systemd-sysusers", "--root="+root)
	must(t, "systemd-tmpfiles", "--root="+root, "--create", "--exclude-prefix=/dev")
	passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	if err != nil {
		t.Fatal(err)
	}
	entry := regexp.MustCompile(`(?m)^birthmark:[^:]*:(\d+):`).FindSubmatch(passwd)
	if entry == nil {
		t.Fatalf("there is no user birthmark:\n%s", passwd)
	}
	info, err := os.Stat(filepath.Join(root, "run/birthmark"))
	if err != nil {
		t.Fatal(err)
	}
	owner := strconv.Itoa(int(info.Sys().(*syscall.Stat_t).Uid))
	if info.Mode().Perm() != 0o755 || owner != string(entry[1]) {
		t.Errorf("/run/birthmark has mode %v and owner %s, want 0755 and %s", info.Mode(), owner, entry[1])
	}
}

func TestJournalctlTakesTheCatalog(t *testing.T) {
	root := install(t)
	if out := must(t, "journalctl", "--root="+root, "--update-catalog"); strings.Contains(out, "birthmark") {
		t.Errorf("journalctl --update-catalog says:\n%s", out)
	}
	if out := must(t, "journalctl", "--root="+root, "--list-catalog"); strings.Count(out, "Birthmark: ") < 10 {
		t.Errorf("journalctl lists:\n%s", out)
	}
}

// TestTheConfigurationThatIsInstalled holds that it sets nothing, and that the example in
// it is one.
func TestTheConfigurationThatIsInstalled(t *testing.T) {
	root := install(t)
	ours := filepath.Join(root, binary)
	file := filepath.Join(root, "usr/lib/birthmark/birthmark.toml")
	if out := must(t, ours, "config", "show", "--origin", "--config", file); strings.Contains(out, file) {
		t.Errorf("it sets something:\n%s", out)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var example []string
	for line := range strings.Lines(string(text)) {
		if line, ok := strings.CutPrefix(line, "#   "); ok {
			example = append(example, line)
		}
	}
	if err := os.WriteFile(file, []byte(strings.Join(example, "")), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := must(t, ours, "config", "show", "--origin", "--config", file); strings.Count(out, file) != 7 {
		t.Errorf("the example sets something else than 7 settings:\n%s", out)
	}
}

// TestTheEventLogIsCopied runs what the agent's unit runs as root, on a file that is as
// odd: stat says that it is empty. A link that the agent left there must not be followed.
func TestTheEventLogIsCopied(t *testing.T) {
	root := install(t)
	pre := settings(t, filepath.Join(root, unitFolder, "birthmark-agent.service"), "ExecStartPre")
	if len(pre) != 1 || !strings.HasPrefix(pre[0], "-+/") {
		t.Fatalf("ExecStartPre=%q, want one line with - and +", pre)
	}
	dir := t.TempDir()
	victim, copied := filepath.Join(dir, "victim"), filepath.Join(dir, "copied")
	if err := os.WriteFile(victim, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, copied); err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(pre[0][2:])
	group := slices.Index(words, "-g")
	owner := slices.Index(words, "-o")
	if group < 0 || owner < 0 || len(words) < 2 {
		t.Fatalf("ExecStartPre=%q names no owner and group", pre)
	}
	words[owner+1], words[group+1] = strconv.Itoa(os.Getuid()), strconv.Itoa(os.Getgid())
	words[len(words)-2], words[len(words)-1] = "/proc/version", copied
	must(t, words[0], words[1:]...)
	want, err := os.ReadFile("/proc/version")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(copied); err != nil || !bytes.Equal(got, want) {
		t.Errorf("copied %q, %v; want %q", got, err, want)
	}
	if info, err := os.Lstat(copied); err != nil || info.Mode() != 0o440 {
		t.Errorf("the copy is %v, %v; want a file with mode 0440", info.Mode(), err)
	}
	if info, err := os.Stat(victim); err != nil || info.Size() != 0 {
		t.Errorf("the file behind the link has %d bytes, want 0: %v", info.Size(), err)
	}
}

// TestRebootIsAllThatPolkitAllows holds the rule against the two actions of logind that a
// reboot can be.
func TestRebootIsAllThatPolkitAllows(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(install(t), "usr/share/polkit-1/rules.d/50-birthmark.rules"))
	if err != nil {
		t.Fatal(err)
	}
	got := regexp.MustCompile(`org\.[a-z0-9.-]+`).FindAllString(string(text), -1)
	want := []string{"org.freedesktop.login1.reboot", "org.freedesktop.login1.reboot-multiple-sessions"}
	if !slices.Equal(got, want) || strings.Count(string(text), "YES") != 1 || !strings.Contains(string(text), `subject.user == "birthmark"`) {
		t.Errorf("it allows %q, want %q, to the user birthmark:\n%s", got, want, text)
	}
}
