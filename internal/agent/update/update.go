// Package update takes a device from one firmware release to the next, or back.
//
// It is the agent's side: it decides, remembers, and asks. Who writes slots and boot
// entries is an [Installer], at the other end of a socket, who believes nothing of what
// he is told here. An update is a straight line of phases:
//
//	none -> writing -> written -> armed -> trial -> settled
//
//	writing  the release is verified and written to the slot that does not run
//	written  all of it is on the medium; nothing starts it yet
//	armed    the next start tries it: remembered first, done then
//	trial    it runs, and has not proved that it is healthy
//	settled  it runs for good, or the release before it does; [State.Outcome] says which
//
// # Rules
//
// What is remembered is one [State], and a phase and what led to it are one write.
// Nothing is asked of the installer, and no restart of the system, that was not
// remembered before. After a crash, or a loss of power, the step of the phase runs
// again: an [Updater] has no other way to recover, so each step first looks at what
// runs, and at what the installer finds, and goes on from there.
//
// # A trial
//
// A release is blessed when, within five minutes, the agent itself is well ([Host.Ready])
// and `birthmark health` has found the same of the rest ([Updater.Judge]). If the broker
// was reached in the day before, it has to be reached again, within half an hour. A
// release that does not manage is left: the reason is remembered, the system is started
// anew, and the boot loader, which counts, comes back to the release before sooner or
// later. There the reason is told. Where only the network was missing, the release is
// tried again once it is back.
//
// What runs and is not on trial is blessed at every start, too, when the agent is well: a
// boot loader counts those as well, and damage that is found later has to lead back.
//
// # Bounds
//
// A release is written three times at most before it is given up, and started three
// times. The installer has two minutes for everything but writing, and may not stand
// still in that for a quarter of an hour. A server may be away for a day, and is left
// alone as long as it asks for.
//
// # What it does not do
//
// An agent that does not run at all cannot leave a bad release: that takes a boot loader
// that counts, and somebody who starts the system anew.
package update

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/source"
)

// A Phase is how far an update is. It is written to disk as it is spelled here, so a
// spelling is for ever.
type Phase string

const (
	None    Phase = ""
	Writing Phase = "writing"
	Written Phase = "written"
	Armed   Phase = "armed"
	Trial   Phase = "trial"
	Settled Phase = "settled"
)

// An Outcome is how an update ended.
type Outcome string

const (
	Installed  Outcome = "installed"   // it runs, and was blessed
	Failed     Outcome = "failed"      // it was never started, or runs for want of a way back and was never found healthy
	RolledBack Outcome = "rolled-back" // it was started, and the release before it runs again
	Canceled   Outcome = "canceled"
)

// A State is what a device remembers of its last update. The zero State is that of one
// that had none.
type State struct {
	Phase   Phase        `json:"phase,omitempty"`
	Version fota.Version `json:"version,omitzero"`
	From    From         `json:"from,omitzero"`
	Since   time.Time    `json:"since,omitzero"`   // it is in this phase
	Restart bool         `json:"restart,omitzero"` // the system is started anew for it, unasked
	Tries   int          `json:"tries,omitempty"`  // that were begun to write it

	// Boot is the start of the system in which it was armed or, in a trial, the one that
	// counts for all below.
	Boot    string        `json:"boot,omitempty"`
	Network bool          `json:"network,omitempty"` // the broker was reached in the day before it was armed
	Starts  int           `json:"starts,omitempty"`  // on trial
	Due     time.Duration `json:"due,omitempty"`     // when it has to be healthy, from that start
	Healthy bool          `json:"healthy,omitempty"` // `birthmark health` says so
	Leave   bool          `json:"leave,omitempty"`   // it is not: start the system anew

	Cancel  bool    `json:"cancel,omitempty"` // it is on its way back
	Await   bool    `json:"await,omitempty"`  // once more, as soon as the broker is reached
	Outcome Outcome `json:"outcome,omitempty"`
	Why     *Why    `json:"why,omitempty"`
}

// Freezes reports whether the device's identity has to stay as it is: a release on
// trial must find what the one before it would find again.
func (s State) Freezes() bool { return s.Phase == Armed || s.Phase == Trial }

// A From is where a bundle lies: in a file, or on a server.
type From struct {
	Path string     `json:"path,omitempty"`
	Pin  source.Pin `json:"pin,omitzero"`
}

// ParseFrom reads the absolute path of a file, or an https address.
func ParseFrom(s string) (From, error) {
	switch u, err := url.Parse(s); {
	case filepath.IsAbs(s):
		return From{Path: s}, nil
	case err != nil, u.Scheme != "https", u.Host == "": // err would show the address
		return From{}, errors.New("a bundle is an absolute path, or https://HOST/PATH")
	}
	return From{Pin: source.Pin{URL: s}}, nil
}

// String names it without what may be secret in an address.
func (f From) String() string {
	if f.Path != "" {
		return f.Path
	}
	u, err := url.Parse(f.Pin.URL)
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host + u.EscapedPath()
}

// A Why is the reason of a bad outcome.
type Why struct {
	Stage   fota.Stage `json:"stage,omitempty"` // of a refusal
	Code    string     `json:"code,omitempty"`
	Reason  string     `json:"reason"`
	Network bool       `json:"network,omitempty"` // it was healthy but for the broker
}

// reasonLimit is in bytes: a reason is part of the state file.
const reasonLimit = 500

func because(err error) *Why {
	w := &Why{Reason: err.Error()}
	var refusal *fota.Refusal
	if errors.As(err, &refusal) {
		w.Stage, w.Code, w.Reason = refusal.Stage, refusal.Code, refusal.Err.Error()
	}
	if len(w.Reason) > reasonLimit {
		w.Reason = strings.ToValidUTF8(w.Reason[:reasonLimit], "") + "…"
	}
	return w
}

// An Installer is [fota.Installer] from afar: he reads the bundle from here, and opens
// it himself. His refusals are a *[fota.Refusal]; an error of the bundle's, and the cause
// of a context that has ended, come back as they are.
type Installer interface {
	Status(ctx context.Context) (fota.Status, error)
	Install(ctx context.Context, bundle io.ReaderAt, size int64, progress func(done, total int64)) error
	Arm(ctx context.Context, v fota.Version) error
	Cancel(ctx context.Context) error
	Bless(ctx context.Context) error
}

// A Release is a bundle whose signature was verified, ready to be read.
type Release struct {
	Manifest *fota.Manifest
	Source   source.Source
	From     From // pinned
}

// A Host is the device around an Updater. All may be called at the same time.
type Host struct {
	Load func() State
	Save func(change func(*State) error) error // durable when it returns nil

	Installer Installer
	// Open opens a bundle as far as its signature. Errors to decide by: *fota.Refusal,
	// source.ErrChanged, *source.UnavailableError.
	Open    func(context.Context, From) (*Release, error)
	Running func() (fota.Version, error)
	// Boot names this start of the system, and says how long ago it was.
	Boot    func() (string, time.Duration, error)
	Restart func(context.Context) error // of the system

	Ready   func() error // why the agent itself is not well
	Reached func() bool  // the broker, since the agent was started
	Lately  func() bool  // the broker, within the last day

	// Tell tells the owner of a state, before it is remembered: once at least. Record
	// writes down a state that was remembered.
	Tell, Record func(State)
	Progress     func(Progress) // at each quarter

	// Do performs an effect of a name in [Effects].
	Do   func(effect string, f func() error) error
	Beat func(within time.Duration) // alive; 0: waits for an order
	Now  func() time.Time
	Log  *slog.Logger
}

// Names of effects outside of what is remembered.
const (
	effectInstall = "installer: install"
	effectArm     = "installer: arm"
	effectCancel  = "installer: cancel"
	effectBless   = "installer: bless"
	effectRestart = "system: restart"
)

// Effects are what an Updater does to the device.
var Effects = []string{effectInstall, effectArm, effectCancel, effectBless, effectRestart}

// A Progress is how far the writing of a release is.
type Progress struct {
	Done  int64 `json:"done"` // bytes
	Total int64 `json:"total"`
	Rate  int64 `json:"bytes_per_second"`
}

// An Updater lives the updates of one device.
type Updater struct {
	Host

	confirmed bool // what runs was blessed, or will not be; Run's own

	ordering sync.Mutex // held through an order
	step     sync.Mutex // held through a step, or by who changes the phase in its place
	kick     chan struct{}

	mu       sync.Mutex // guards all below
	end      context.CancelCauseFunc
	holds    bool // an order wants the next step for itself
	looked   bool
	progress *Progress
}

// New is an Updater that waits for Run.
func New(h Host) *Updater { return &Updater{Host: h, kick: make(chan struct{}, 1)} }

// Looked reports whether what runs was compared with what is remembered, since this
// agent was started. Before that nobody knows whether this is a trial.
func (u *Updater) Looked() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.looked
}

// Underway is how far the writing is; false when nothing is being written.
func (u *Updater) Underway() (Progress, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.progress == nil {
		return Progress{}, false
	}
	return *u.progress, true
}
