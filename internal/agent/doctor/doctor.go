// Package doctor looks at a device and says what is well, what is not, and what to
// do about it: `birthmark doctor`.
//
// It looks at the TPM, the clock, the disk, the state, the certificates, the EST
// servers, the brokers and what an update of the firmware needs. It uses no credential: an EST server is asked for its
// CA's certificates, with a broker only the TLS handshake is made. Nothing is
// changed, except that a file is written to the state folder and removed again.
//
// An agent that runs examines itself and answers at its door, because it alone can
// ask a TPM that takes one client at a time, and because what it may and can reach
// is what counts. Where no agent runs, the program examines the device by itself.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"sync"
	"text/tabwriter"
	"time"

	"birthmark/internal/agent"
	"birthmark/internal/config"
	"birthmark/pkg/clock"
	"birthmark/pkg/enroll"
	"birthmark/pkg/fota"
	"birthmark/pkg/rot"
	"birthmark/pkg/store"
)

const (
	// limit is for the whole examination; a door waits 20 s for it.
	limit = 15 * time.Second
	// serverLimit is for one server, so that the others have their say.
	serverLimit = 8 * time.Second
)

// A Result is what comes of a check.
type Result string

const (
	OK   Result = "ok"
	Warn Result = "warn" // it works, and somebody should see to it
	Fail Result = "fail" // it does not work
)

// A Check is one thing that was looked at.
type Check struct {
	Name   string `json:"name"`
	Result Result `json:"result"`
	Found  string `json:"found"`
	Do     string `json:"do,omitempty"`
	// Unreachable: it failed because somebody did not answer, or because who asked
	// may not, which says nothing against the device itself.
	Unreachable bool `json:"unreachable,omitempty"`
}

// A Report is all that was looked at.
type Report struct {
	At     time.Time `json:"at"`
	Folder string    `json:"folder"` // of the state
	Agent  bool      `json:"agent"`  // the running agent examined itself
	Checks []Check   `json:"checks"`
}

// A Patient is a device.
type Patient struct {
	Config *config.Loaded
	// Root is the TPM of the agent that runs, or why it has none. Nil when no agent
	// runs: then the TPM is opened.
	Root func() (rot.Root, error)
	// Installer asks for what updates of the firmware find here.
	Installer func(context.Context) (fota.Status, error)
}

// Examine looks at everything. It ends within 15 s.
func Examine(ctx context.Context, p Patient) Report {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errors.New("the examination took too long"))
	defer cancel()
	folder := p.Config.Config.Device.State
	d, held, err := store.Read[agent.Device](folder)
	x := &examination{Config: &p.Config.Config, root: p.Root, installer: p.Installer, device: d, held: held, clock: clock.Since(d.Floor)}
	parts := []func(context.Context) []Check{
		func(context.Context) []Check { return []Check{configuration(p.Config), x.state(err), x.audit()} },
		x.disk, x.time, x.tpm, x.est, x.brokers, x.firmware,
	}
	found := make([][]Check, len(parts))
	var all sync.WaitGroup
	for i, part := range parts {
		all.Go(func() { found[i] = part(ctx) })
	}
	all.Wait()
	r := Report{At: x.clock.Now().UTC().Truncate(time.Second), Folder: folder, Agent: p.Root != nil}
	for _, checks := range found {
		r.Checks = append(r.Checks, checks...)
	}
	return r
}

// An examination is one look at one device.
type examination struct {
	*config.Config
	root func() (rot.Root, error)
	// installer is asked; nil: nobody can
	installer func(context.Context) (fota.Status, error)
	device    agent.Device // as far as it could be read
	held      bool         // an agent runs on its folder
	clock     *clock.Clock
}

// configuration looks at the configuration by itself.
func configuration(l *config.Loaded) Check {
	c := Check{Name: "configuration", Result: OK, Found: fmt.Sprintf("without mistakes (files read: %d)", len(l.Files))}
	if faults := l.Check(); len(faults) > 0 {
		c.Result, c.Found = Fail, faults[0].Error()
		if len(faults) > 1 {
			c.Found += fmt.Sprintf("; and %d more", len(faults)-1)
		}
		c.Do = "correct it; `birthmark config check` lists all mistakes"
	}
	return c
}

// failed is a check that ended in an error.
func failed(name string, err error) Check {
	return Check{Name: name, Result: Fail, Found: err.Error(), Do: agent.Hint(err), Unreachable: unreachable(err)}
}

// unreachable tells whether err says no more than that somebody did not answer.
func unreachable(err error) bool {
	var est *enroll.UnavailableError
	var network net.Error
	return errors.As(err, &est) || errors.As(err, &network) || errors.Is(err, io.EOF) ||
		errors.Is(err, rot.ErrUnavailable) || errors.Is(err, rot.ErrBusy) ||
		errors.Is(err, fs.ErrPermission) || errors.Is(err, context.DeadlineExceeded)
}

// A FailedError says that checks failed.
type FailedError struct {
	Failed, Of int
	// Unreachable: all that failed did because somebody did not answer.
	Unreachable bool
}

func (e *FailedError) Error() string { return fmt.Sprintf("%d of %d checks failed", e.Failed, e.Of) }

// Err is a *FailedError if a check failed.
func (r Report) Err() error {
	e := &FailedError{Of: len(r.Checks), Unreachable: true}
	for _, c := range r.Checks {
		if c.Result == Fail {
			e.Failed++
			e.Unreachable = e.Unreachable && c.Unreachable
		}
	}
	if e.Failed == 0 {
		return nil
	}
	return e
}

// Print writes r for people.
func (r Report) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range r.Checks {
		fmt.Fprintf(t, "%s\t%s\t%s\n", agent.Printable(string(c.Result)), agent.Printable(c.Name), agent.Printable(c.Found))
		if c.Do != "" && c.Result != OK {
			fmt.Fprintf(t, "\t\tto do: %s\n", agent.Printable(c.Do))
		}
	}
	return t.Flush()
}
