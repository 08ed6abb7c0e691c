// Package agent is the life of a device: it wires the rooms under pkg/ together
// and says what happens next.
//
// An [Agent] runs the step of the state that its [Device] is in until that step
// ends the state; the outcome of the step and the next state become durable in
// one write. After a crash the same step runs again, and there is no other
// recovery path, so every step can be repeated:
//
//	blank       birth    IDevID in the TPM, its certificate from the maker's CA
//	born        own      LDevID in the TPM, its certificate from the owner's CA
//	enrolled    connect  first session that the owner's broker accepts
//	operational serve    telemetry until the agent is stopped
//
// A step that fails for want of something (TPM, network, disk) is tried again
// with full jitter, for ever. What cannot get better by waiting ends [Agent.Run]
// with a [StopError].
//
// Beside the loop, package update installs firmware when somebody asks for it; see
// [Agent.UpdateBy]. What is remembered of that is part of the Device, and no state.
//
// Files below the state folder, all of them this package's: state.json
// (pkg/store), audit.log (pkg/audit), outbox (pkg/telemetry).
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"birthmark/internal/agent/update"
	"birthmark/internal/config"
	"birthmark/pkg/audit"
	"birthmark/pkg/clock"
	"birthmark/pkg/lifecycle"
	"birthmark/pkg/rot"
	"birthmark/pkg/rot/tpm"
	"birthmark/pkg/store"
	"birthmark/pkg/telemetry"
)

// An Agent is one device's agent. Only one can hold a state folder.
type Agent struct {
	cfg     *config.Config // the loop's own: Reload changes it
	started *config.Config
	store   *store.Store[Device]
	audit   *audit.Log
	outbox  *telemetry.Outbox
	clock   *clock.Clock
	log     *slog.Logger

	update   *update.Updater // nil without means
	firmware atomic.Pointer[config.Firmware]

	root  rot.Root // open while Run runs; the loop's own
	live  live
	heart heart

	telling sync.Mutex // held while room for a local message is sought and taken

	// open reaches the root of trust; tests put another one there.
	open func(ctx context.Context, known rot.Identity) (rot.Root, error)
	// cut is called on both sides of every outside effect. Tests panic in it.
	cut func(where string)
}

// A StopError says that trying again cannot help.
type StopError struct{ Err error }

func (e *StopError) Error() string { return e.Err.Error() }
func (e *StopError) Unwrap() error { return e.Err }

// New opens the state folder of cfg. The agent holds it until Close; errors are
// those of [store.Open], among them [store.ErrLocked].
func New(cfg *config.Config, log *slog.Logger) (*Agent, error) {
	st, err := store.Open[Device](cfg.Device.State)
	if err != nil {
		return nil, err
	}
	a := &Agent{cfg: cfg, started: cfg, store: st, cut: func(string) {}}
	a.firmware.Store(&cfg.Firmware)
	a.live.started, a.live.first = time.Now(), make(chan struct{})
	a.log = slog.New(recorder{Handler: log.Handler(), kept: &a.live.kept})
	if a.audit, err = audit.Open(cfg.Device.State); err != nil {
		st.Close()
		return nil, err
	}
	a.outbox, err = telemetry.OpenOutbox(filepath.Join(cfg.Device.State, "outbox"), telemetry.Limits{})
	if err != nil {
		a.audit.Close()
		st.Close()
		return nil, err
	}
	a.clock = clock.Since(st.Get().Floor)
	a.open = func(ctx context.Context, known rot.Identity) (rot.Root, error) {
		return tpm.Open(ctx, tpm.Config{Address: cfg.TPM.Address, Known: known, Log: a.log})
	}
	return a, nil
}

// Close lets go of the state folder.
func (a *Agent) Close() error {
	return errors.Join(a.outbox.Close(), a.audit.Close(), a.store.Close())
}

// Run lives the device's life until ctx ends, which is no error, or until a
// StopError.
func (a *Agent) Run(ctx context.Context) error {
	if aside := a.store.Damaged(); aside != "" {
		a.log.Error("the state file was damaged; it is kept aside and the device starts from its birth again", "kept", aside)
		a.record("state-damaged", slog.String("kept", aside))
	}
	defer func() {
		if a.root != nil {
			a.root.Close()
			a.live.opened(nil, context.Cause(ctx))
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	var updating sync.WaitGroup
	defer updating.Wait()
	defer cancel()
	if a.update != nil {
		updating.Go(func() { a.update.Run(ctx) })
	}
	for ctx.Err() == nil {
		if err := a.term(ctx); err != nil {
			a.outlive(ctx, err)
			return err
		}
	}
	return nil
}

// term is as much of a life as is lived under one configuration.
func (a *Agent) term(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if cfg := a.live.takeUp(cancel); cfg != nil {
		a.cfg = cfg
		a.firmware.Store(&cfg.Firmware)
	}
	if path := a.cfg.Metrics.Textfile; path != "" {
		var writing sync.WaitGroup
		writing.Go(func() { a.keepTextfile(ctx, path) })
		defer writing.Wait()
		defer cancel()
	}
	steps := map[lifecycle.State]func(context.Context) error{
		lifecycle.Blank:       a.birth,
		lifecycle.Born:        a.own,
		lifecycle.Enrolled:    a.connect,
		lifecycle.Operational: a.serve,
	}
	for attempt := 0; ; {
		state := a.store.Get().State
		step, ok := steps[state]
		if !ok {
			return &StopError{fmt.Errorf("state %q is not known to this version of the agent", state)}
		}
		a.live.working()
		a.heart.beat(loopPart, stepLimit)
		err := a.withRoot(ctx, step)
		var stop *StopError
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &stop):
			a.record("stopped", slog.String("err", err.Error()))
			return err
		case err == nil:
			attempt = 0
		default:
			delay := backoff(err, attempt)
			attempt++
			a.live.failed(state, err, attempt, delay)
			a.log.Warn("step failed, will be tried again", "state", state.String(), "err", err,
				"next", Hint(err), "in", delay.Round(time.Second/10), "attempt", attempt)
			if !a.pause(ctx, delay) {
				return nil
			}
		}
	}
}

// withRoot runs step with the root of trust open, and lets go of a root that
// does not answer, so that the next try opens it anew.
func (a *Agent) withRoot(ctx context.Context, step func(context.Context) error) error {
	if a.root == nil {
		err := a.openRoot(ctx)
		a.live.opened(a.root, err)
		if err != nil {
			return err
		}
	}
	err := step(ctx)
	if errors.Is(err, rot.ErrReplaced) || errors.Is(err, rot.ErrCleared) {
		return &StopError{err}
	}
	if errors.Is(err, rot.ErrUnavailable) {
		a.root.Close()
		a.root = nil
		a.live.opened(nil, err)
	}
	return err
}

// move ends the current state on ev. The facts that ev brought and the state
// they lead to become durable in one write. A state that must not find firmware on its
// way, as of a device that is suspended or retired, has [update.Updater.Cancel] called
// before.
func (a *Agent) move(ev lifecycle.Event, facts func(*Device)) error {
	var from, to lifecycle.State
	err := a.store.Update(func(d *Device) error {
		next, err := lifecycle.Next(d.State, ev)
		if err != nil {
			return &StopError{err}
		}
		from, to = d.State, next
		facts(d)
		d.Schema, d.State, d.Floor = schema, next, a.clock.Floor()
		return nil
	})
	if err != nil {
		return err
	}
	a.log.Info("state changed", "from", from.String(), "to", to.String(), "on", string(ev))
	a.record("state", slog.String("from", from.String()), slog.String("to", to.String()), slog.String("on", string(ev)))
	return nil
}

// The outside effects of a life, for the cut seam. Writes of the state file are
// seen by the store's own seam.
const (
	effectOpen  = "tpm: open"
	effectKey   = "tpm: make key"
	effectAttrs = "est: ask for attributes"
	effectBirth = "est: ask the maker"
	effectOwner = "est: ask the owner"
	effectKnock = "broker: knock"
	effectAudit = "audit: append"
	effectPut   = "outbox: put"
)

var effects = []string{effectOpen, effectKey, effectAttrs, effectBirth, effectOwner, effectKnock, effectAudit, effectPut}

// do performs one outside effect.
func (a *Agent) do(effect string, f func() error) error {
	a.cut("before " + effect)
	err := f()
	a.cut("after " + effect)
	return err
}

// record adds to the audit log. A log that cannot be written is said, and does
// not stop the life of the device.
func (a *Agent) record(event string, attrs ...slog.Attr) {
	err := a.do(effectAudit, func() error { return a.audit.Append(event, attrs...) })
	if err != nil {
		a.log.Error("cannot write the audit log", "event", event, "err", err)
	}
}
