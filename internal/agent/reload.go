package agent

import (
	"context"
	"fmt"

	"birthmark/internal/config"
)

// A reload is a configuration on its way to the loop; the lock of live guards it.
type reload struct {
	next  *config.Config     // nil when there is none
	taken chan struct{}      // closed when the loop goes by next
	end   context.CancelFunc // of the present term; nil before Run
}

// Reload lets Run go on with another configuration, in which [config.Loaded.Check]
// has found nothing. The step at work is given up, a session with the broker left in
// good order, and the step begun anew. Reload returns when Run goes by cfg; when ctx
// ends before, Run stays with what it has.
//
// What a device is cannot change under its agent: cfg is refused as a whole when it
// has another section [device], tpm.address or doors.folder.
func (a *Agent) Reload(ctx context.Context, cfg *config.Config) error {
	switch now := a.started; {
	case cfg.Device != now.Device:
		return errRestart("[device]")
	case cfg.TPM.Address != now.TPM.Address:
		return errRestart("tpm.address")
	case cfg.Doors != now.Doors:
		return errRestart("[doors]")
	}
	select {
	case <-a.live.hand(cfg):
		return nil
	case <-ctx.Done():
		if a.live.takeBack(cfg) {
			return context.Cause(ctx)
		}
		return nil
	}
}

func errRestart(what string) error {
	return fmt.Errorf("%s is not the one that this agent was started with, and needs a restart", what)
}

// hand leaves cfg for the loop, in place of one that was not taken up yet.
func (l *live) hand(cfg *config.Config) (taken <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reload.next, l.reload.taken = cfg, make(chan struct{})
	if l.reload.end != nil {
		l.reload.end()
	}
	return l.reload.taken
}

// takeBack reports whether cfg was still there.
func (l *live) takeBack(cfg *config.Config) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	there := l.reload.next == cfg
	if there {
		l.reload.next = nil
	}
	return there
}

// takeUp begins a term of the loop, which end ends, with the configuration that was
// left, or nil.
func (l *live) takeUp(end context.CancelFunc) *config.Config {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reload.end = end
	cfg := l.reload.next
	if cfg != nil {
		l.reload.next = nil
		close(l.reload.taken)
	}
	return cfg
}
