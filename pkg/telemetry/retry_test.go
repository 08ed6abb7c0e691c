package telemetry

import (
	"testing"
	"time"
)

// drawn tells the shortest, mean and longest of many pauses.
func drawn(pause func() time.Duration) (least, mean, most time.Duration) {
	const n = 20_000
	least = time.Hour * 1000
	var sum time.Duration
	for range n {
		d := pause()
		least, most, sum = min(least, d), max(most, d), sum+d
	}
	return least, sum / n, most
}

// near says that got is within a twentieth of span from want.
func near(got, want, span time.Duration) bool { return (got - want).Abs() <= span/20 }

func TestPausesAreSpreadOverAGrowingSpan(t *testing.T) {
	for attempt, span := range []time.Duration{
		time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second,
		64 * time.Second, 128 * time.Second, 256 * time.Second, 512 * time.Second, retryCap, retryCap, retryCap,
	} {
		least, mean, most := drawn(func() time.Duration {
			r := retry{window: time.Minute, attempt: attempt}
			return r.failed()
		})
		if !near(least, retryFloor, span) || !near(mean, retryFloor+span/2, span) || !near(most, retryFloor+span, span) || least < retryFloor {
			t.Errorf("attempt %d: pauses from %v to %v, mean %v, want an even spread over %v", attempt, least, most, mean, span)
		}
	}
}

func TestPauseNeverGoesOver(t *testing.T) {
	r := retry{window: time.Second}
	for n := range 1000 {
		if d := r.failed(); d < retryFloor || d > retryFloor+retryCap {
			t.Fatalf("pause %d is %v", n, d)
		}
	}
}

func TestFirstPauseAfterALossIsFromTheWindow(t *testing.T) {
	for _, window := range []time.Duration{5 * time.Second, time.Minute, time.Hour} {
		least, mean, most := drawn(func() time.Duration {
			r := retry{window: window, attempt: 7}
			return r.lost(stableAfter)
		})
		if !near(least, retryFloor, window) || !near(mean, retryFloor+window/2, window) || !near(most, retryFloor+window, window) {
			t.Errorf("window %v: pauses from %v to %v, mean %v, want an even spread", window, least, most, mean)
		}
	}
}

func TestOnlyAStableSessionEndsTheSeries(t *testing.T) {
	const window = 5 * time.Second
	for _, tc := range []struct {
		up   time.Duration
		span time.Duration // of the pause after the loss
		next time.Duration // of the one after a failure that follows
	}{
		{time.Second, 512 * time.Second, retryCap},
		{stableAfter - 1, 512 * time.Second, retryCap},
		{stableAfter, window, 2 * time.Second},
		{24 * time.Hour, window, 2 * time.Second},
	} {
		_, _, most := drawn(func() time.Duration {
			r := retry{window: window, attempt: 9}
			return r.lost(tc.up)
		})
		if !near(most, retryFloor+tc.span, tc.span) {
			t.Errorf("up for %v: the longest pause is %v, want %v", tc.up, most, retryFloor+tc.span)
		}
		_, _, most = drawn(func() time.Duration {
			r := retry{window: window, attempt: 9}
			r.lost(tc.up)
			return r.failed()
		})
		if !near(most, retryFloor+tc.next, tc.next) {
			t.Errorf("up for %v, then a failure: the longest pause is %v, want %v", tc.up, most, retryFloor+tc.next)
		}
	}
}
