package rooms

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestArrows(t *testing.T) {
	pkgs := list(t, "./...")
	for _, fault := range Arrows(pkgs) {
		t.Error(fault)
	}
	for name := range graph {
		if !slices.ContainsFunc(pkgs, func(p Package) bool { return p.ImportPath == module+name }) {
			t.Errorf("%s is in the graph, but there is no such room", name)
		}
	}
}

func TestDevice(t *testing.T) {
	for _, fault := range Device(list(t, "-deps", "./"+device)) {
		t.Error(fault)
	}
}

func TestInstaller(t *testing.T) {
	for _, fault := range Installer(list(t, "-deps", "./"+installer, "./pkg/fota/sdboot", "./pkg/rot/tpm")) { // and what cmd/agent gives it
		t.Error(fault)
	}
}

// TestExcused holds that what one package imports by mistake excuses nobody else.
func TestExcused(t *testing.T) {
	for path, by := range excused {
		pkgs := []Package{{ImportPath: path}}
		for _, by := range by {
			pkgs = append(pkgs, Package{ImportPath: by, Imports: []string{path}})
		}
		unwelcome := func() bool {
			return slices.ContainsFunc(Device(pkgs), func(fault string) bool {
				return strings.HasPrefix(fault, "the device binary links "+path+": ")
			})
		}
		if unwelcome() {
			t.Errorf("%s is unwelcome, though only %q import it", path, by)
		}
		pkgs = append(pkgs, Package{ImportPath: module + device, Imports: []string{path}})
		if !unwelcome() {
			t.Errorf("%s is welcome to all, since %q import it", path, by)
		}
	}
}

// TestBudget holds that budget counts: what we import ourselves, and what comes
// with it.
func TestBudget(t *testing.T) {
	outside := func(n int, imports ...string) Package {
		path := fmt.Sprintf("example.com/m%d", n)
		return Package{ImportPath: path + "/p", Imports: imports, Module: &struct{ Path string }{path}}
	}
	var pkgs []Package
	ours := Package{ImportPath: module + device}
	for n := range maxLinked + 1 {
		pkgs = append(pkgs, outside(n, "example.com/m0/p"))
		if n <= maxDirect {
			ours.Imports = append(ours.Imports, pkgs[n].ImportPath, pkgs[n].ImportPath)
		}
	}
	for _, c := range []struct {
		direct, all int
		want        []string
	}{
		{maxDirect, maxLinked, nil},
		{maxDirect + 1, maxLinked, []string{"the device binary imports 11 modules, 10 are allowed"}},
		{maxDirect, maxLinked + 1, []string{"the device binary links 17 modules, 16 are allowed"}},
	} {
		found := budget(append(pkgs[:c.all:c.all], Package{ImportPath: ours.ImportPath, Imports: ours.Imports[:2*c.direct]}))
		found = slices.DeleteFunc(found, func(f string) bool { return strings.HasSuffix(f, "is not linked") })
		if !slices.Equal(found, c.want) {
			t.Errorf("%d direct of %d: got %q, want %q", c.direct, c.all, found, c.want)
		}
	}
	if found := budget(pkgs[:1]); len(found) != len(linked) {
		t.Errorf("of a binary that links nothing on the list: got %q, want a sentence for each of %d lines", found, len(linked))
	}
}

func TestLayers(t *testing.T) {
	for _, fault := range layers(graph) {
		t.Error(fault)
	}
}

// TestLayersFaults holds that layers sees each kind of bad map.
func TestLayersFaults(t *testing.T) {
	for _, c := range []struct {
		name string
		may  map[string][]string
		want string
	}{
		{"up", map[string][]string{"pkg/a": {"internal/b"}, "internal/b": {}}, "pkg/a may import internal/b: the arrow points up"},
		{"up to cmd", map[string][]string{"internal/b": {"cmd/c"}, "cmd/c": {}}, "internal/b may import cmd/c: the arrow points up"},
		{"two features", map[string][]string{"pkg/a": {"pkg/b"}, "pkg/b": {}}, "pkg/a may import pkg/b: features meet in internal/agent"},
		{"ground floor", map[string][]string{"pkg/cms": {"pkg/clock"}, "pkg/clock": {}}, "pkg/cms may import pkg/clock: the ground floor stands on nothing"},
		{"nowhere", map[string][]string{"pkg/a": {"pkg/b"}}, "pkg/a may import pkg/b, which is no room"},
		{"within a feature", map[string][]string{"pkg/a": {"pkg/a/b"}, "pkg/a/b": {"pkg/a/c"}, "pkg/a/c": {}}, ""},
		{"on the ground floor", map[string][]string{"pkg/a": {"pkg/cms", "example.com/m"}, "pkg/cms": {"example.com/m"}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := strings.Join(layers(c.may), "\n"); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestSeededFaults adds forbidden imports to the real tree, in an overlay that
// only `go list` sees, and holds that each is found.
func TestSeededFaults(t *testing.T) {
	seeds := []struct{ file, text, want string }{
		{"pkg/lifecycle/seeded.go", `package lifecycle; import _ "birthmark/pkg/store"`,
			"pkg/lifecycle may not import pkg/store"},
		{"pkg/csr/seeded.go", `package csr; import _ "birthmark/pkg/enroll"`,
			"pkg/csr may not import pkg/enroll"},
		{"pkg/store/seeded.go", `package store; import _ "birthmark/internal/agent"`,
			"pkg/store may not import internal/agent"},
		{"pkg/rot/seeded.go", `package rot; import _ "github.com/google/go-tpm/tpm2"`,
			"pkg/rot may not import github.com/google/go-tpm/tpm2"},
		{"pkg/csr/seeded_test.go", `package csr; import _ "birthmark/pkg/telemetry"`,
			"tests of pkg/csr may not import pkg/telemetry"},
		{"pkg/cms/seeded_test.go", `package cms_test; import _ "github.com/BurntSushi/toml"`,
			"tests of pkg/cms may not import github.com/BurntSushi/toml"},
		{"pkg/seeded/seeded.go", `package seeded`,
			"pkg/seeded is a new room: say in internal/rooms what it may import"},
		{"cmd/agent/seeded.go", `package main; import (_ "birthmark/pkg/rot/soft"; _ "os/exec"; _ "github.com/rogpeppe/go-internal/txtar")`,
			"cmd/agent may not import pkg/rot/soft"},
		{"internal/agent/seeded.go", `package agent; import (_ "net/http/pprof"; _ "github.com/mochi-mqtt/server/v2")`,
			"internal/agent may not import github.com/mochi-mqtt/server/v2"},
		{"internal/installer/seeded.go", `package installer; import (_ "net/http"; _ "github.com/spf13/cobra")`,
			"internal/installer may not import github.com/spf13/cobra"},
	}
	files := map[string]string{}
	for _, s := range seeds {
		files[s.file] = s.text
	}
	overlay := overlay(t, files)
	found := Arrows(list(t, overlay, "./..."))
	for _, s := range seeds {
		if !slices.Contains(found, s.want) {
			t.Errorf("%s added: nobody says %q; what is said:\n%s", s.file, s.want, strings.Join(found, "\n"))
		}
	}
	found = Device(list(t, overlay, "-deps", "./"+device))
	for _, want := range []string{
		"the device binary links birthmark/pkg/rot/soft: its keys are ordinary files",
		"the device binary links os/exec: the device never starts a shell",
		"the device binary links net/http/pprof: it is a door", // by way of internal/agent
		"the device binary links github.com/mochi-mqtt/server/v2: a broker is not on the device",
		"the device binary links github.com/rogpeppe/go-internal/txtar: its module is not on the list",
	} {
		if !slices.Contains(found, want) {
			t.Errorf("nobody says %q; what is said:\n%s", want, strings.Join(found, "\n"))
		}
	}
	found = Installer(list(t, overlay, "-deps", "./"+installer))
	for _, want := range []string{
		"internal/installer links net/http: what runs as root has no network",
		"internal/installer links github.com/spf13/cobra: its module is not on the list of what may run as root",
	} {
		if !slices.Contains(found, want) {
			t.Errorf("nobody says %q; what is said:\n%s", want, strings.Join(found, "\n"))
		}
	}
}

// root is the module's folder.
const root = "../.."

// list asks `go list` about packages, as they are built for the device. A
// package that does not compile is listed with what it imports: that it does not
// compile is for the compiler to say.
func list(t *testing.T, args ...string) []Package {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports,Module"}, args...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOFLAGS=")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	var pkgs []Package
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p Package
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list %s: %v", strings.Join(args, " "), err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) == 0 {
		t.Fatalf("go list %s: no packages\n%s", strings.Join(args, " "), &stderr)
	}
	return pkgs
}

// overlay writes files to a temporary folder and returns the flag that makes the
// go command see them at the paths, relative to root, that they are named by.
func overlay(t *testing.T, files map[string]string) string {
	t.Helper()
	top, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	var o struct{ Replace map[string]string }
	o.Replace = map[string]string{}
	dir := t.TempDir()
	for name, text := range files {
		real := filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
		if err := os.WriteFile(real, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		o.Replace[filepath.Join(top, name)] = real
	}
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return "-overlay=" + path
}
