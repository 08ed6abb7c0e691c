package e2e

import (
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDemo runs the demonstration and holds its report against the broker's own
// log: the telemetry in both carries a nonce that this test chose.
func TestDemo(t *testing.T) {
	dir, tmp := t.TempDir(), t.TempDir()
	report, brokerLog := filepath.Join(dir, "demo.json"), filepath.Join(dir, "broker.log")
	nonce := rand.Text()
	printed := must(t, []string{"TMPDIR=" + tmp}, birthmarkLab, "demo", "--oneshot", "--json", report, "--broker-log", brokerLog, "--nonce", nonce)
	t.Logf("\n%s", printed)

	var said struct {
		OK        bool
		Device    string
		Topic     string
		Telemetry json.RawMessage
		Steps     []struct{ Who, What string }
		Refusals  []struct {
			Exit int
			Said string
		}
	}
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &said); err != nil {
		t.Fatal(err)
	}
	if !said.OK || len(said.Refusals) != 3 {
		t.Errorf("the report says ok %t and %d refusals, want true and 3", said.OK, len(said.Refusals))
	}
	for _, r := range said.Refusals {
		if r.Exit != 1 || r.Said == "" {
			t.Errorf("a refusal ended with exit code %d and %q, want 1 and a reason", r.Exit, r.Said)
		}
	}
	for _, want := range []string{"fixedTPM", "sensitiveDataOrigin", "until 9999-12-31", "CN=" + said.Device, "OPERATIONAL"} {
		if !strings.Contains(printed, want) {
			t.Errorf("the timeline does not show %q", want)
		}
	}
	if got, want := published(t, brokerLog, said.Topic), nonceOf(t, said.Telemetry); got != nonce || want != nonce {
		t.Errorf("the broker logged nonce %q, the report has %q, want %q in both", got, want, nonce)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("the demonstration left %v behind (%v)", left, err)
	}
}

// TestREADMEShowsTheDemo holds the demonstration that the README shows against what one
// prints now: all of it, but for what differs from run to run.
func TestREADMEShowsTheDemo(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, shown, ok := strings.Cut(string(text), "```\nBirthmark: a device is born")
	shown, _, end := strings.Cut(shown, "```")
	if !ok || !end {
		t.Fatal("the README shows no demonstration")
	}
	printed := must(t, nil, birthmarkLab, "demo", "--oneshot")
	_, printed, _ = strings.Cut(printed, "Birthmark: a device is born")
	got, want := entries(shown), entries(printed)
	for _, e := range want {
		if !slices.Contains(got, e) {
			t.Errorf("the README does not show\n%s", e)
		}
	}
	for _, e := range got {
		if !slices.Contains(want, e) {
			t.Errorf("the README shows what is not printed:\n%s", e)
		}
	}
}

var (
	entryStart = regexp.MustCompile(`(?m)^ +\d+\.\d\d s  `)
	reading    = regexp.MustCompile(`(tele/system:) .*`) // what a machine can measure differs
	differing  = []*regexp.Regexp{                       // from run to run
		regexp.MustCompile(`unix:\S+`),
		regexp.MustCompile(`\b[0-9A-Z]{26}\b|\b[0-9A-F]{20,}\b|\b[0-9a-f]{16}…`),
		regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:]+Z`),
		regexp.MustCompile(`2\d\d\d-\d\d-\d\d`),
		regexp.MustCompile(`\(the clock is[^)]*\)`),
		regexp.MustCompile(`127\.0\.0\.1:\d+`),
		regexp.MustCompile(`\d+\.\d+ s`),
	}
)

// entries are the entries of a timeline, each on a line, without what differs from run
// to run. Two parties may speak in one order or the other.
func entries(timeline string) []string {
	var all []string
	for _, e := range entryStart.Split(timeline, -1) {
		e = strings.Join(strings.Fields(e), " ")
		e = strings.ReplaceAll(e, ", \"", ",\"") // a line of JSON was broken there
		for _, d := range differing {
			e = d.ReplaceAllString(e, "#")
		}
		all = append(all, reading.ReplaceAllString(e, "$1 #"))
	}
	return all
}

// published is the nonce in the first message on topic that the broker logged.
func published(t *testing.T, brokerLog, topic string) string {
	t.Helper()
	text, err := os.ReadFile(brokerLog)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var e struct{ Event, Topic, Payload string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q in the broker's log: %v", line, err)
		}
		if e.Event == "publish" && e.Topic == topic {
			return nonceOf(t, []byte(e.Payload))
		}
	}
	t.Fatalf("the broker has logged nothing on %q:\n%s", topic, text)
	return ""
}

func nonceOf(t *testing.T, payload []byte) string {
	t.Helper()
	var reading struct{ Labels struct{ Nonce string } }
	if err := json.Unmarshal(payload, &reading); err != nil {
		t.Fatalf("telemetry %q: %v", payload, err)
	}
	return reading.Labels.Nonce
}

// TestDemoCanFail runs the demonstration with an agent that does nothing.
func TestDemoCanFail(t *testing.T) {
	report := filepath.Join(t.TempDir(), "demo.json")
	_, stderr, code := run(t, nil, birthmarkLab, "demo", "--oneshot", "--json", report, "--agent", "/bin/true")
	text, err := os.ReadFile(report)
	if code != 1 || err != nil || !strings.Contains(string(text), `"ok": false`) {
		t.Errorf("exit code %d, report %s (%v), want 1 and a report that is not ok:\n%s", code, text, err, stderr)
	}
}
