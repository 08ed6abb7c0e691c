package telemetry

import (
	"maps"
	"slices"
	"strings"
)

// Online says whether a Link has a session with a broker.
func (o *Outbox) Online() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.offLine
}

// Streams are the names of all streams that begin with prefix, sorted. A stream is
// never forgotten, and there can be 64 of them: who lets others choose the names of
// messages counts them first.
func (o *Outbox) Streams(prefix string) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := slices.Sorted(maps.Keys(o.streams))
	return slices.DeleteFunc(all, func(name string) bool { return !strings.HasPrefix(name, prefix) })
}
