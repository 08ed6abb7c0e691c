package e2e

import (
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
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
