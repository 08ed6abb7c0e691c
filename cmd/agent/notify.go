package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"birthmark/internal/agent"
)

const (
	// readyPatience is how long the TPM is waited for before the agent says that it is
	// ready: a device without one must come up too, if only to be looked at.
	readyPatience = 20 * time.Second
	statusEvery   = 30 * time.Second       // the status is looked at this often, or
	settleLimit   = 100 * time.Millisecond // this long after an entry of the log
	reloadLimit   = 10 * time.Second       // for the loop to take up a configuration
)

// errBusy is why a good configuration is not taken up.
var errBusy = errors.New("what the agent does at the moment cannot be given up")

// A herald tells the service manager how the agent is (sd_notify(3)), and pings its
// watchdog while no part of the agent is stuck. Without a service manager it only
// reloads.
type herald struct {
	log    *slog.Logger
	opened <-chan struct{} // closed when the TPM is open
	status func() agent.Status
	stuck  func() []agent.Stuck
	reload func(context.Context) error

	send     func(state string) error // to the service manager
	watchdog time.Duration            // it wants a ping within that time; 0: never
	entries  <-chan struct{}          // something was logged
	hangups  <-chan os.Signal         // a reload is asked for

	told string // the status that was last sent
	said string // the parts that are stuck, as they were last logged
	mute bool   // the service manager does not listen; said
}

// watchdogInterval is what $WATCHDOG_USEC says to this process.
func watchdogInterval(log *slog.Logger) time.Duration {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("the service manager's watchdog is not served", "err", err)
	}
	return interval
}

// sdNotify sends state to the service manager, if there is one.
func sdNotify(state string) error {
	_, err := daemon.SdNotify(false, state)
	return err
}

// run tells how the agent is until ctx ends.
func (h *herald) run(ctx context.Context) {
	every := statusEvery
	if h.watchdog > 0 {
		every = min(every, h.watchdog/2)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	opened, patience := h.opened, time.After(readyPatience) // nil once it is ready
	var settled <-chan time.Time
	h.look("")
	for {
		select {
		case <-opened:
			opened, patience = nil, nil
			h.look("READY=1")
		case <-patience:
			opened, patience = nil, nil
			h.look("READY=1")
		case <-tick.C:
			h.ping()
			h.look("")
		case <-h.entries:
			if settled == nil { // what is logged is about to be true
				settled = time.After(settleLimit)
			}
		case <-settled:
			settled = nil
			h.look("")
		case <-h.hangups:
			if opened != nil { // READY=1 would say too much
				h.takeUp(ctx)
			} else {
				h.reloading(ctx)
			}
		case <-ctx.Done():
			h.notify("STOPPING=1\nSTATUS=stopping")
			return
		}
	}
}

// look sends state, and the status if it is another one.
func (h *herald) look(state string) {
	status := statusLine(h.status())
	lines := []string{}
	if state != "" {
		lines = append(lines, state)
	}
	if status != h.told {
		lines = append(lines, "STATUS="+status)
		h.told = status
	}
	if len(lines) > 0 {
		h.notify(strings.Join(lines, "\n"))
	}
}

// ping keeps the watchdog quiet unless a part is stuck. Which one is said once; the
// service manager then starts the agent anew.
func (h *herald) ping() {
	stuck := h.stuck()
	var parts []string
	for _, s := range stuck {
		parts = append(parts, s.Part)
	}
	names := strings.Join(parts, ",")
	if names != h.said {
		for _, s := range stuck {
			h.log.Error("a part of the agent is stuck", "part", s.Part, "late", s.For.Round(time.Second/10))
		}
		h.said = names
	}
	if len(stuck) == 0 && h.watchdog > 0 {
		h.notify("WATCHDOG=1")
	}
}

// reloading tells that the configuration is read again.
func (h *herald) reloading(ctx context.Context) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		h.log.Error("cannot read the clock", "err", err)
	}
	h.notify(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
	h.takeUp(ctx)
	h.notify("READY=1")
}

// takeUp reads the configuration again. One that is refused leaves the old one in
// force.
func (h *herald) takeUp(ctx context.Context) {
	ctx, cancel := context.WithTimeoutCause(ctx, reloadLimit, errBusy)
	defer cancel()
	if err := h.reload(ctx); err != nil {
		h.log.Error("configuration refused", "err", err)
		return
	}
	h.log.Info("configuration reloaded")
}

// notify sends state. That the service manager does not listen is said once.
func (h *herald) notify(state string) {
	err := h.send(state)
	if err != nil && !h.mute {
		h.log.Warn("cannot tell the service manager", "err", err)
	}
	h.mute = err != nil
}

// statusLine is how a device is, on one line for people.
func statusLine(s agent.Status) string {
	parts := []string{s.State}
	live := s.Live
	switch {
	case live.Retry != nil:
		parts = append(parts, fmt.Sprintf("tries again at %s: %s", live.Retry.At.UTC().Format("15:04:05Z"), live.Retry.Error))
	case live.TPM.Error != "":
		parts = append(parts, "no TPM: "+live.TPM.Error)
	case !live.TPM.Open:
		parts = append(parts, "opens the TPM")
	case live.Broker.Up:
		parts = append(parts, "session with the broker")
	case live.Broker.Attempts > 0:
		parts = append(parts, "no session with the broker")
	}
	if s.Owner != nil {
		parts = append(parts, "certificate until "+s.Owner.NotAfter.UTC().Format(time.DateOnly))
	}
	return agent.Printable(strings.Join(parts, "; "))
}

// A waker is a log that says that there was an entry.
type waker struct {
	slog.Handler
	entries chan<- struct{}
}

func (w waker) Handle(ctx context.Context, rec slog.Record) error {
	select {
	case w.entries <- struct{}{}:
	default: // the one before was not looked at yet
	}
	return w.Handler.Handle(ctx, rec)
}

func (w waker) WithAttrs(attrs []slog.Attr) slog.Handler {
	return waker{w.Handler.WithAttrs(attrs), w.entries}
}

func (w waker) WithGroup(name string) slog.Handler {
	return waker{w.Handler.WithGroup(name), w.entries}
}
