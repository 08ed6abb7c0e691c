package agent

import (
	"errors"
	"io/fs"
	"maps"
	"time"

	"birthmark/internal/agent/update"
	"birthmark/internal/config"
	"birthmark/internal/version"
	"birthmark/pkg/clock"
	"birthmark/pkg/rot"
	"birthmark/pkg/store"
	"birthmark/pkg/telemetry"
)

// A Status says where a device stands: what its state folder says and, from an agent
// that runs, how it is going.
type Status struct {
	State     string         `json:"state"`
	Running   bool           `json:"running"` // an agent holds the folder
	ID        string         `json:"id,omitempty"`
	Root      *rot.Identity  `json:"root,omitempty"`
	Birth     *Certificate   `json:"idevid,omitempty"`
	Owner     *Certificate   `json:"ldevid,omitempty"`
	Assurance rot.Assurance  `json:"assurance,omitempty"`
	Asking    *AskingSummary `json:"asking,omitempty"`
	Update    *UpdateSummary `json:"update,omitempty"` // of the firmware, the last
	Folder    string         `json:"folder"`
	Live      *Live          `json:"live,omitempty"` // from the running agent only
}

// A Live is what only a running agent knows.
type Live struct {
	Version  string            `json:"version"`
	Started  time.Time         `json:"started"`
	Clock    ClockStatus       `json:"clock"`
	TPM      TPMStatus         `json:"tpm"`
	Broker   BrokerStatus      `json:"broker"`
	Outbox   telemetry.Stats   `json:"outbox"`
	Update   LiveUpdate        `json:"update"`
	Retry    *Retry            `json:"retry,omitempty"`    // the step that failed and waits
	Failures map[string]uint64 `json:"failures,omitempty"` // of steps, by the kind of their cause
	Troubles []Trouble         `json:"troubles,omitempty"` // the last ones, oldest first
}

// A ClockStatus says what the agent makes of the time.
type ClockStatus struct {
	Now     time.Time `json:"now"`
	Trusted bool      `json:"trusted"` // the kernel says that it is synchronised
	Floor   time.Time `json:"floor"`   // certainly past
}

// A TPMStatus says what the agent had to do with the TPM.
type TPMStatus struct {
	Open     bool    `json:"open"`
	Error    string  `json:"error,omitempty"` // why not
	Commands uint64  `json:"commands"`
	LastMS   float64 `json:"last_ms"` // how long the last command took
}

// A BrokerStatus says how the connection is.
type BrokerStatus struct {
	Up       bool      `json:"up"`
	Since    time.Time `json:"since,omitzero"` // of the session that is up
	Sessions uint64    `json:"sessions"`
	Attempts uint64    `json:"attempts"` // to get one
}

// A LiveUpdate says how an update of the firmware is going.
type LiveUpdate struct {
	// Looked: what runs was compared with what is remembered, so it is known whether this
	// is a trial.
	Looked   bool             `json:"looked"`
	Progress *update.Progress `json:"progress,omitempty"` // of the writing
}

// A Certificate is one certificate in brief.
type Certificate struct {
	Subject  string    `json:"subject"`
	Serial   string    `json:"serial"`
	Issuer   string    `json:"issuer"`
	NotAfter time.Time `json:"not_after"`
	DaysLeft int       `json:"days_left"`
}

// AskingSummary is a request that has no answer yet.
type AskingSummary struct {
	Since   time.Time `json:"since"`
	Tries   int       `json:"tries"`
	RetryAt time.Time `json:"retry_at,omitzero"`
}

// ReadStatus reads the state folder dir, whether an agent runs on it or not. It
// changes nothing and asks the TPM nothing.
func ReadStatus(dir string) (Status, error) {
	d, running, err := store.Read[Device](dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Status{Folder: dir}, err
	}
	s, err := statusOf(d, clock.Since(d.Floor))
	s.Folder, s.Running = dir, running
	return s, err
}

// Status is that of the running agent. It asks the TPM nothing.
func (a *Agent) Status() Status {
	// A state that cannot be read as far as its certificates go is said as far as it
	// goes: that an agent runs on it is known here.
	s, _ := statusOf(a.store.Get(), a.clock)
	s.Folder, s.Running = a.started.Device.State, true
	l := &a.live
	l.mu.Lock()
	defer l.mu.Unlock()
	s.Live = &Live{
		Version:  version.String(),
		Started:  l.started,
		Clock:    ClockStatus{a.clock.Now(), a.clock.Trusted(), a.clock.Floor()},
		TPM:      TPMStatus{Open: l.root != nil, Commands: l.commands},
		Broker:   BrokerStatus{Up: a.outbox.Online(), Sessions: l.sessions, Attempts: l.attempts},
		Outbox:   a.outbox.Stats(),
		Failures: maps.Clone(l.failures),
		Troubles: l.kept.all(),
	}
	if l.root != nil {
		n := stats(l.root)
		s.Live.TPM.Commands += n.Commands
		s.Live.TPM.LastMS = float64(n.Last.Microseconds()) / 1000
	} else if l.rootErr != nil {
		s.Live.TPM.Error = Printable(l.rootErr.Error())
	}
	if s.Live.Broker.Up {
		s.Live.Broker.Since = l.session
	}
	if a.update != nil {
		s.Live.Update.Looked = a.update.Looked()
		if p, ok := a.update.Underway(); ok {
			s.Live.Update.Progress = &p
		}
	}
	if l.retry != nil {
		retry := *l.retry
		s.Live.Retry = &retry
	}
	return s
}

// statusOf is what a state says by itself.
func statusOf(d Device, c *clock.Clock) (s Status, err error) {
	s.State, s.ID, s.Assurance = d.State.String(), d.ID, d.Owner.Assurance
	if d.Root.Kind != "" {
		s.Root = &d.Root
	}
	if d.Update.Phase != update.None {
		s.Update = summaryOfUpdate(d.Update)
	}
	now := c.Now()
	if s.Birth, err = summary(d.Birth.Chain, now); err != nil {
		return s, err
	}
	if s.Owner, err = summary(d.Owner.Chain, now); err != nil {
		return s, err
	}
	if d.Asking.CSR != nil {
		s.Asking = &AskingSummary{Since: d.Asking.Since, Tries: d.Asking.Tries, RetryAt: d.Asking.RetryAt}
	}
	return s, nil
}

func summary(chain string, now time.Time) (*Certificate, error) {
	if chain == "" {
		return nil, nil
	}
	certs, err := config.ParseCertificates([]byte(chain))
	if err != nil {
		return nil, err
	}
	c := certs[0]
	return &Certificate{
		Subject: c.Subject.String(), Serial: Serial(c), Issuer: c.Issuer.String(),
		NotAfter: c.NotAfter, DaysLeft: int(secondsLeft(c.NotAfter, now) / (24 * 60 * 60)),
	}, nil
}

// secondsLeft is the time from now to end. A time.Duration ends after 292 years, an
// IDevID's certificate in the year 9999.
func secondsLeft(end, now time.Time) int64 { return end.Unix() - now.Unix() }
