package agent

import (
	"fmt"
	"sync"
	"time"

	"birthmark/pkg/lifecycle"
	"birthmark/pkg/rot"
)

// A live is what an agent knows of itself while it runs, and forgets at its end. The
// loop writes it; doors and metrics read it at any time.
type live struct {
	started time.Time
	kept    kept
	first   chan struct{} // closed when the root of trust was opened for the first time

	mu       sync.Mutex // guards all below
	root     rot.Root   // nil while it is not open
	rootErr  error      // why
	stop     error      // what ended the loop for good
	commands uint64     // of the roots before
	failures map[string]uint64
	retry    *Retry // nil while a step is at work
	reload   reload

	attempts, sessions uint64 // with the broker
	session            time.Time
	seen               time.Time // when there was a session, the last time that somebody looked
}

// A Retry is a step that failed and waits.
type Retry struct {
	State   string    `json:"state"`
	Kind    string    `json:"kind"`
	Error   string    `json:"error"`
	Hint    string    `json:"hint,omitempty"`
	Attempt int       `json:"attempt"`
	At      time.Time `json:"at"` // when it is tried again
}

// opened notes the root of trust, or why there is none.
func (l *live) opened(root rot.Root, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.root != nil {
		l.commands += stats(l.root).Commands
	}
	l.root, l.rootErr = root, err
	if root == nil {
		return
	}
	select {
	case <-l.first:
	default:
		close(l.first)
	}
}

// Opened is closed when Run has opened the root of trust for the first time.
func (a *Agent) Opened() <-chan struct{} { return a.live.first }

// Root is the root of trust while the agent runs and has it open, or why it has not.
func (a *Agent) Root() (rot.Root, error) {
	a.live.mu.Lock()
	defer a.live.mu.Unlock()
	switch {
	case a.live.root != nil:
		return a.live.root, nil
	case a.live.rootErr != nil:
		return nil, a.live.rootErr
	}
	return nil, fmt.Errorf("%w: it was not opened yet", rot.ErrUnavailable)
}

// stats are the numbers of a root that counts.
func stats(root rot.Root) rot.Stats {
	if m, ok := root.(rot.Meter); ok {
		return m.Stats()
	}
	return rot.Stats{}
}

// failed notes that the step of a state failed.
func (l *live) failed(state lifecycle.State, err error, attempt int, delay time.Duration) {
	t := troubleOf(err)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failures == nil {
		l.failures = map[string]uint64{}
	}
	l.failures[t.kind]++
	l.retry = &Retry{
		State: state.String(), Kind: t.kind, Error: Printable(err.Error()), Hint: t.hint,
		Attempt: attempt, At: time.Now().Add(delay),
	}
}

// stopped notes what has ended the loop for good.
func (l *live) stopped(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stop = err
}

// whyStopped is what has ended the loop, if anything has.
func (l *live) whyStopped() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stop
}

// working notes that a step is at work.
func (l *live) working() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.retry = nil
}

// connecting notes an attempt to get a session with the broker.
func (l *live) connecting() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.attempts++
}

// connected notes the session that came of it.
func (l *live) connected() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sessions++
	l.session = time.Now()
	l.seen = l.session
}

// online notes that there is a session with the broker.
func (l *live) online() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen = time.Now()
}

// reached reports whether there was a session with the broker.
func (l *live) reached() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sessions > 0
}

// lately reports whether there was one within a day.
func (l *live) lately() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.seen.IsZero() && time.Since(l.seen) < 24*time.Hour
}
