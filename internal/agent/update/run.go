package update

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"time"

	"birthmark/pkg/fota"
)

const (
	retryBase = time.Second
	retryCap  = 10 * time.Minute
	awaitStep = 10 * time.Second // between two looks whether the broker is back
	callLimit = 2 * time.Minute  // for the installer, to do anything but to write a slot
	aliveStep = callLimit + time.Minute

	// callTries is how often in a row an installer may fail to arm or bless a release.
	callTries = 5
)

// What ends a step that did not fail.
var (
	errIdle       = errors.New("there is nothing to do")
	errAwait      = errors.New("the broker is awaited")
	errRestarting = errors.New("the system is about to start anew")
	errOrdered    = errors.New("another order came")
)

// Run lives the updates until ctx ends.
func (u *Updater) Run(ctx context.Context) {
	for attempt := 0; ctx.Err() == nil; {
		u.Beat(aliveStep)
		err := u.once(ctx, attempt)
		wait := time.Duration(-1) // until somebody comes
		switch {
		case err == nil:
			attempt = 0
			continue
		case ctx.Err() != nil:
			return
		case errors.Is(err, errOrdered):
			attempt = 0
		case errors.Is(err, errIdle):
			attempt = 0
			u.Beat(0)
		case errors.Is(err, errAwait):
			wait = awaitStep
		case errors.Is(err, errRestarting):
			wait = retryCap
		default:
			wait = rand.N(min(retryBase<<min(attempt, 16), retryCap)) + retryBase
			attempt++
			u.Log.Warn("an update does not get on, will be tried again", "phase", string(u.Load().Phase), "err", err,
				"in", wait.Round(time.Second/10), "attempt", attempt)
		}
		var timer <-chan time.Time
		if wait >= 0 {
			u.Beat(wait + aliveStep)
			timer = time.After(wait)
		}
		select {
		case <-u.kick:
			attempt = 0
		case <-timer:
		case <-ctx.Done():
		}
	}
}

// once runs the step of the present phase.
func (u *Updater) once(ctx context.Context, attempt int) error {
	u.step.Lock()
	defer u.step.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	u.mu.Lock()
	u.end = cancel
	if u.holds {
		cancel(errOrdered)
	}
	u.mu.Unlock()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	err := u.live(ctx, attempt)
	if context.Cause(ctx) == errOrdered {
		return errOrdered
	}
	return err
}

// live looks at what runs, and does what is next.
func (u *Updater) live(ctx context.Context, attempt int) error {
	s := u.Load()
	var runs bool
	if s.Freezes() {
		running, err := u.Running()
		if err != nil && !errors.Is(err, fota.ErrNoVersion) {
			return err
		}
		runs = running == s.Version
	}
	if runs {
		boot, up, err := u.Boot()
		if err != nil {
			return err
		}
		if s.Phase == Armed || s.Boot != boot {
			return u.start(ctx, boot, up)
		}
	}
	u.mu.Lock()
	u.looked = true
	u.mu.Unlock()
	if !runs {
		if err := u.confirm(ctx, s, attempt); err != nil {
			return err
		}
	}
	switch s.Phase {
	case Writing:
		return u.write(ctx, s, attempt)
	case Written:
		return u.arm(s)
	case Armed:
		return u.armed(ctx, s, attempt)
	case Trial:
		if !runs {
			return u.rolledBack(ctx, s)
		}
		return u.trial(ctx, s, attempt)
	case None, Settled:
		return errIdle
	}
	return fmt.Errorf("the phase %q of an update is not known to this version", s.Phase)
}

// confirm blesses what runs, and is not on trial: once, when the agent is well. Boot
// loaders that count do so at every start, and a good release must not run out of tries.
func (u *Updater) confirm(ctx context.Context, s State, attempt int) error {
	idle := s.Phase == None || s.Phase == Settled
	switch {
	case u.confirmed:
		return nil
	case u.Ready() != nil && idle:
		return errAwait
	case u.Ready() != nil:
		return nil // later; there is something to do
	}
	st, err := u.status(ctx)
	if err == nil && st.Trial && !(s.Phase == Settled && s.Outcome == Failed && s.Version == st.Running) {
		err = u.call(ctx, effectBless, u.Installer.Bless)
	}
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist): // a device without an installer
	case !idle:
		return nil
	case attempt < callTries || ctx.Err() != nil:
		return err
	default:
		u.Log.Warn("it is not known whether the boot loader will go on starting what runs", "err", err)
	}
	u.confirmed = true
	return nil
}

// remember makes a change of the state durable, and lets others know.
func (u *Updater) remember(change func(*State)) error {
	next := u.Load()
	now := u.Now()
	stamp := func(s *State) {
		phase := s.Phase
		change(s)
		if s.Phase != phase {
			s.Since = now
		}
	}
	stamp(&next)
	u.Tell(next)
	if err := u.Save(func(s *State) error { stamp(s); return nil }); err != nil {
		return err
	}
	u.Record(next)
	return nil
}

// settle ends an update. What the installer holds is taken back before, since nothing
// must start that nobody remembers; only that he can be reached is not necessary where
// nothing was armed.
func (u *Updater) settle(ctx context.Context, outcome Outcome, why *Why) error {
	if err := u.cancel(ctx); err != nil && u.Load().Freezes() {
		return err
	}
	return u.remember(func(s *State) { s.Phase, s.Outcome, s.Why = Settled, outcome, why })
}

func (u *Updater) cancel(ctx context.Context) error {
	return u.call(ctx, effectCancel, u.Installer.Cancel)
}

// call asks the installer for an effect.
func (u *Updater) call(ctx context.Context, effect string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, callLimit, fmt.Errorf("the installer has not answered within %v", callLimit))
	defer cancel()
	return u.Do(effect, func() error { return f(ctx) })
}

// status asks the installer what is. What he says has to agree with what this system
// says of itself.
func (u *Updater) status(ctx context.Context) (st fota.Status, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, callLimit, fmt.Errorf("the installer has not answered within %v", callLimit))
	defer cancel()
	st, err = u.Installer.Status(ctx)
	if err != nil {
		return st, err
	}
	running, err := u.Running()
	if err != nil && !errors.Is(err, fota.ErrNoVersion) {
		return st, err
	}
	if st.Running != running {
		return st, fmt.Errorf("the installer says that %v runs, os-release that %v does", st.Running, running)
	}
	return st, nil
}

// restart starts the system anew.
func (u *Updater) restart(ctx context.Context) error {
	if err := u.Do(effectRestart, func() error { return u.Restart(ctx) }); err != nil {
		return fmt.Errorf("cannot start the system anew: %w", err)
	}
	return errRestarting
}
