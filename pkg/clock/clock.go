// Package clock says when it is, on a device whose own clock may say 1970.
//
// A device without a battery-backed clock starts in the past, one with an empty
// battery anywhere; the network that could tell it the time is reached over TLS,
// whose certificates have dates. A [Clock] gets out of that circle with three
// moments:
//
//	build   when this binary was built: certainly past
//	floor   the newest moment known to be past; only ever raised, saved by the
//	        caller, never below build
//	horizon build + 15 years: a floor beyond it is a lie, whoever tells it
//
// and one bit, whether the kernel says that its clock is synchronised
// ([Clock.Trusted]). With it, certificates are verified at the present moment.
// Without it [Clock.Verify] takes the earliest moment at which a chain could have
// been used at all: the floor, or the newest notBefore in the chain. A chain that
// is not yet valid by the clock is thus accepted (the clock is wrong), and one
// that is certainly over (notAfter before the floor) is not.
//
// What this does not do: without synchronised time a certificate that expired
// after the floor cannot be told from a valid one. Nothing here deletes, or is a
// reason to delete, anything because of a date.
//
// The floor is raised by [Clock.Raise], only with dates from objects that were
// verified against pinned anchors. A Clock keeps nothing on disk: its user saves
// [Clock.Floor], at most once a day, and hands it back to [Since].
package clock

import (
	"sync"
	"time"
)

// horizonYears after the build, no date is believed without synchronised time.
const horizonYears = 15

// A Clock tells the time. It is safe for concurrent use.
type Clock struct {
	build time.Time

	// The system's clock, and whether it can be believed.
	system  func() time.Time
	trusted func() bool

	mu    sync.Mutex
	floor time.Time
}

// New returns a Clock for a binary built at build, with a floor that was saved
// earlier; zero if none was. A floor beyond the horizon is not believed.
func New(build, floor time.Time) *Clock {
	c := &Clock{build: build, floor: build, system: time.Now, trusted: synchronised}
	c.Raise(floor)
	return c
}

// Since returns a Clock for this binary with a floor that was saved earlier.
func Since(floor time.Time) *Clock { return New(Build(), floor) }

// System returns a Clock for this binary without a saved floor.
func System() *Clock { return Since(time.Time{}) }

// Fixed returns a Clock whose system clock stands still at now, believed or not.
// It is for tests, of whoever uses a Clock.
func Fixed(build, floor, now time.Time, trusted bool) *Clock {
	c := New(build, floor)
	c.system = func() time.Time { return now }
	c.trusted = func() bool { return trusted }
	return c
}

// Now is the system's time, or the floor if that is later.
func (c *Clock) Now() time.Time {
	now, floor := c.system(), c.Floor()
	if now.Before(floor) {
		return floor
	}
	return now
}

// Floor is the newest moment known to be past.
func (c *Clock) Floor() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.floor
}

// Trusted reports whether the system's clock is synchronised. It is asked anew
// each time, since that changes while the device runs.
func (c *Clock) Trusted() bool { return c.trusted() }

// Raise lifts the floor to t and reports whether it did. It does not when t is
// not above the floor, or beyond the horizon. t must come from an object that was
// verified against a pinned anchor.
func (c *Clock) Raise(t time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !t.After(c.floor) || t.After(c.horizon()) {
		return false
	}
	c.floor = t
	return true
}

func (c *Clock) horizon() time.Time { return c.build.AddDate(horizonYears, 0, 0) }
