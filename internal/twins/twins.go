// Package twins proves of checks that each of them is needed. For tests only.
//
// That an attack fails proves nothing about a check: it may fail for another reason. So
// every attack has a twin, which is the same but that the checks said to stop it are
// switched off, and which succeeds. The switches are in a build of their own, which the
// go command makes by its -overlay: the code itself knows nothing of them.
package twins

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A Site is where a check stands: the check's name, a file of the package that is tested, a
// text in it, and what stands there instead in the other build, where off(check) says
// whether it is switched off. Where that is empty, the text is the condition for a refusal;
// where it is [Skip], a statement.
type Site [4]string

// Skip is for a [Site].
const Skip = "skip"

// An Attack is by its name, and the checks that are said to stop it.
type Attack struct {
	Name   string
	Checks []string
}

// always is part of every other build. The package's tests declare without, a function
// that switches checks off and returns one that switches them on again; it is nil in the
// build that is shipped.
const always = `package %[1]s

var switchedOff = map[string]bool{}

func off(check string) bool { return switchedOff[check] }
`

const alwaysForTests = `package %[1]s

func init() {
	without = func(checks ...string) func() {
		for _, name := range checks {
			switchedOff[name] = true
		}
		return func() { clear(switchedOff) }
	}
}
`

// Run makes the other build of the package name, which is in the working folder, with a
// file more, switches; and there runs a test, which has to pass and to say what is wanted.
func Run(t *testing.T, name string, sites []Site, attacks []Attack, switches, test, want string) {
	t.Helper()
	for _, a := range attacks {
		for _, check := range a.Checks {
			if !slices.ContainsFunc(sites, func(s Site) bool { return s[0] == check }) {
				t.Errorf("%s: nobody can switch %q off", a.Name, check)
			}
		}
	}
	for _, s := range sites {
		if !slices.ContainsFunc(attacks, func(a Attack) bool { return slices.Contains(a.Checks, s[0]) }) {
			t.Errorf("check %q stops nothing", s[0])
		}
	}
	files := replace(t, sites)
	files["off.go"], files["off_test.go"] = fmt.Sprintf(always, name), fmt.Sprintf(alwaysForTests, name)
	files["switches.go"] = switches
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-vet=off", "-v", "-overlay", overlay(t, files), "-run", "^"+test+"$", ".")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), want) {
		failed := slices.DeleteFunc(strings.Split(string(out), "\n"), func(line string) bool {
			return strings.HasPrefix(line, "=== ") || strings.Contains(line, "--- PASS")
		})
		t.Errorf("%v, want %q:\n%s", err, want, strings.Join(failed, "\n"))
	}
}

// replace returns the files with sites, with switches in them.
func replace(t *testing.T, sites []Site) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, s := range sites {
		check, file, text, instead := s[0], s[1], s[2], s[3]
		whole, ok := files[file]
		if !ok {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			whole = string(b)
		}
		if n := strings.Count(whole, text); n != 1 {
			t.Errorf("check %q: its text stands %d times in %s, want once: %s", check, n, file, text)
			continue
		}
		switch instead {
		case "":
			instead = fmt.Sprintf("!off(%q) && (%s)", check, text)
		case Skip:
			instead = fmt.Sprintf("if !off(%q) {\n\t\t%s\n\t}", check, text)
		}
		files[file] = strings.Replace(whole, text, instead, 1)
	}
	return files
}

// overlay writes files, and one for -overlay that names them in place of those here.
func overlay(t *testing.T, files map[string]string) string {
	t.Helper()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var o struct{ Replace map[string]string }
	o.Replace = map[string]string{}
	for name, text := range files {
		o.Replace[filepath.Join(here, name)] = write(name, []byte(text))
	}
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return write("overlay.json", text)
}
