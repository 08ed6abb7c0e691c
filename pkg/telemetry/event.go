package telemetry

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"time"
)

// Event is a durable message on evt/KIND: a CloudEvent 1.0 in structured JSON, from
// the device with that id. kind is a word such as "renewed"; data is what there is
// to say about it, as JSON can say it. The event's own id is random: an event that
// is put twice is two events.
func Event(id, kind string, now time.Time, data any) (Message, error) {
	payload, err := json.Marshal(struct {
		SpecVersion string `json:"specversion"`
		ID          string `json:"id"`
		Source      string `json:"source"`
		Type        string `json:"type"`
		Time        string `json:"time"`
		ContentType string `json:"datacontenttype"`
		Data        any    `json:"data"`
	}{"1.0", rand.Text(), "/" + root + "/d/" + id, "birthmark." + kind, now.UTC().Format(time.RFC3339), "application/json", data})
	if err != nil {
		return Message{}, fmt.Errorf("cannot make an event: %w", err)
	}
	return Message{Topic: "evt/" + kind, QoS: 1, Payload: payload, Durable: true}, nil
}
