package telemetry

import (
	"encoding/json"
	"testing"
	"time"
)

func TestEventIsACloudEvent(t *testing.T) {
	now := time.Date(2027, 3, 1, 13, 0, 0, 0, time.FixedZone("CET", 3600))
	m, err := Event("dev-1", "enrolled", now, map[string]any{"serial": "0a"})
	if err != nil {
		t.Fatal(err)
	}
	if m.Topic != "evt/enrolled" || m.QoS != 1 || !m.Durable {
		t.Errorf("message on %s, QoS %d, durable %t: want evt/enrolled, 1, true", m.Topic, m.QoS, m.Durable)
	}
	var got map[string]any
	if err := json.Unmarshal(m.Payload, &got); err != nil {
		t.Fatal(err)
	}
	// CloudEvents 1.0 section 3.1: these four are required, id is not empty.
	for name, want := range map[string]string{
		"specversion": "1.0", "source": "/birthmark/v1/d/dev-1", "type": "birthmark.enrolled", "time": "2027-03-01T12:00:00Z",
		"datacontenttype": "application/json",
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %s", name, got[name], want)
		}
	}
	if got["data"].(map[string]any)["serial"] != "0a" {
		t.Errorf("data is %v", got["data"])
	}
	again, err := Event("dev-1", "enrolled", now, nil)
	if err != nil {
		t.Fatal(err)
	}
	var other map[string]any
	if err := json.Unmarshal(again.Payload, &other); err != nil {
		t.Fatal(err)
	}
	if id, _ := got["id"].(string); id == "" || id == other["id"] {
		t.Errorf("ids %v and %v: want two that differ", got["id"], other["id"])
	}
	if err := testOutbox(t).Put(m); err != nil {
		t.Errorf("an outbox does not take it: %v", err)
	}
	if _, err := Event("dev-1", "enrolled", now, make(chan int)); err == nil {
		t.Error("data that JSON cannot say was accepted")
	}
}
