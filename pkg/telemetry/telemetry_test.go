package telemetry

import (
	"strings"
	"testing"
)

// TestTopicsOfMessages tells what can be a message's topic from what a broker could
// take for something else.
func TestTopicsOfMessages(t *testing.T) {
	longest := strings.Repeat("x", 64)
	for topic, want := range map[string]bool{
		"tele/system":                     true,
		"evt/Renewal-failing_2.x":         true,
		"res/ping/c1":                     true,
		"tele/" + longest:                 true,
		"res/" + longest + "/" + longest:  true,
		"":                                false,
		"tele":                            false,
		"tele/":                           false,
		"tele/a/b":                        false,
		"evt/a/":                          false,
		"res/ping":                        false,
		"res/ping/":                       false,
		"res//c1":                         false,
		"res/ping/c1/d":                   false,
		"state":                           false,
		"cmd/ping/c1":                     false,
		"/tele/a":                         false,
		"tele/+":                          false,
		"tele/#":                          false,
		"tele/a b":                        false,
		"tele/ä":                          false,
		"tele/a\n":                        false,
		"tele/" + longest + "x":           false,
		"res/" + longest + "x/c1":         false,
		"TELE/a":                          false,
		"res/ping/$share":                 false,
		"evt/" + strings.Repeat("x", 1e5): false,
	} {
		if got := isTopic(topic); got != want {
			t.Errorf("%.80q: got %t, want %t", topic, got, want)
		}
	}
}
