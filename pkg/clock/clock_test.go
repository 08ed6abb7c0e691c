package clock

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var (
	build = time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)
	day   = 24 * time.Hour
)

// clocks are what the system's clock of a device may say at boot.
var clocks = []struct {
	name string
	now  time.Time
}{
	{"1970", time.Unix(0, 0)},
	{"2000", time.Date(2000, time.January, 1, 0, 0, 0, 0, time.UTC)},
	{"build - 1 day", build.Add(-day)},
	{"now", build.AddDate(1, 0, 0)},
	{"now + 20 years", build.AddDate(21, 0, 0)},
	{"2038", time.Unix(1<<31, 0)},
	{"2106", time.Unix(1<<32, 0)},
	{"9999", time.Date(9999, time.December, 31, 23, 59, 59, 0, time.UTC)},
}

func TestNowIsNeverBelowTheFloor(t *testing.T) {
	floor := build.AddDate(0, 2, 0)
	for _, tc := range clocks {
		c := Fixed(build, floor, tc.now, false)
		want := tc.now
		if want.Before(floor) {
			want = floor
		}
		if got := c.Now(); !got.Equal(want) {
			t.Errorf("clock says %s: Now is %v, want %v", tc.name, got, want)
		}
	}
}

func TestNewBelievesASavedFloorWithinReason(t *testing.T) {
	horizon := build.AddDate(15, 0, 0)
	for _, tc := range []struct {
		name        string
		saved, want time.Time
	}{
		{"none", time.Time{}, build},
		{"1970", time.Unix(0, 0), build},
		{"below the build", build.Add(-time.Second), build},
		{"above the build", build.Add(day), build.Add(day)},
		{"the horizon", horizon, horizon},
		{"beyond the horizon", horizon.Add(time.Second), build},
		{"9999", clocks[len(clocks)-1].now, build},
	} {
		if got := New(build, tc.saved).Floor(); !got.Equal(tc.want) {
			t.Errorf("saved floor %s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestRaiseOnlyUpAndOnlyToTheHorizon(t *testing.T) {
	c := New(build, time.Time{})
	for _, tc := range []struct {
		name   string
		to     time.Time
		raised bool
		floor  time.Time
	}{
		{"down", build.Add(-day), false, build},
		{"to where it is", build, false, build},
		{"up", build.Add(2 * day), true, build.Add(2 * day)},
		{"half way down again", build.Add(day), false, build.Add(2 * day)},
		{"beyond the horizon", build.AddDate(15, 0, 1), false, build.Add(2 * day)},
		{"to the horizon", build.AddDate(15, 0, 0), true, build.AddDate(15, 0, 0)},
	} {
		if got := c.Raise(tc.to); got != tc.raised {
			t.Errorf("raise %s: got %v, want %v", tc.name, got, tc.raised)
		}
		if got := c.Floor(); !got.Equal(tc.floor) {
			t.Errorf("after raise %s: floor %v, want %v", tc.name, got, tc.floor)
		}
	}
}

func TestRaiseFromManyAtOnceKeepsTheHighest(t *testing.T) {
	c := New(build, time.Time{})
	var all sync.WaitGroup
	for n := range 50 {
		all.Go(func() {
			c.Raise(build.Add(time.Duration(n) * time.Hour))
			c.Now()
		})
	}
	all.Wait()
	if got, want := c.Floor(), build.Add(49*time.Hour); !got.Equal(want) {
		t.Errorf("floor %v, want %v", got, want)
	}
}

// A clock that jumps while the agent runs moves Now with it, but never below the
// floor.
func TestNowFollowsTheSystem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // its clock starts in 2000
		c := New(time.Now().Add(day), time.Time{})
		if got, want := c.Now(), time.Now().Add(day); !got.Equal(want) {
			t.Errorf("before the floor: %v, want the floor, %v", got, want)
		}
		<-time.After(3 * day)
		if got := c.Now(); !got.Equal(time.Now()) {
			t.Errorf("after the floor: %v, want the system's %v", got, time.Now())
		}
	})
}

func TestBuildTime(t *testing.T) {
	const commit = "2027-01-02T03:04:05Z"
	for _, tc := range []struct{ name, linker, commit, want string }{
		{"neither", "", "", "2026-11-24T00:00:00Z"},
		{"the linker was told", "1893456000", commit, "2030-01-01T00:00:00Z"},
		{"only the commit is known", "", commit, commit},
		{"the linker was told rubbish", "yesterday", commit, commit},
		{"the linker was told 1970", "0", "", "2026-11-24T00:00:00Z"},
		{"a commit of 1999", "", "1999-01-01T00:00:00Z", "2026-11-24T00:00:00Z"},
		{"a commit without a date", "", "HEAD", "2026-11-24T00:00:00Z"},
	} {
		if got := builtAt(tc.linker, tc.commit).Format(time.RFC3339); got != tc.want {
			t.Errorf("%s: built at %s, want %s", tc.name, got, tc.want)
		}
	}
	if got := System().Floor(); !got.Equal(Build()) || got.Before(written) {
		t.Errorf("the floor of a new clock is %v, want the build, %v", got, Build())
	}
}

// The answer depends on the machine; that asking works and changes nothing does
// not.
func TestTrustedAsksTheKernel(t *testing.T) {
	c := System()
	if first, second := c.Trusted(), c.Trusted(); first != second {
		t.Errorf("two answers within a moment: %t, then %t", first, second)
	}
}
