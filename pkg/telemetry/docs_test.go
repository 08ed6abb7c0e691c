package telemetry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// manual is the page for whoever writes the receiving side.
const manual = "../../docs/telemetry.md"

// An example stands in the manual after the topic that it is said on.
var exampleText = regexp.MustCompile("(?s)on `birthmark/v1/d/dev-1/([^`]+)`:\n\n```json\n(.*?)```")

// examples are the payloads of the manual by topic, in their order.
func examples(t *testing.T) map[string][]map[string]any {
	t.Helper()
	text, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]map[string]any{}
	for _, e := range exampleText.FindAllSubmatch(text, -1) {
		var payload map[string]any
		if err := json.Unmarshal(e[2], &payload); err != nil {
			t.Fatalf("%s: the example on %s: %v", manual, e[1], err)
		}
		all[string(e[1])] = append(all[string(e[1])], payload)
	}
	return all
}

// shape says which members an object has, and of what kind.
func shape(v any) string {
	switch v := v.(type) {
	case map[string]any:
		var b bytes.Buffer
		for _, name := range slices.Sorted(maps.Keys(v)) {
			fmt.Fprintf(&b, "%s:%s ", name, shape(v[name]))
		}
		return fmt.Sprintf("{%s}", bytes.TrimSpace(b.Bytes()))
	case []any:
		var b bytes.Buffer
		for _, e := range v {
			fmt.Fprintf(&b, "%s ", shape(e))
		}
		return fmt.Sprintf("[%s]", bytes.TrimSpace(b.Bytes()))
	}
	return fmt.Sprintf("%T", v)
}

// take removes members that the agent adds to what this package says.
func take(m map[string]any, names ...string) map[string]any {
	taken := map[string]any{}
	for _, name := range names {
		if v, ok := m[name]; ok {
			taken[name] = v
			delete(m, name)
		}
	}
	return taken
}

func TestManualShowsWhatIsSaid(t *testing.T) {
	want := examples(t)
	if len(want["state"]) != 2 || len(want["tele/system"]) != 1 || len(want["evt/enrolled"]) != 1 || len(want) != 3 {
		t.Fatalf("%s has examples for %v, want two states, a reading and an event", manual, slices.Sorted(maps.Keys(want)))
	}
	birth, will, reading, event := want["state"][0], want["state"][1], want["tele/system"][0], want["evt/enrolled"][0]
	facts := take(maps.Clone(birth), "time", "agent", "fw", "cert")
	take(reading, "cert_days_left", "tpm_latency_ms", "labels")

	synctest.Test(t, func(t *testing.T) {
		b := &fakeBroker{}
		l := testLink(t, b)
		l.Facts = func() map[string]any { return facts }
		// All that an outbox can have to say.
		l.Outbox.stats = Stats{Dropped: 1, DroppedDurable: 1, Damaged: 1}
		s := Sampler{Root: machine(t, healthy())}
		payload, err := json.Marshal(s.Sample())
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Outbox.Put(Message{Topic: "tele/system", QoS: 1, Payload: payload}); err != nil {
			t.Fatal(err)
		}
		m, err := Event("dev-1", "enrolled", time.Now(), event["data"])
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Outbox.Put(m); err != nil {
			t.Fatal(err)
		}
		l.Outbox.sessionNumber() // the next one needs no disk, which would be well then
		l.Outbox.stats.Disk = "no space left on device"
		stop := running(t, l)
		stop()
		synctest.Wait()

		states := b.payloads(Topic("dev-1", stateTopic))
		for name, tc := range map[string]struct{ said, shown any }{
			"birth":        {states[0], birth},
			"goodbye":      {states[1], will},
			"tele/system":  {b.payloads(Topic("dev-1", "tele/system"))[0], reading},
			"evt/enrolled": {b.payloads(Topic("dev-1", "evt/enrolled"))[0], event},
		} {
			if said, shown := shape(tc.said), shape(tc.shown); said != shown {
				t.Errorf("%s: the device says\n%s\nand %s shows\n%s", name, said, manual, shown)
			}
		}
		var last map[string]any
		if err := json.Unmarshal(b.connects[0].WillMessage, &last); err != nil || shape(last) != shape(will) {
			t.Errorf("the last will is %s, and %s shows %s", b.connects[0].WillMessage, manual, shape(will))
		}
		said := b.payloads(Topic("dev-1", "evt/enrolled"))[0]
		for _, name := range []string{"specversion", "source", "type", "datacontenttype"} {
			if said[name] != event[name] {
				t.Errorf("the event's %s is %v, and %s shows %v", name, said[name], manual, event[name])
			}
		}
	})
}
