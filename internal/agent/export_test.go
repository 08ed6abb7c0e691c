package agent

import (
	"context"
	"strings"

	"birthmark/pkg/rot"
)

// Effects are the names of all outside effects.
var Effects = append([]string{"store: write"}, effects...)

// SetCut lets cut see both sides of every write of the state file and of every
// outside effect.
func (a *Agent) SetCut(cut func(where string)) {
	a.cut = cut
	a.store.Cut = func(where string) { cut(strings.Replace(where, "write", "store: write", 1)) }
}

// FailOpen lets the next n tries to reach the root of trust fail with err.
func (a *Agent) FailOpen(n int, err error) {
	open := a.open
	a.open = func(ctx context.Context, known rot.Identity) (rot.Root, error) {
		if n--; n >= 0 {
			return nil, err
		}
		return open(ctx, known)
	}
}

// Die lets go of what a dead process does not hold either, and saves nothing.
func (a *Agent) Die() { a.store.Close() }

// KeepTextfile is what Run does with the setting metrics.textfile.
func (a *Agent) KeepTextfile(ctx context.Context, path string) { a.keepTextfile(ctx, path) }

// GuestNames and GuestBytes are the room that local programs have.
const (
	GuestNames = guestNames
	GuestBytes = guestBytes
)
