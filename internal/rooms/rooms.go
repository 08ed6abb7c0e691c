// Package rooms says who may import whom, and what the device binary may link.
//
// [graph] is the whole import graph of this repository, as a map that fits on a
// page: docs/design.md section 2, in a form that a test can hold the code
// against. A new room, and a new arrow between two, is a decision; it is made
// here, in a diff of its own. [Arrows] holds what `go list` found against the
// map, [Device] what would be linked into the device binary against two lists,
// [Installer] what its only code for root stands on.
//
// Nothing here is part of a binary. Run the test with -count=1: Go caches a test
// that starts `go list` without knowing what it read.
package rooms

import (
	"fmt"
	"slices"
	"strings"
)

const (
	module    = "birthmark/"         // prefix of every room's import path
	device    = "cmd/agent"          // the room that becomes the device binary
	installer = "internal/installer" // the room that runs as root
)

// graph tells, for every room, what it may import besides the standard library:
// other rooms by their folder, other people's modules by their path. A room that
// may import a module may import all its packages; no room may import more than
// it names, directly. [layers] says which maps are well formed.
var graph = map[string][]string{
	// The ground floor. Each stands alone.
	"pkg/audit":     {},
	"pkg/clock":     {"golang.org/x/sys"},
	"pkg/cms":       {"go.mozilla.org/pkcs7"},
	"pkg/lifecycle": {},
	"pkg/store":     {"golang.org/x/sys"},

	// Features. They meet in internal/agent only.
	"pkg/attest":               {},
	"pkg/csr":                  {"pkg/cms"},
	"pkg/enroll":               {"pkg/cms", "pkg/clock"},
	"pkg/fota":                 {},
	"pkg/fota/bundle":          {"pkg/cms", "pkg/fota", "pkg/fota/bundle/squashfs"},
	"pkg/fota/permit":          {"pkg/clock", "pkg/cms", "pkg/fota", "pkg/fota/bundle"}, // the first in tests only
	"pkg/fota/bundle/squashfs": {"github.com/klauspost/compress", "github.com/ulikunitz/xz"},
	"pkg/fota/fotatest":        {"pkg/fota"},
	"pkg/fota/rauc":            {"pkg/fota", "pkg/fota/slot", "pkg/store", "github.com/godbus/dbus"},
	"pkg/fota/sdboot":          {"pkg/cms", "pkg/fota", "pkg/fota/sdboot/pe", "pkg/fota/slot", "golang.org/x/sys"},
	"pkg/fota/sdboot/pe":       {},
	"pkg/fota/slot":            {"pkg/fota", "golang.org/x/sys"},
	"pkg/fota/source":          {},
	"pkg/rot":                  {},
	"pkg/rot/rottest":          {"pkg/rot"},
	"pkg/rot/soft":             {"pkg/rot"},
	"pkg/rot/tpm":              {"pkg/rot", "pkg/rot/tpm/keyfile", "github.com/google/go-tpm", "golang.org/x/sys"},
	"pkg/rot/tpm/keyfile":      {},
	"pkg/telemetry":            {"github.com/eclipse/paho.mqtt.golang"},

	// Both binaries.
	"internal/cli":     {"internal/version", "github.com/spf13/cobra"},
	"internal/version": {"pkg/clock"},

	// The device.
	"internal/config":  {"github.com/BurntSushi/toml"},
	"internal/metrics": {},
	"internal/sysroot": {},
	// The only code that runs as root. It has no network; a test holds that it links none.
	"internal/installer": {"pkg/clock", "pkg/cms", "pkg/fota", "pkg/fota/bundle", "pkg/fota/permit", "pkg/rot", "pkg/store", "golang.org/x/sys"},
	"internal/agent": {"internal/agent/firmware", "internal/agent/update", "internal/config", "internal/metrics", "internal/sysroot", "internal/version",
		"pkg/audit", "pkg/clock", "pkg/csr", "pkg/enroll", "pkg/fota", "pkg/fota/bundle", "pkg/fota/source", "pkg/lifecycle", "pkg/rot", "pkg/rot/tpm", "pkg/store", "pkg/telemetry"},
	"internal/agent/api":  {"internal/metrics"},
	"internal/agent/diag": {"internal/config"},
	"internal/agent/doctor": {"internal/agent", "internal/agent/firmware", "internal/agent/update", "internal/config", "pkg/audit", "pkg/clock", "pkg/enroll", "pkg/fota", "pkg/lifecycle", "pkg/rot",
		"pkg/rot/tpm", "pkg/store"},
	"internal/agent/firmware": {"internal/config", "internal/sysroot", "pkg/clock", "pkg/cms", "pkg/fota", "pkg/fota/bundle", "pkg/fota/source"},
	"internal/agent/once": {"internal/agent", "internal/config", "pkg/clock", "pkg/csr", "pkg/enroll", "pkg/rot",
		"pkg/rot/tpm", "pkg/store"},
	"internal/agent/update": {"pkg/fota", "pkg/fota/source", "pkg/store"}, // the last in tests only: what is remembered is the agent's
	"cmd/agent": {"internal/agent", "internal/agent/api", "internal/agent/diag", "internal/agent/doctor", "internal/agent/firmware", "internal/agent/once", "internal/agent/update",
		"internal/cli", "internal/config", "internal/installer", "internal/sysroot", "internal/version", "pkg/clock", "pkg/enroll", "pkg/fota", "pkg/fota/rauc", "pkg/fota/sdboot", "pkg/rot", "pkg/rot/tpm", "pkg/store",
		"github.com/coreos/go-systemd", "github.com/godbus/dbus", "github.com/spf13/cobra", "golang.org/x/sys"},

	// The lab: everything that is not on the device.
	"internal/swtpm":           {},
	"internal/swtpm/swtpmtest": {"internal/swtpm"},
	"internal/lab":             {"internal/lab/broker", "internal/lab/ca", "internal/lab/est", "pkg/store"},
	"internal/lab/board":       {"internal/sysroot", "pkg/cms", "pkg/fota", "pkg/fota/sdboot", "pkg/fota/sdboot/pe", "pkg/fota/sdboot/pe/petest", "golang.org/x/sys"}, // sdboot in tests only
	"internal/lab/broker":      {"github.com/mochi-mqtt/server"},
	"internal/lab/ca":          {},
	"internal/lab/est":         {"internal/lab/ca", "go.mozilla.org/pkcs7"},
	"internal/lab/demo":        {"internal/lab", "internal/lab/board", "internal/lab/ca", "internal/lab/sign", "internal/swtpm", "internal/sysroot", "pkg/fota", "go.mozilla.org/pkcs7"},
	"internal/lab/sign":        {"internal/lab/ca", "pkg/clock", "pkg/cms", "pkg/fota", "pkg/fota/bundle", "pkg/fota/permit", "pkg/fota/sdboot", "pkg/store"},
	"cmd/lab":                  {"internal/cli", "internal/lab", "internal/lab/ca", "internal/lab/demo", "internal/lab/sign", "pkg/fota", "pkg/fota/permit", "github.com/spf13/cobra"},

	// Tests of the whole, what they share, and the test of the house.
	"internal/agent/agenttest": {"internal/agent", "internal/config", "internal/lab", "pkg/audit", "pkg/lifecycle",
		"pkg/rot", "pkg/rot/tpm", "pkg/store"},
	"internal/cli/clitest":         {"github.com/rogpeppe/go-internal"},
	"internal/crashdisk":           {},
	"internal/metrics/metricstest": {},
	"internal/promises":            {},
	"internal/twins":               {},
	"internal/wire":                {},
	"pkg/fota/bundle/bundletest":   {},
	"pkg/fota/sdboot/pe/petest":    {},
	"internal/rooms":               {},
	"test/e2e":                     {"internal/agent", "internal/lab/board", "internal/lab/sign", "pkg/fota", "pkg/lifecycle", "pkg/store"},
	"test/bench":                   {"internal/installer", "internal/lab", "internal/lab/sign", "internal/swtpm", "internal/sysroot", "pkg/fota", "pkg/fota/sdboot/pe/petest", "pkg/fota/source", "golang.org/x/sys"},
	"test/deb":                     {"test/qemu/image"},
	"test/docs":                    {},
	"test/firmware": {"internal/agent/firmware", "internal/agent/update", "internal/installer", "internal/lab/sign",
		"pkg/clock", "pkg/fota", "pkg/fota/bundle", "pkg/fota/sdboot", "pkg/fota/source", "golang.org/x/sys"},
	"test/mutants":    {},
	"test/qemu/image": {},
	"test/qemu": {"internal/agent", "internal/lab", "internal/lab/sign", "internal/swtpm", "pkg/audit", "pkg/fota", "pkg/lifecycle", "pkg/store",
		"test/qemu/boot", "test/qemu/image", "test/qemu/machine", "test/qemu/writelog"},
	"test/qemu/boot":     {"pkg/fota"}, // what a disk holds, in the words of releases
	"test/qemu/initrd":   {"golang.org/x/sys"},
	"test/qemu/machine":  {"internal/swtpm"},
	"test/qemu/writelog": {},
	"test/sbom":          {},
	"test/units":         {},
	"test/vuln":          {},
}

// testsMay is what the tests of any room may import besides what the room may:
// the real things they are tried against, and modules that only tests need.
var testsMay = []string{
	"internal/agent/agenttest", "internal/swtpm", "internal/swtpm/swtpmtest", "pkg/rot/soft",
	"internal/lab", "internal/lab/broker", "internal/lab/ca", "internal/lab/est",
	"pkg/rot/rottest",              // what every root of trust promises
	"pkg/rot/tpm",                  // the real one, in front of internal/swtpm
	"pkg/fota/fotatest",            // what every installer promises
	"pkg/fota/bundle/bundletest",   // bundles, good and bad
	"pkg/fota/sdboot/pe/petest",    // programs for firmware
	"internal/metrics/metricstest", // what Prometheus reads
	"internal/crashdisk",           // what a power cut leaves
	"internal/cli/clitest",         // commands of script tests
	"internal/promises",            // lists of docs/ that tests keep
	"internal/twins",               // attacks that succeed when a check is switched off
	"internal/wire",                // a network inside of a synctest bubble
	"github.com/google/go-cmp", "github.com/rogpeppe/go-internal",
	"go.mozilla.org/pkcs7", // a second opinion on certs-only messages
}

// linked is every module of other people's that may be part of the device
// binary. Each is a party that has to be trusted, so adding one is a decision.
var linked = []string{
	"github.com/BurntSushi/toml",          // configuration
	"github.com/coreos/go-systemd/v22",    // what the service manager is told, and gives
	"github.com/eclipse/paho.mqtt.golang", // MQTT, one connection at a time
	"github.com/godbus/dbus/v5",           // D-Bus: RAUC, and logind for a restart
	"github.com/google/go-tpm",            // TPM commands
	"github.com/gorilla/websocket",        // paho links it; never used
	"github.com/klauspost/compress",       // firmware: gzip and zstd in squashfs
	"github.com/spf13/cobra",              // command line
	"github.com/spf13/pflag",              // cobra's flags
	"github.com/ulikunitz/xz",             // firmware: xz in squashfs
	"go.mozilla.org/pkcs7",                // a second opinion, in pkg/cms, on signed messages
	"golang.org/x/net",                    // paho: proxies
	"golang.org/x/sync",                   // paho: a semaphore
	"golang.org/x/sys",                    // system calls
}

// Other people's modules in the device binary: how many we import ourselves, and
// how many there are with what those need.
const (
	maxDirect = 10
	maxLinked = 16
)

// unwelcome is what must not be part of the device binary, whoever imports it,
// even where the module it comes from is linked.
var unwelcome = []struct{ prefix, why string }{
	{module + "internal/lab", "it is not on the device"},
	{module + "internal/swtpm", "a TPM in software is no root of trust"},
	{module + "pkg/rot/soft", "its keys are ordinary files"},
	{"github.com/google/go-tpm-tools", "it holds a simulator"},
	{"github.com/google/go-tpm/tpm2/transport/simulator", "a TPM in software is no root of trust"},
	{"github.com/mochi-mqtt", "a broker is not on the device"},
	{"testing", "nothing that exists for tests is shipped"},
	{"net/http/httptest", "nothing that exists for tests is shipped"},
	{"net/http/pprof", "it is a door"},
	{"expvar", "it is a door"},
	{"html/template", "the device serves no pages"},
	{"os/exec", "the device never starts a shell"},
	{"plugin", "what is not in the binary is not run"},
	{"runtime/cgo", "the binary is static"},
}

// excused is what is unwelcome, and imported by packages that do not have it linked. One
// file of pkcs7 is a test but for its name, verify_test_dsa.go: of what it imports the
// linker keeps one table of package testing, and nothing of os/exec. dbus would start
// dbus-launch to find a session's bus, which no code of ours asks for: nothing of it is
// kept, either.
var excused = map[string][]string{
	"os/exec": {"go.mozilla.org/pkcs7", "github.com/godbus/dbus/v5"},
	"testing": {"go.mozilla.org/pkcs7"},
}

// A Package is what `go list -json` says about one, as far as it is needed here.
type Package struct {
	ImportPath string
	// Imports of the code, of tests inside and of tests outside the package.
	Imports, TestImports, XTestImports []string
	// Module is nil for the standard library.
	Module *struct{ Path string }
}

// Arrows holds the rooms among pkgs, and what they import, against the graph. It
// returns one sentence per fault.
func Arrows(pkgs []Package) []string {
	var faults []string
	for _, p := range pkgs {
		name, ours := strings.CutPrefix(p.ImportPath, module)
		if !ours {
			continue
		}
		may, known := graph[name]
		if !known {
			faults = append(faults, name+" is a new room: say in internal/rooms what it may import")
			continue
		}
		for _, imp := range p.Imports {
			if !allows(may, imp) {
				faults = append(faults, fmt.Sprintf("%s may not import %s", name, strings.TrimPrefix(imp, module)))
			}
		}
		for _, imp := range slices.Concat(p.TestImports, p.XTestImports) {
			if imp != p.ImportPath && !allows(may, imp) && !allows(testsMay, imp) {
				faults = append(faults, fmt.Sprintf("tests of %s may not import %s", name, strings.TrimPrefix(imp, module)))
			}
		}
	}
	return faults
}

// allows reports whether may covers an import path. A room covers itself only, a
// module all its packages, and everybody may use the standard library.
func allows(may []string, imp string) bool {
	if name, ours := strings.CutPrefix(imp, module); ours {
		return slices.Contains(may, name)
	}
	if standard(imp) {
		return true
	}
	return slices.ContainsFunc(may, func(m string) bool { return within(imp, m) })
}

// Device holds everything that the device binary links against what it may, and
// the list of modules against what is linked. It returns one sentence per fault.
func Device(pkgs []Package) []string {
	faults := budget(pkgs)
	for _, p := range pkgs {
		for _, bad := range unwelcome {
			if within(p.ImportPath, bad.prefix) && !isExcused(pkgs, p.ImportPath) {
				faults = append(faults, fmt.Sprintf("the device binary links %s: %s", p.ImportPath, bad.why))
			}
		}
		if p.Module != nil && p.Module.Path+"/" != module && !slices.Contains(linked, p.Module.Path) {
			faults = append(faults, fmt.Sprintf("the device binary links %s: its module is not on the list", p.ImportPath))
		}
	}
	return faults
}

// isExcused reports whether nobody among pkgs imports a package but who is [excused].
func isExcused(pkgs []Package, path string) bool {
	for _, p := range pkgs {
		if !slices.Contains(excused[path], p.ImportPath) && slices.Contains(p.Imports, path) {
			return false
		}
	}
	return excused[path] != nil
}

// networks is what speaks to more than the machine itself. The standard library's net
// is not here: Unix sockets are part of it. Nor is crypto/tls, which pkg/clock has a rule
// for: by itself it reaches nobody.
var networks = []string{"net/http", "net/rpc", "net/smtp", "golang.org/x/net"}

// rooted is every module of other people's that may run as root.
var rooted = []string{
	"github.com/google/go-tpm",      // TPM commands: the floor
	"github.com/klauspost/compress", // gzip and zstd in squashfs
	"github.com/ulikunitz/xz",       // xz in squashfs
	"go.mozilla.org/pkcs7",          // a second opinion, in pkg/cms, on signed messages
	"golang.org/x/sys",              // system calls
}

// Installer holds everything that the root side of an update stands on against what it
// must be without. It returns one sentence per fault.
func Installer(pkgs []Package) []string {
	var faults []string
	for _, p := range pkgs {
		switch {
		case slices.ContainsFunc(networks, func(n string) bool { return within(p.ImportPath, n) }):
			faults = append(faults, fmt.Sprintf("%s links %s: what runs as root has no network", installer, p.ImportPath))
		case p.Module != nil && p.Module.Path+"/" != module && !slices.Contains(rooted, p.Module.Path):
			faults = append(faults, fmt.Sprintf("%s links %s: its module is not on the list of what may run as root", installer, p.ImportPath))
		}
	}
	return faults
}

// budget holds the number of modules against the limits, and finds lines of
// [linked] that nothing needs any more.
func budget(pkgs []Package) []string {
	modules := map[string]bool{} // by path; true if we import it ourselves
	of := map[string]string{}    // by package
	for _, p := range pkgs {
		if p.Module != nil && p.Module.Path+"/" != module {
			modules[p.Module.Path] = false
			of[p.ImportPath] = p.Module.Path
		}
	}
	direct := 0
	for _, p := range pkgs {
		if !strings.HasPrefix(p.ImportPath, module) {
			continue
		}
		for _, imp := range p.Imports {
			if m := of[imp]; m != "" && !modules[m] {
				modules[m] = true
				direct++
			}
		}
	}
	var faults []string
	if direct > maxDirect {
		faults = append(faults, fmt.Sprintf("the device binary imports %d modules, %d are allowed", direct, maxDirect))
	}
	if len(modules) > maxLinked {
		faults = append(faults, fmt.Sprintf("the device binary links %d modules, %d are allowed", len(modules), maxLinked))
	}
	for _, m := range linked {
		if _, found := modules[m]; !found {
			faults = append(faults, m+" is on the list of linked modules, and is not linked")
		}
	}
	return faults
}

// layers holds a graph against the shape of the house: cmd stands on internal,
// internal on pkg, and the features under pkg on the ground floor only, which
// stands on nothing. It returns one sentence per fault.
func layers(g map[string][]string) []string {
	ground := []string{"pkg/audit", "pkg/clock", "pkg/cms", "pkg/lifecycle", "pkg/store"}
	height := map[string]int{"pkg": 0, "internal": 1, "cmd": 2, "test": 3}
	var faults []string
	for name, may := range g {
		for _, imp := range may {
			if !isRoom(imp) {
				continue
			}
			switch {
			case g[imp] == nil:
				faults = append(faults, fmt.Sprintf("%s may import %s, which is no room", name, imp))
			case height[top(imp)] > height[top(name)]:
				faults = append(faults, fmt.Sprintf("%s may import %s: the arrow points up", name, imp))
			case top(name) == "pkg" && slices.Contains(ground, name):
				faults = append(faults, fmt.Sprintf("%s may import %s: the ground floor stands on nothing", name, imp))
			case top(name) == "pkg" && feature(name) != feature(imp) && !slices.Contains(ground, imp):
				faults = append(faults, fmt.Sprintf("%s may import %s: features meet in internal/agent", name, imp))
			}
		}
	}
	slices.Sort(faults)
	return faults
}

func isRoom(path string) bool { return !strings.Contains(top(path), ".") }

// top is the first element of a path, "pkg" of "pkg/rot/tpm".
func top(path string) string {
	first, _, _ := strings.Cut(path, "/")
	return first
}

// feature is the first two, "pkg/rot" of "pkg/rot/tpm".
func feature(path string) string {
	parts := strings.SplitN(path, "/", 3)
	return strings.Join(parts[:min(2, len(parts))], "/")
}

// standard reports whether an import path is the standard library's: its first
// element has no dot, and it is not ours.
func standard(imp string) bool {
	return !strings.Contains(top(imp), ".") && top(imp)+"/" != module
}

// within reports whether an import path is path or below it.
func within(imp, path string) bool {
	return imp == path || strings.HasPrefix(imp, path+"/")
}
