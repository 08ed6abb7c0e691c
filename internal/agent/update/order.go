package update

import (
	"context"
	"errors"
	"fmt"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/source"
)

// ErrBusy: a release is on trial, and nothing else is begun before that is over.
var ErrBusy = errors.New("a release is on trial")

// Order has a bundle installed, and the system started anew for it if restart is set.
// It returns when the bundle was found to be one that the device wants, and the order is
// remembered; Run does the rest. Another release that is on its way is taken back first.
// One that was refused changes nothing.
func (u *Updater) Order(ctx context.Context, from From, restart bool) (fota.Version, error) {
	u.ordering.Lock()
	defer u.ordering.Unlock()
	if s := u.Load(); s.Phase == Trial {
		return fota.Version{}, fmt.Errorf("%w: %v", ErrBusy, s.Version)
	}
	release, err := u.Open(ctx, from)
	if err != nil {
		return fota.Version{}, err
	}
	defer release.Source.Close()
	v := release.Manifest.Version
	if err := u.wanted(ctx, release.Manifest); err != nil {
		return v, err
	}
	if s := u.Load(); s.Version == v && (s.Phase == Writing || s.Phase == Written || s.Phase == Armed) && !s.Cancel {
		defer u.wake()
		if restart {
			err = u.again()
		}
		return v, err
	}
	defer u.take()()
	if err := u.takeBack(ctx); err != nil {
		return v, err
	}
	return v, u.remember(func(s *State) { *s = State{Phase: Writing, Version: v, From: release.From, Restart: restart} })
}

// again has the system started anew for a release that is on its way.
func (u *Updater) again() error {
	boot, _, err := u.Boot()
	if err != nil {
		return err
	}
	return u.Save(func(s *State) error {
		s.Restart = true
		if s.Phase == Armed {
			s.Boot = boot
		}
		return nil
	})
}

// Cancel takes back a release that is on its way. One on trial cannot be taken back, and
// where there is none, nothing is.
func (u *Updater) Cancel(ctx context.Context) error {
	u.ordering.Lock()
	defer u.ordering.Unlock()
	defer u.take()()
	return u.takeBack(ctx)
}

// takeBack remembers that a release is on its way back, and takes it there.
func (u *Updater) takeBack(ctx context.Context) error {
	switch s := u.Load(); s.Phase {
	case None, Settled:
		return nil
	case Trial:
		return fmt.Errorf("%w: %v", ErrBusy, s.Version)
	}
	if err := u.Save(func(s *State) error { s.Cancel = true; return nil }); err != nil {
		return err
	}
	return u.settle(ctx, Canceled, nil)
}

// take interrupts the step at work and keeps others from beginning, until the function
// that it returns is called.
func (u *Updater) take() (release func()) {
	u.mu.Lock()
	u.holds = true
	if u.end != nil {
		u.end(errOrdered)
	}
	u.mu.Unlock()
	u.step.Lock()
	return func() {
		u.mu.Lock()
		u.holds = false
		u.mu.Unlock()
		u.step.Unlock()
		u.wake()
	}
}

func (u *Updater) wake() {
	select {
	case u.kick <- struct{}{}:
	default:
	}
}

// wanted holds a release against what the installer finds.
func (u *Updater) wanted(ctx context.Context, m *fota.Manifest) error {
	st, err := u.status(ctx)
	if err != nil {
		return err
	}
	return st.Policy().Check(m)
}

// unavailable is the part of err that may pass by waiting for a server; nil if none may.
func unavailable(err error) (away *source.UnavailableError) {
	errors.As(err, &away)
	return away
}
