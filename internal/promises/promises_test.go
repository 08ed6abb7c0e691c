package promises

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// lists are all there are.
var lists = []string{"est.md"}

// Keep is only as good as who calls it: every room that a list names has to.
func TestEveryRoomOfAListKeepsIt(t *testing.T) {
	top, room, err := whereabouts()
	if err != nil || room != "internal/promises" {
		t.Fatalf("this is %s, %v, want internal/promises", room, err)
	}
	for _, list := range lists {
		rows, err := read(filepath.Join(top, "docs", list))
		if err != nil {
			t.Fatal(err)
		}
		called := map[string]bool{}
		for _, r := range rows {
			for _, room := range r.rooms {
				if _, looked := called[room]; !looked {
					called[room] = calls(t, filepath.Join(top, room), `promises.Keep(t, "`+list+`"`)
				}
				if !called[room] {
					t.Errorf("docs/%s: row %d names %s, where nobody keeps the list", list, r.number, room)
				}
			}
		}
	}
}

// calls reports whether a test in dir says call.
func calls(t *testing.T, dir, call string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), call) {
			return true
		}
	}
	return false
}

func TestListsThatAreNone(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"no rows":           {"# EST\n\n| row | promise | rooms |\n|---|---|---|\n", "no rows"},
		"a gap":             {"| 1 | a | b |\n| 3 | c | d |\n", "not row 2"},
		"a number twice":    {"| 1 | a | b |\n| 1 | c | d |\n", "not row 2"},
		"a column too few":  {"| 1 | a |\n", "not row 1"},
		"a column too many": {"| 1 | a | b | c |\n", "not row 1"},
	} {
		file := filepath.Join(t.TempDir(), "list.md")
		if err := os.WriteFile(file, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if rows, err := read(file); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %d rows, %v, want an error about %q", name, len(rows), err, tc.want)
		}
	}
}
