package telemetry

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	retryFloor  = time.Second      // no pause is shorter: some brokers punish it
	retryBase   = time.Second      // span of the first pause
	retryCap    = 10 * time.Minute // span of the longest one
	stableAfter = 5 * time.Minute  // a session that held this long ends the series

	defaultWindow = time.Minute

	cloneCount = 3               // sessions lost to somebody, it seems
	cloneSpan  = 5 * time.Minute // in a row within this
	clonePause = 5 * time.Minute // then no pause is shorter, nor twice as long
	cloneOver  = time.Hour       // until a session held this long
)

// A retry says how long to wait before the next connection.
//
// Pauses are drawn anew from a growing span ("full jitter"), so a fleet that lost
// its broker in one moment does not come back in one moment: a million devices
// ask 2N/T = 3,400 times a second, T being retryCap, and not a million times. The
// first pause after a lost connection is drawn from window, since that is when all
// of them start. A session that was soon lost again does not end the series: a
// broker that accepts and drops is met ever more slowly.
//
// A broker hangs up on a client when another comes with its id (MQTT 3.1.1 section
// 3.1.4). Two devices with one identity would do that to each other for ever, so one
// that was hung up on cloneCount times suspects a clone, and comes back rarely.
type retry struct {
	window  time.Duration
	attempt int // pauses since the last stable session

	hangups []time.Time // the newest ones, less than cloneCount
	clone   bool        // is suspected
}

// suspect notes how a session that held for up ended, and says whether a clone is
// suspected since just now.
func (r *retry) suspect(up time.Duration, hungUp bool) bool {
	if up >= stableAfter {
		r.hangups = nil
	}
	if up >= cloneOver {
		r.clone = false
	}
	if !hungUp || r.clone {
		return false
	}
	r.hangups = append(r.hangups, time.Now())
	if len(r.hangups) < cloneCount {
		return false
	}
	// Each of the two may take a pause before it comes back.
	r.clone = time.Since(r.hangups[0]) <= max(cloneSpan, 2*(cloneCount-1)*r.window)
	r.hangups = r.hangups[1:]
	return r.clone
}

// failed is the pause after an attempt that led to no session.
func (r *retry) failed() time.Duration { return r.pause(r.span()) }

// lost is the pause after a session that held for up.
func (r *retry) lost(up time.Duration) time.Duration {
	if up >= stableAfter {
		r.attempt = 0
	}
	return r.pause(max(r.window, r.span()))
}

// span grows with every attempt.
func (r *retry) span() time.Duration {
	return min(retryBase<<min(r.attempt, 30), retryCap)
}

func (r *retry) pause(span time.Duration) time.Duration {
	r.attempt++
	if r.clone {
		return clonePause + rand.N(clonePause)
	}
	return retryFloor + rand.N(span)
}

// sleep waits for d and says whether it was left to.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
