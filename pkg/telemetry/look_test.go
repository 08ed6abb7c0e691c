package telemetry

import (
	"slices"
	"testing"
)

func TestStreamsAreKnownAfterARestart(t *testing.T) {
	dir := t.TempDir()
	o := mustOutbox(t, dir, Limits{})
	for _, topic := range []string{"tele/b", "evt/a", "tele/a", "res/x/1", "tele/b"} {
		if err := o.Put(Message{Topic: topic, QoS: 1, Payload: []byte(`{}`)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	o = mustOutbox(t, dir, Limits{})
	if got, want := o.Streams("tele/"), []string{"tele/a", "tele/b"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestOnlineIsFromSessionToSession(t *testing.T) {
	o := mustOutbox(t, t.TempDir(), Limits{})
	for _, tc := range []struct {
		when   string
		happen func()
		want   bool
	}{{"at first", func() {}, false}, {"in a session", o.online, true}, {"after it", o.offline, false}} {
		tc.happen()
		if got := o.Online(); got != tc.want {
			t.Errorf("%s: online %t, want %t", tc.when, got, tc.want)
		}
	}
}
