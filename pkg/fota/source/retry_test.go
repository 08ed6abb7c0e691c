package source

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Every pause is drawn from the whole of a span that doubles up to 30 seconds.
func TestPausesAreDrawnFromAGrowingSpan(t *testing.T) {
	for tries, span := range []time.Duration{1: time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second} {
		if tries == 0 {
			continue
		}
		var drawn []time.Duration
		for range 1000 {
			drawn = append(drawn, pause(tries))
		}
		low, high := slices.Min(drawn), slices.Max(drawn)
		if low < 0 || low > span/50 || high >= span || high < span*49/50 {
			t.Errorf("after %d tries: got pauses from %v to %v, want 0 to %v", tries, low, high, span)
		}
	}
}

func TestAServerThatAsksToWaitIsLeftAlone(t *testing.T) {
	for _, tc := range []struct {
		name  string
		after string
		date  string // of the server; "": as it is
		want  time.Duration
		asked int64
	}{
		{"for a minute", "60", "", time.Minute, triesMost},
		{"for more than we wait ourselves", "61", "", 61 * time.Second, 1},
		{"for a year", "31536000", "", 24 * time.Hour, 1},
		{"for more seconds than there are", "99999999999999999999999", "", 24 * time.Hour, 1},
		{"until an hour from its now", "Wed, 25 Nov 2026 10:00:00 GMT", "Wed, 25 Nov 2026 09:00:00 GMT", time.Hour, 1},
		{"until an hour before its now", "Wed, 25 Nov 2026 08:00:00 GMT", "Wed, 25 Nov 2026 09:00:00 GMT", 0, triesMost},
		{"until an hour from a now that cannot be read", "Wed, 25 Nov 2026 10:00:00 GMT", "today", 0, triesMost},
		{"for less than nothing", "-99999999999999999999999", "", 0, triesMost},
		{"for nothing that can be read", "soon", "", 0, triesMost},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked atomic.Int64
				var last, least time.Duration = 0, time.Hour
				start := time.Now()
				_, opts := serve(t, func(w http.ResponseWriter, r *http.Request) {
					if since := time.Since(start); asked.Add(1) > 1 {
						least = min(least, since-last)
						last = since
					}
					w.Header().Set("Retry-After", tc.after)
					if tc.date != "" {
						w.Header().Set("Date", tc.date)
					}
					w.WriteHeader(http.StatusServiceUnavailable)
				})
				_, err := HTTP(t.Context(), address, opts)
				var unavailable *UnavailableError
				if !errors.As(err, &unavailable) || unavailable.RetryAfter != tc.want {
					t.Errorf("got %v and %v to wait, want %v", err, unavailable, tc.want)
				}
				if n := asked.Load(); n != tc.asked {
					t.Errorf("got %d requests, want %d", n, tc.asked)
				}
				if tc.asked > 1 && least < tc.want {
					t.Errorf("asked again after %v, want %v at least", least, tc.want)
				}
			})
		})
	}
}

func TestASourceThatWasUnavailableIsReadOnLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		good := file(released)
		_, opts := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if down.Load() {
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			good(w, r)
		})
		r := mustOpen(t, opts)
		down.Store(true)
		if _, err := sum(r, 4096); kind(err) != "unavailable" {
			t.Fatalf("got %v, want an UnavailableError", err)
		}
		down.Store(false)
		got, err := sum(r, 4096)
		if want := sha256.Sum256(released); err != nil || got != want {
			t.Errorf("got %x and error %v, want %x", got, err, want)
		}
	})
}

// Each row is a place at which a reader may be when the source ends.
func TestASourceEndsWhereverItIs(t *testing.T) {
	good := file(released)
	// The first 64 KiB are asked for when the file is opened.
	later := func(otherwise http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if partFor(r).first == 0 {
				good(w, r)
				return
			}
			otherwise(w, r)
		}
	}
	for _, tc := range []struct {
		name   string
		server http.HandlerFunc
		rate   int64
	}{
		{"waiting for an answer", later(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), 0},
		{"waiting for the next byte", later(slow(1000, time.Hour)), 0},
		{"in the pause before the next try", later(answer(503, "Retry-After", "60")), 0},
		{"waiting for what it may take", good, 10 << 10},
	} {
		for _, end := range []string{"with its context", "by Close"} {
			t.Run(tc.name+", "+end, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					_, opts := serve(t, tc.server)
					opts.BytesPerSecond = tc.rate
					ctx, cancel := context.WithCancelCause(t.Context())
					defer cancel(nil)
					r, err := HTTP(ctx, address, opts)
					if err != nil {
						t.Fatal(err)
					}
					done := make(chan error)
					go func() {
						_, err := sum(r, 4096)
						done <- err
					}()
					time.Sleep(10 * time.Second)
					synctest.Wait()
					start, why := time.Now(), errors.New("the device goes down")
					if end == "by Close" {
						why = os.ErrClosed
						r.Close()
					} else {
						cancel(why)
					}
					if err := <-done; !errors.Is(err, why) || kind(err) != "final" {
						t.Errorf("got %v, want %v", err, why)
					}
					if took := time.Since(start); took > 0 {
						t.Errorf("it took %v, want no time", took)
					}
					r.Close()
					if _, err := r.ReadAt(make([]byte, 1), 0); !errors.Is(err, why) {
						t.Errorf("after Close: got %v, want %v", err, why)
					}
				})
			})
		}
	}
}

func TestBytesComeNoFasterThanAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, opts := serve(t, file(released))
		opts.BytesPerSecond = 100_000
		start := time.Now()
		r := mustOpen(t, opts)
		got, err := sum(r, 4096)
		if want := sha256.Sum256(released); err != nil || got != want {
			t.Fatalf("got %x and error %v, want %x", got, err, want)
		}
		// The first second's worth is there at once.
		if took, want := time.Since(start).Seconds(), float64(len(released))/100_000-1; took < want || took > want+0.1 {
			t.Errorf("it took %.2f s, want %.2f", took, want)
		}
	})
}

func TestAnAllowanceHoldsASecondsWorth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := allowance{rate: 1000}
		took := func(n int) time.Duration {
			start := time.Now()
			if err := a.take(t.Context(), n); err != nil {
				t.Fatal(err)
			}
			return time.Since(start)
		}
		for _, step := range []struct {
			idle time.Duration
			n    int
			want time.Duration
		}{
			{0, 1000, 0},
			{0, 500, 500 * time.Millisecond},
			{250 * time.Millisecond, 250, 0},
			{time.Hour, 1000, 0},
			{0, 1, time.Millisecond},
			{0, 16 << 10, 16384 * time.Millisecond},
		} {
			time.Sleep(step.idle)
			if got := took(step.n); got != step.want {
				t.Errorf("%d bytes after %v: got a wait of %v, want %v", step.n, step.idle, got, step.want)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := a.take(ctx, 1<<20); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want a wait that ends with its context", err)
		}
	})
}

func TestErrorsFitALineOfALog(t *testing.T) {
	err := (&UnavailableError{Err: errors.New("said: \x1b[2J\u202e\n" + strings.Repeat("x", 1000))}).Error()
	if want := "the server is not available: said:  [2J  xxx"; !strings.HasPrefix(err, want) || len([]rune(err)) != lineLimit {
		t.Errorf("got %q of %d characters, want %q… of %d", err, len([]rune(err)), want, lineLimit)
	}
}
