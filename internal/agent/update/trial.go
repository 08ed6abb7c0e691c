package update

import (
	"context"
	"errors"
	"fmt"
	"time"

	"birthmark/pkg/fota"
)

const (
	startTries   = 3
	localLimit   = 5 * time.Minute  // for a release to be healthy by itself
	networkLimit = 30 * time.Minute // for the broker to be reached
	lookStep     = time.Second
)

// arm remembers that the next start may be another release.
func (u *Updater) arm(State) error {
	boot, _, err := u.Boot()
	if err != nil {
		return err
	}
	return u.remember(func(s *State) { s.Phase, s.Boot, s.Network = Armed, boot, u.Lately() })
}

// armed arms what is remembered to be armed, while the release before it still runs, or
// runs again.
func (u *Updater) armed(ctx context.Context, s State, attempt int) error {
	if s.Cancel {
		return u.settle(ctx, Canceled, nil)
	}
	st, err := u.status(ctx)
	if err != nil {
		return err
	}
	boot, _, err := u.Boot()
	if err != nil {
		return err
	}
	if st.Other.Version != s.Version {
		return u.settle(ctx, Failed, &Why{Reason: "what was written is not there any more"})
	}
	switch st.Other.Mark {
	case fota.Armed:
		if s.Restart && s.Boot == boot {
			return u.restart(ctx)
		}
		return errIdle // until the system is started anew
	case fota.Staged:
		if s.Boot != boot { // the power was lost in between
			return u.remember(func(s *State) { s.Boot = boot })
		}
		err := u.call(ctx, effectArm, func(ctx context.Context) error { return u.Installer.Arm(ctx, s.Version) })
		if err == nil {
			if st, err = u.status(ctx); err == nil && st.Other.Mark != fota.Armed {
				err = fmt.Errorf("the installer says that he has armed %v, and it is %s", s.Version, st.Other.Mark)
			}
		}
		var refusal *fota.Refusal
		if errors.As(err, &refusal) || err != nil && attempt >= callTries && ctx.Err() == nil {
			return u.settle(ctx, Failed, because(err))
		}
		return err
	}
	// It was started, and did not come as far as to remember that.
	return u.remember(func(s *State) { s.Phase = Trial })
}

// start remembers a start of the release that is tried. One that cannot even do that is
// left, in the time that any has.
func (u *Updater) start(ctx context.Context, boot string, up time.Duration) error {
	err := u.remember(func(s *State) {
		s.Phase, s.Boot, s.Starts, s.Due = Trial, boot, s.Starts+1, up+localLimit
		s.Healthy, s.Leave = false, false
	})
	if err != nil && up > localLimit {
		return errors.Join(err, u.restart(ctx))
	}
	return err
}

// trial ends with a release that was blessed, or with a new start of the system.
func (u *Updater) trial(ctx context.Context, s State, attempt int) error {
	st, err := u.status(ctx)
	switch {
	case err == nil && !st.Trial: // blessed, and not remembered
		return u.installed()
	case s.Starts > startTries:
		// Whatever starts it again and again is not to be helped by one more start.
		return u.remember(func(s *State) {
			s.Phase, s.Outcome, s.Why = Settled, Failed, &Why{Reason: fmt.Sprintf("started %d times and never found healthy", startTries)}
		})
	case s.Leave:
		return u.restart(ctx)
	}
	why := &Why{Reason: "it was taken back"}
	if !s.Cancel {
		if why, err = u.judge(ctx, s); err != nil {
			return err
		}
	}
	if why == nil {
		err = u.call(ctx, effectBless, u.Installer.Bless)
		if err == nil {
			if st, err = u.status(ctx); err == nil && st.Trial {
				err = errors.New("the installer says that he has blessed what runs, and it is still on trial")
			}
		}
		if err == nil {
			return u.installed()
		}
		if attempt < callTries || ctx.Err() != nil {
			return err
		}
		why = because(fmt.Errorf("it cannot be blessed: %w", err))
	}
	u.Log.Error("the release on trial is not healthy", "version", s.Version.String(), "why", why.Reason)
	err = u.remember(func(s *State) { s.Leave, s.Why = true, why })
	if err != nil && attempt < callTries {
		return err
	}
	// A disk that takes nothing any more is no reason to stay.
	return u.restart(ctx)
}

// installed ends an update well.
func (u *Updater) installed() error {
	return u.remember(func(s *State) { s.Phase, s.Outcome, s.Why = Settled, Installed, nil })
}

// judge waits until a release has proved that it is healthy, or why it is not.
func (u *Updater) judge(ctx context.Context, s State) (*Why, error) {
	_, up, err := u.Boot()
	if err != nil {
		return nil, err
	}
	due := time.Now().Add(s.Due - up)
	late := due.Add(networkLimit - localLimit)
	u.Beat(time.Until(late) + aliveStep)
	look := time.NewTicker(lookStep)
	defer look.Stop()
	for local := false; ; {
		now := u.Load()
		if now.Leave {
			return now.Why, nil
		}
		ready := u.Ready()
		if ready == nil && now.Healthy {
			local = true
			if !s.Network || u.Reached() {
				return nil, nil
			}
		}
		switch passed := time.Now(); {
		case !local && passed.After(due) && ready != nil:
			return because(fmt.Errorf("the agent is not well after %v: %w", localLimit, ready)), nil
		case !local && passed.After(due):
			return &Why{Reason: fmt.Sprintf("nothing was heard of the health checks within %v", localLimit)}, nil
		case passed.After(late):
			return &Why{Reason: fmt.Sprintf("the broker was not reached within %v", networkLimit), Network: true}, nil
		}
		select {
		case <-look.C:
		case <-u.kick:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// ErrNoTrial: nothing is on trial.
var ErrNoTrial = errors.New("no firmware is on trial")

// Judge takes what `birthmark health` found of this start of the system: nothing, if all
// is well, or what is not. Its first word counts.
func (u *Updater) Judge(unwell string) error {
	boot, _, err := u.Boot()
	if err != nil {
		return err
	}
	defer u.wake()
	return u.Save(func(s *State) error {
		switch {
		case s.Phase != Trial || s.Boot != boot:
			return ErrNoTrial
		case s.Healthy || s.Leave:
		case unwell == "":
			s.Healthy = true
		default:
			s.Leave, s.Why = true, because(errors.New(unwell))
		}
		return nil
	})
}

// rolledBack ends the trial of a release that does not run any more. One that was well
// but for the network gets another try, once that is back.
func (u *Updater) rolledBack(ctx context.Context, s State) error {
	why := s.Why
	switch {
	case s.Cancel:
		return u.settle(ctx, Canceled, nil)
	case why == nil:
		why = &Why{Stage: fota.StageBoot, Code: "fallback", Reason: "it did not come up, or not far enough to say what was wrong"}
	case why.Network && s.Tries < writeTries:
		if err := u.cancel(ctx); err != nil {
			return err
		}
		return u.remember(func(s *State) {
			*s = State{Phase: Writing, Version: s.Version, From: s.From, Restart: s.Restart, Tries: s.Tries, Await: true, Why: why}
		})
	}
	return u.settle(ctx, RolledBack, why)
}
