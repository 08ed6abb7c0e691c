package update

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"time"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/source"
)

const (
	writeTries = 3
	stallLimit = 15 * time.Minute
	awayLimit  = 24 * time.Hour
)

// write ends with a release on the medium. A try that was begun is counted, so that one
// that takes the agent down with it ends, too; waiting for a server is not a new one.
func (u *Updater) write(ctx context.Context, s State, attempt int) error {
	switch {
	case s.Cancel:
		return u.settle(ctx, Canceled, nil)
	case s.Await && !u.Reached():
		return errAwait
	case s.Tries >= writeTries:
		why := &Why{Reason: fmt.Sprintf("given up after %d tries", s.Tries)}
		if s.Why != nil {
			why.Reason += "; the last: " + s.Why.Reason
		}
		return u.settle(ctx, Failed, why)
	}
	// Until what runs was blessed, the installer does not write over the way back. If that
	// does not come about, he is asked, to say so.
	if st, err := u.status(ctx); err == nil && st.Trial && !u.confirmed && attempt < callTries {
		if u.Ready() != nil {
			return errAwait
		}
		return errors.New("what runs is on trial, and has to be blessed before")
	}
	err := u.remember(func(s *State) { s.Tries, s.Await = s.Tries+1, false })
	if err != nil {
		return err
	}
	defer u.note(nil)
	until := time.Now().Add(awayLimit)
	for again := 0; ; again++ {
		err = u.deliver(ctx, s)
		away := unavailable(err)
		if away == nil || ctx.Err() != nil || !time.Now().Before(until) {
			break
		}
		// What a server asks for is kept, and devices that it has asked in one moment do not
		// come back in one moment.
		wait := away.RetryAfter + rand.N(min(retryBase<<min(again, 16), retryCap)) + retryBase
		wait = min(wait, time.Until(until))
		u.Log.Warn("a bundle cannot be had, will be tried again", "from", s.From.String(), "err", err, "in", wait.Round(time.Second/10))
		u.Beat(wait + aliveStep)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	var refusal *fota.Refusal
	switch {
	case err == nil:
		return u.remember(func(s *State) { s.Phase, s.Why = Written, nil })
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &refusal), errors.Is(err, source.ErrChanged), errors.Is(err, fs.ErrNotExist), unavailable(err) != nil:
		return u.settle(ctx, Failed, because(err))
	}
	return errors.Join(err, u.Save(func(s *State) error { s.Why = because(err); return nil }))
}

// deliver verifies a release once more, as far as is cheap, and has it written.
func (u *Updater) deliver(ctx context.Context, s State) error {
	release, err := u.Open(ctx, s.From)
	if err != nil {
		return err
	}
	defer release.Source.Close()
	if v := release.Manifest.Version; v != s.Version {
		return fmt.Errorf("%w: it holds %v, and %v was ordered", source.ErrChanged, v, s.Version)
	}
	if err := u.wanted(ctx, release.Manifest); err != nil {
		return err
	}
	if err := u.cancel(ctx); err != nil { // whatever is left of an earlier one
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := u.watch(release.Source, func() { cancel(fmt.Errorf("the installer has not got on for %v", stallLimit)) })
	defer watch.stop()
	err = u.Do(effectInstall, func() error {
		return u.Installer.Install(ctx, watch, release.Source.Size(), watch.progress)
	})
	if err != nil {
		return err
	}
	st, err := u.status(ctx)
	if err == nil && (st.Other.Version != s.Version || st.Other.Mark != fota.Staged) {
		err = fmt.Errorf("the installer says that he has written %v, and holds %v (%s)", s.Version, st.Other.Version, st.Other.Mark)
	}
	return err
}

// note keeps how far the writing is; nil: it is over.
func (u *Updater) note(p *Progress) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.progress = p
}

// A watch serves the installer what he reads, and sees to it that he gets on.
type watch struct {
	source  io.ReaderAt
	updater *Updater
	timer   *time.Timer
	began   time.Time

	mu      sync.Mutex
	quarter int64 // that was told
}

func (u *Updater) watch(src io.ReaderAt, stalled func()) *watch {
	u.Beat(stallLimit + aliveStep)
	return &watch{source: src, updater: u, timer: time.AfterFunc(stallLimit, stalled), began: time.Now()}
}

func (w *watch) stop() { w.timer.Stop() }

func (w *watch) alive() {
	w.updater.Beat(stallLimit + aliveStep)
	w.timer.Reset(stallLimit)
}

func (w *watch) ReadAt(p []byte, off int64) (int, error) {
	defer w.alive()
	return w.source.ReadAt(p, off)
}

// progress is told by the installer, who may say anything.
func (w *watch) progress(done, total int64) {
	w.alive()
	total = max(total, 0)
	p := Progress{Done: min(max(done, 0), total), Total: total}
	if took := time.Since(w.began).Seconds(); took > 0 {
		p.Rate = int64(float64(p.Done) / took)
	}
	w.updater.note(&p)
	w.mu.Lock()
	defer w.mu.Unlock()
	if quarter := p.Done / max(total/4, 1); total > 0 && quarter > w.quarter && quarter < 4 {
		w.quarter = quarter
		w.updater.Progress(p)
	}
}
