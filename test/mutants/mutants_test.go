package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// root is the module's folder, as seen from here.
const root = "../.."

// TestPatchesAreWellFormed holds that every patch says what it breaks and applies
// to the tree as it is. Whether its test goes red takes longer: `make mutants`.
func TestPatchesAreWellFormed(t *testing.T) {
	all, err := load(os.DirFS(root), folder)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 12 {
		t.Errorf("%d mutants, want 12 at least", len(all))
	}
	for _, m := range all {
		cmd := exec.Command("git", "apply", "--check")
		cmd.Dir, cmd.Stdin = root, strings.NewReader(string(m.patch))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s does not apply: %s", m.name, out)
		}
	}
}

func TestParse(t *testing.T) {
	const good = "Breaks: a promise\nRed: go test ./pkg/a -run ^TestB$/c\n\n--- a/x\n+++ b/x\n"
	m, err := parse("n", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if want := (mutant{"n", "a promise", test{"pkg/a", "^TestB$/c"}, []byte(good)}); !reflect.DeepEqual(m, want) {
		t.Errorf("got %v, want %v", m, want)
	}
	for _, bad := range []string{
		"",
		strings.Replace(good, "Breaks:", "It breaks:", 1),
		strings.Replace(good, "go test", "go vet", 1),
		strings.Replace(good, "./pkg", "/pkg", 1),
		strings.Replace(good, "^TestB$", "^Test(B$", 1),
	} {
		if _, err := parse("n", []byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestChoose(t *testing.T) {
	all := []mutant{{name: "a"}, {name: "ab"}, {name: "b"}, {name: "c"}, {name: "d"}, {name: "e"}}
	names := func(ms []mutant) string {
		var s []string
		for _, m := range ms {
			s = append(s, m.name)
		}
		return strings.Join(s, " ")
	}
	if got := names(choose(all, 0, "", "")); got != "a ab b c d e" {
		t.Errorf("without a number: %s, want all", got)
	}
	if got := names(choose(all, 9, "", "b")); got != "ab b" {
		t.Errorf("with b in the name: %s, want ab b", got)
	}
	seen := map[string]bool{}
	for _, seed := range []string{"1", "2", "3", "4", "5", "6", "7", "8"} {
		first, second := names(choose(all, 3, seed, "")), names(choose(all, 3, seed, ""))
		if first != second || len(strings.Fields(first)) != 3 {
			t.Errorf("seed %s: first %s, then %s; want the same three", seed, first, second)
		}
		for _, name := range strings.Fields(first) {
			seen[name] = true
		}
	}
	if len(seen) != len(all) {
		t.Errorf("eight seeds chose %d of %d", len(seen), len(all))
	}
}

// TestVerdicts tries mutants of a small module: one that is noticed, and every way
// to prove nothing.
func TestVerdicts(t *testing.T) {
	tree := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":        "module small\n\ngo 1.26\n",
		"a/a.go":        "package a\n\nfunc One() int { return 1 }\n\nfunc Two() int { return 2 }\n",
		"a/a_test.go":   "package a\n\nimport \"testing\"\n\nfunc TestOne(t *testing.T) {\n\tif One() != 1 {\n\t\tt.Fatal()\n\t}\n}\n",
		"a/red_test.go": "package a\n\nimport \"testing\"\n\nfunc TestRed(t *testing.T) { t.Fatal() }\n",
	} {
		path := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b := &bench{ctx: t.Context(), dir: tree, tree: tree, test: filepath.Join(t.TempDir(), "a.test")}
	const header = "Breaks: x\nRed: go test ./a -run ^TestOne$\n\n--- a/a/a.go\n+++ b/a/a.go\n"
	one := func(text string) string {
		return "@@ -2,3 +2,3 @@\n \n-func One() int { return 1 }\n+" + text + "\n \n"
	}
	for _, c := range []struct{ name, hunk, want string }{
		{"noticed", one("func One() int { return 0 }"), ""},
		{"not noticed", "@@ -4,2 +4,2 @@\n \n-func Two() int { return 2 }\n+func Two() int { return 0 }\n", "SURVIVED"},
		{"no Go", one("func One() int { return }"), "does not compile"},
		{"of another tree", "@@ -2,3 +2,3 @@\n \n-func Three() int { return 3 }\n+func Three() int { return 0 }\n \n", "does not apply"},
	} {
		m, err := parse(c.name, []byte(header+c.hunk))
		if err != nil {
			t.Fatal(err)
		}
		switch _, err := b.try(m); {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v, want no fault", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
	for pattern, want := range map[string]string{"^TestOne$": "", "^TestRed$": "it is red", "^TestNone$": "no such test"} {
		err := b.green(test{"a", pattern})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", pattern, err, want)
		}
	}
}
