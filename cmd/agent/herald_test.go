package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"birthmark/internal/agent"
)

// A stage is an agent and a service manager for a herald.
type stage struct {
	herald
	mu      sync.Mutex
	heard   []string
	entries chan struct{}
	hangups chan os.Signal
	stuckAt []agent.Stuck
	opened  chan struct{}
	log     strings.Builder
}

func newStage() *stage {
	s := &stage{entries: make(chan struct{}, 1), hangups: make(chan os.Signal, 1), opened: make(chan struct{})}
	s.herald = herald{
		opened: s.opened, entries: s.entries, hangups: s.hangups, watchdog: time.Minute,
		status: func() agent.Status { return agent.Status{State: "born", Live: &agent.Live{}} },
		stuck:  func() []agent.Stuck { s.mu.Lock(); defer s.mu.Unlock(); return s.stuckAt },
		reload: func(context.Context) error { return nil },
		send: func(state string) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.heard = append(s.heard, state)
			return nil
		},
	}
	s.herald.log = slog.New(slog.NewTextHandler(&s.log, nil))
	return s
}

// since is what was heard since the last time.
func (s *stage) since() string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	heard := strings.Join(s.heard, " | ")
	s.heard = nil
	return strings.ReplaceAll(heard, "\n", " ")
}

func (s *stage) expect(t *testing.T, when, want string) {
	t.Helper()
	if got := s.since(); got != want {
		t.Errorf("%s: got %q, want %q", when, got, want)
	}
}

func TestHeraldTellsTheServiceManager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		ctx, stop := context.WithCancel(t.Context())
		go s.run(ctx)
		s.expect(t, "at the start", "STATUS=born; opens the TPM")
		close(s.opened)
		s.expect(t, "with the TPM open", "READY=1")
		time.Sleep(61 * time.Second)
		s.expect(t, "after a minute", "WATCHDOG=1 | WATCHDOG=1")
		s.status = func() agent.Status {
			return agent.Status{State: "operational", Live: &agent.Live{Broker: agent.BrokerStatus{Up: true}, TPM: agent.TPMStatus{Open: true}},
				Owner: &agent.Certificate{NotAfter: time.Date(2027, 2, 23, 0, 0, 0, 0, time.UTC)}}
		}
		s.entries <- struct{}{}
		time.Sleep(time.Second)
		s.expect(t, "after an entry of the log", "STATUS=operational; session with the broker; certificate until 2027-02-23")
		s.entries <- struct{}{}
		time.Sleep(time.Second)
		s.expect(t, "after one that changed nothing", "")
		stop()
		s.expect(t, "at the end", "STOPPING=1 STATUS=stopping")
	})
}

func TestADeviceWithoutATPMIsReadyLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.watchdog = 0
		go s.run(t.Context())
		time.Sleep(readyPatience - time.Second)
		s.expect(t, "before the patience ends", "STATUS=born; opens the TPM")
		s.hangups <- os.Interrupt
		s.expect(t, "after a reload that comes too early", "")
		time.Sleep(2 * time.Second)
		s.expect(t, "afterwards", "READY=1")
		close(s.opened)
		s.expect(t, "when the TPM comes", "")
	})
}

func TestAStuckPartStopsTheWatchdogsPings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		ctx, stop := context.WithCancel(t.Context())
		go s.run(ctx)
		close(s.opened)
		time.Sleep(31 * time.Second)
		s.expect(t, "in health", "STATUS=born; opens the TPM | READY=1 | WATCHDOG=1")
		s.mu.Lock()
		s.stuckAt = []agent.Stuck{{Part: "link", For: 3 * time.Second}}
		s.mu.Unlock()
		time.Sleep(2 * time.Minute)
		s.expect(t, "with a stuck part", "")
		stop()
		synctest.Wait()
		if log := s.log.String(); strings.Count(log, "a part of the agent is stuck") != 1 || !strings.Contains(log, "part=link late=3s") {
			t.Errorf("the log says %q, want once that the link is late by 3s", log)
		}
	})
}

func TestAReloadIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		ctx, stop := context.WithCancel(t.Context())
		close(s.opened)
		go s.run(ctx)
		s.since()
		for _, err := range []error{nil, errors.New("no such setting")} {
			s.reload = func(context.Context) error { return err }
			s.hangups <- os.Interrupt
			got := s.since()
			if !strings.HasPrefix(got, "RELOADING=1 MONOTONIC_USEC=") || !strings.HasSuffix(got, " | READY=1") {
				t.Errorf("with the outcome %v: got %q, want RELOADING=1 with a time, then READY=1", err, got)
			}
		}
		stop()
		synctest.Wait()
		if log := s.log.String(); !strings.Contains(log, "configuration reloaded") || !strings.Contains(log, `configuration refused" err="no such setting"`) {
			t.Errorf("the log does not tell both outcomes:\n%s", log)
		}
	})
}

func TestAServiceManagerThatDoesNotListenIsSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.send = func(string) error { return errors.New("connection refused") }
		ctx, stop := context.WithCancel(t.Context())
		go s.run(ctx)
		time.Sleep(time.Hour)
		stop()
		synctest.Wait()
		if n := strings.Count(s.log.String(), "cannot tell the service manager"); n != 1 {
			t.Errorf("said %d times, want once", n)
		}
	})
}
