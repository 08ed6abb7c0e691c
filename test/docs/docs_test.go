// Package docs holds what the documents say of the tests against the tests.
package docs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// root is the module's folder, as seen from here.
const root = "../.."

// TestThreatModelNamesTestsThatExist holds docs/threat-model.md, and the mapping
// that refers to it, against the tests of the module. Every threat has a test, or
// says in which part of the plan it comes.
func TestThreatModelNamesTestsThatExist(t *testing.T) {
	known := tests(t)
	model := read(t, "docs/threat-model.md")
	for _, fault := range slices.Concat(threatFaults(model), nameFaults(model, known)) {
		t.Errorf("docs/threat-model.md: %s", fault)
	}
	standards := read(t, "docs/standards.md")
	for _, fault := range slices.Concat(referenceFaults(standards), nameFaults(standards, known)) {
		t.Errorf("docs/standards.md: %s", fault)
	}
}

// TestMutantsNameTestsThatExist holds the headers of test/mutants against the tests
// of the module: trying a mutant takes minutes, and only a few are tried at a time.
func TestMutantsNameTestsThatExist(t *testing.T) {
	known := tests(t)
	patches, err := filepath.Glob(filepath.Join(root, "test/mutants/*.patch"))
	if err != nil || len(patches) == 0 {
		t.Fatalf("found %d mutants: %v", len(patches), err)
	}
	for _, path := range patches {
		name := filepath.Base(path)
		red := redLine.FindStringSubmatch(read(t, "test/mutants/"+name))
		if red == nil {
			t.Errorf("%s names no test", name)
			continue
		}
		pattern, err := regexp.Compile(red[2])
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		found := false
		for full := range known {
			test, here := strings.CutPrefix(full, red[1]+".")
			found = found || here && pattern.MatchString(test)
		}
		if !found {
			t.Errorf("%s: there is no test %s in %s", name, red[2], red[1])
		}
	}
}

func TestFaultsOfDocumentsAreFound(t *testing.T) {
	known := map[string]bool{"pkg/a.TestB": true}
	for _, c := range []struct{ text, want string }{
		{"`pkg/a.TestB`", ""},
		{"`TestB`", "`TestB` is named without its package"},
		{"`pkg/a.TestC`", "there is no pkg/a.TestC"},
		{"`pkg/c.FuzzB`", "there is no pkg/c.FuzzB"},
	} {
		if got := strings.Join(nameFaults(c.text, known), "\n"); got != c.want {
			t.Errorf("%s: got %q, want %q", c.text, got, c.want)
		}
	}
	var whole strings.Builder
	for n := range threats {
		fmt.Fprintf(&whole, "### T%d x\n*Planned, part 4.*\n", n+1)
	}
	model := whole.String()
	for _, c := range []struct{ old, new, want string }{
		{"", "", ""},
		{"### T7 ", "### T77 ", "threat 7 is T77"},
		{"### T20 x\n*Planned, part 4.*", "### T20 x\n", "T20 has neither a test nor a part of the plan"},
		{"### T20 x\n*Planned, part 4.*", "### T20 x\nplanned, after part 5", ""},
		{"### T20 x\n*Planned, part 4.*", "### T20 x\n*Shown by:* `pkg/a.TestB`", ""},
		{"### T20 ", "#### T20 ", "it has 19 threats, want 20"},
	} {
		if got := strings.Join(threatFaults(strings.Replace(model, c.old, c.new, 1)), "\n"); got != c.want {
			t.Errorf("%q instead of %q: got %q, want %q", c.new, c.old, got, c.want)
		}
	}
	for text, want := range map[string]string{"| T1, T20 |": "", "T21": "there is no threat T21", "T0": "there is no threat T0"} {
		if got := strings.Join(referenceFaults(text), "\n"); got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}

// threats is how many there are, T1 and up.
const threats = 20

var (
	heading   = regexp.MustCompile(`(?m)^### (T\d+) `)
	planned   = regexp.MustCompile(`[Pp]lanned, (after )?part \d`)
	reference = regexp.MustCompile(`\bT(\d+)\b`)
	fullName  = regexp.MustCompile("`([a-z0-9/]+\\.(?:Test|Fuzz)\\w+)`")
	bareName  = regexp.MustCompile("`(?:Test|Fuzz)\\w+`")
	redLine   = regexp.MustCompile(`(?m)^Red: go test \./(\S+) -run ([^/\s]+)`)
	function  = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(\w+ \*testing\.[TF]\)`)
)

// threatFaults holds the sections of the threat model against the list T1 and up.
func threatFaults(text string) (faults []string) {
	found := heading.FindAllStringSubmatchIndex(text, -1)
	if len(found) != threats {
		faults = append(faults, fmt.Sprintf("it has %d threats, want %d", len(found), threats))
	}
	for i, at := range found {
		name, end := text[at[2]:at[3]], len(text)
		if i+1 < len(found) {
			end = found[i+1][0]
		}
		if section := text[at[0]:end]; !fullName.MatchString(section) && !planned.MatchString(section) {
			faults = append(faults, name+" has neither a test nor a part of the plan")
		}
		if want := "T" + strconv.Itoa(i+1); name != want {
			faults = append(faults, fmt.Sprintf("threat %d is %s", i+1, name))
		}
	}
	return faults
}

func referenceFaults(text string) (faults []string) {
	for _, m := range reference.FindAllStringSubmatch(text, -1) {
		if n, err := strconv.Atoi(m[1]); err != nil || n < 1 || n > threats {
			faults = append(faults, "there is no threat T"+m[1])
		}
	}
	return faults
}

// nameFaults holds the tests that a text names against those that are known.
func nameFaults(text string, known map[string]bool) (faults []string) {
	for _, m := range fullName.FindAllStringSubmatch(text, -1) {
		if !known[m[1]] {
			faults = append(faults, "there is no "+m[1])
		}
	}
	for _, name := range bareName.FindAllString(text, -1) {
		faults = append(faults, name+" is named without its package")
	}
	return faults
}

// tests is every test and fuzz target that `go test ./...` would run, as
// "pkg/store.TestOneAtATime".
func tests(t *testing.T) map[string]bool {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles", "./...")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath, Dir           string
			TestGoFiles, XTestGoFiles []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return known
		} else if err != nil {
			t.Fatal(err)
		}
		for _, name := range slices.Concat(p.TestGoFiles, p.XTestGoFiles) {
			text, err := os.ReadFile(filepath.Join(p.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range function.FindAllSubmatch(text, -1) {
				known[strings.TrimPrefix(p.ImportPath, "birthmark/")+"."+string(m[1])] = true
			}
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
