package e2e

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// demoLimit is for a demonstration, which takes a quarter of a minute when all is well.
const demoLimit = 4 * time.Minute

// demonstrate runs a demonstration that has to go well.
func demonstrate(t *testing.T, env []string, args ...string) (printed string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), demoLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, birthmarkLab, append([]string{"demo", "--oneshot"}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	text, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the demonstration: %v\n%s", err, text)
	}
	return string(text)
}

// TestDemo runs the demonstration and holds its report against the broker's own
// log: the telemetry in both carries a nonce that this test chose, and the owner was told
// how both updates ended.
func TestDemo(t *testing.T) {
	dir, tmp := t.TempDir(), t.TempDir()
	report, brokerLog := filepath.Join(dir, "demo.json"), filepath.Join(dir, "broker.log")
	nonce := rand.Text()
	printed := demonstrate(t, []string{"TMPDIR=" + tmp}, "--json", report, "--broker-log", brokerLog, "--nonce", nonce)
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
	reasons := []string{"container: ", "chain: ", "policy: ", "payload: ", "", "", ""}
	if !said.OK || len(said.Refusals) != len(reasons) {
		t.Fatalf("the report says ok %t and %d refusals, want true and %d", said.OK, len(said.Refusals), len(reasons))
	}
	for i, r := range said.Refusals {
		if want := "birthmark: " + reasons[i]; r.Exit != 1 || !strings.HasPrefix(r.Said, want) || r.Said == want {
			t.Errorf("refusal %d ended with exit code %d and %q, want 1 and a reason, %s", i+1, r.Exit, r.Said, want)
		}
	}
	ends := endsOfUpdates(t, brokerLog)
	want := []string{"1.1.0+sv2 installed", "1.1.1+sv2 failed", "1.2.0+sv2 rolled-back: check 10-pump: exit status 1: the pump does not answer"}
	if len(ends) != len(want) || ends[0] != want[0] || !strings.HasPrefix(ends[1], want[1]) || ends[2] != want[2] {
		t.Errorf("the broker logged these ends of updates: %q, want %q", ends, want)
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
	printed := demonstrate(t, nil)
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
		regexp.MustCompile(`\d+ %, \d+ of \d+ bytes`),
		regexp.MustCompile(`\b\d+ bytes`),
		regexp.MustCompile(`\b[0-9A-Z]{26}\b|\b[0-9A-F]{20,}\b|\b[0-9a-f]{16}…`),
		regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:]+Z`),
		regexp.MustCompile(`2\d\d\d-\d\d-\d\d`),
		regexp.MustCompile(`\(the clock is[^)]*\)`),
		regexp.MustCompile(`127\.0\.0\.1:\d+`),
		regexp.MustCompile(`\d+\.\d+ s`),
		regexp.MustCompile(`block \d+`),
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

// endsOfUpdates are the ends of updates that the broker logged.
func endsOfUpdates(t *testing.T, brokerLog string) (ends []string) {
	t.Helper()
	for _, e := range journal(t, brokerLog) {
		var event struct {
			Data struct {
				Phase, Version, Outcome string
				Why                     struct{ Reason string }
			}
		}
		if e.Event != "publish" || !strings.HasSuffix(e.Topic, "/evt/firmware") {
			continue
		}
		if err := json.Unmarshal([]byte(e.Payload), &event); err != nil {
			t.Fatalf("the broker logged %q: %v", e.Payload, err)
		}
		if d := event.Data; d.Phase == "settled" {
			end := d.Version + " " + d.Outcome
			if d.Why.Reason != "" {
				end += ": " + d.Why.Reason
			}
			ends = append(ends, end)
		}
	}
	return ends
}

// A logEntry is what the broker has logged.
type logEntry struct{ Event, Topic, Payload string }

func journal(t *testing.T, brokerLog string) (all []logEntry) {
	t.Helper()
	text, err := os.ReadFile(brokerLog)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var e logEntry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q in the broker's log: %v", line, err)
		}
		all = append(all, e)
	}
	return all
}

// published is the nonce in the first message on topic that the broker logged.
func published(t *testing.T, brokerLog, topic string) string {
	t.Helper()
	all := journal(t, brokerLog)
	for _, e := range all {
		if e.Event == "publish" && e.Topic == topic {
			return nonceOf(t, []byte(e.Payload))
		}
	}
	t.Fatalf("the broker has logged nothing on %q: %v", topic, all)
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
