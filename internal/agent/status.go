package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"text/tabwriter"
	"time"

	"birthmark/internal/config"
	"birthmark/pkg/clock"
	"birthmark/pkg/lifecycle"
	"birthmark/pkg/rot"
	"birthmark/pkg/store"
)

// Version is the version of the agent; the build sets it.
var Version = "dev"

// A Status is what the state folder says of a device.
type Status struct {
	State     string         `json:"state"`
	Running   bool           `json:"running"` // an agent holds the folder
	ID        string         `json:"id,omitempty"`
	Root      *rot.Identity  `json:"root,omitempty"`
	Birth     *Certificate   `json:"idevid,omitempty"`
	Owner     *Certificate   `json:"ldevid,omitempty"`
	Assurance rot.Assurance  `json:"assurance,omitempty"`
	Asking    *AskingSummary `json:"asking,omitempty"`
	Folder    string         `json:"folder"`
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
	s := Status{State: lifecycle.Blank.String(), Folder: dir}
	d, running, err := store.Read[Device](dir)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	s.State, s.Running, s.ID, s.Assurance = d.State.String(), running, d.ID, d.Owner.Assurance
	if d.Root.Kind != "" {
		s.Root = &d.Root
	}
	now := clock.Since(d.Floor).Now()
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
		NotAfter: c.NotAfter, DaysLeft: int(c.NotAfter.Sub(now).Hours() / 24),
	}, nil
}

// Print writes s for people.
func (s Status) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(key, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", key, fmt.Sprintf(format, args...)) }
	running := "no agent running"
	if s.Running {
		running = "agent running"
	}
	line("state", "%s (%s)", s.State, running)
	line("folder", "%s", s.Folder)
	if s.ID != "" {
		line("id", "%s", s.ID)
	}
	if s.Root != nil {
		line("root of trust", "%s %s", s.Root.Kind, s.Root.Vendor)
		line("EK", "sha256 %s", s.Root.EK)
	}
	for _, c := range []struct {
		name string
		cert *Certificate
	}{{"IDevID", s.Birth}, {"LDevID", s.Owner}} {
		if c.cert != nil {
			line(c.name, "%s, serial %s", c.cert.Subject, c.cert.Serial)
			line("", "by %s, until %s (%d days)", c.cert.Issuer, c.cert.NotAfter.Format(time.DateOnly), c.cert.DaysLeft)
		}
	}
	if s.Assurance != "" {
		line("assurance", "%s", s.Assurance)
	}
	if s.Asking != nil {
		line("asking", "since %s, %d answers so far", s.Asking.Since.Format(time.RFC3339), s.Asking.Tries)
	}
	return t.Flush()
}
