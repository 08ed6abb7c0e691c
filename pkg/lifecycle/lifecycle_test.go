package lifecycle

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite docs/lifecycle.md")

var states = []State{Blank, Born, Enrolled, Operational}

// TestDoc keeps docs/lifecycle.md equal to the table, so that a changed row shows
// up in review twice: as code and as a picture.
func TestDoc(t *testing.T) {
	const doc = "../../docs/lifecycle.md"
	want := draw()
	if *update {
		if err := os.WriteFile(doc, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s differs from the table; run go test ./pkg/lifecycle -update and look at the difference", doc)
	}
}

func draw() string {
	var b strings.Builder
	b.WriteString(`# The life of a device

Generated from the table in pkg/lifecycle by its test (` + "`go test ./pkg/lifecycle -update`" + `); do not edit.
What is not drawn does not happen. Renewal of a certificate is not a state: the device stays in service.

` + "```mermaid\nstateDiagram-v2\n    [*] --> blank\n")
	for _, r := range table {
		fmt.Fprintf(&b, "    %s --> %s: %s\n", r.From, r.To, r.On)
	}
	b.WriteString("```\n\n| from | on | to | saved in the same write |\n|---|---|---|---|\n")
	for _, r := range table {
		saved := r.Saved
		if saved == "" {
			saved = "–"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", r.From, r.On, r.To, saved)
	}
	return b.String()
}

func TestNext(t *testing.T) {
	// Walk the life as it should be, and try every other event on the way.
	way := map[State]struct {
		on Event
		to State
	}{
		Blank:    {Birthed, Born},
		Born:     {Issued, Enrolled},
		Enrolled: {Accepted, Operational},
	}
	for _, s := range append(states, "suspended", "rubbish") {
		for _, ev := range []Event{Birthed, Issued, Accepted, "", "retired"} {
			got, err := Next(s, ev)
			if w, ok := way[s]; ok && w.on == ev {
				if got != w.to || err != nil {
					t.Errorf("%v on %s: got %v, %v, want %v", s, ev, got, err, w.to)
				}
				continue
			}
			if got != s || err == nil {
				t.Errorf("%v on %q: got %v, %v, want an error and the same state", s, ev, got, err)
			}
		}
	}
	_, err := Next(Blank, Accepted)
	if want := `no way out of state "blank" on event "accepted"`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestEveryStateIsReachedAndNoPairIsTwice(t *testing.T) {
	reached, seen := map[State]bool{Blank: true}, map[string]bool{}
	for range table { // a row a round is enough for any order
		for _, r := range table {
			reached[r.To] = reached[r.To] || reached[r.From]
		}
	}
	for _, r := range table {
		pair := fmt.Sprint(r.From, "/", r.On)
		if seen[pair] {
			t.Errorf("two rows for %s", pair)
		}
		seen[pair] = true
	}
	for _, s := range states {
		if !reached[s] {
			t.Errorf("no way leads to %v", s)
		}
	}
}

func TestKnown(t *testing.T) {
	for _, s := range states {
		if !Known(s) {
			t.Errorf("%v is not known", s)
		}
	}
	for _, s := range []State{"suspended", "blank", "Born", " "} {
		if Known(s) {
			t.Errorf("%q is known", string(s))
		}
	}
}
