package agent

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Print writes s for people. Names in it may come from a TPM or a CA, so nothing in
// it reaches the terminal that is not printable.
func (s Status) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(key, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", key, Printable(fmt.Sprintf(format, args...)))
	}
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
	if s.Update != nil {
		line("firmware", "%s", s.Update)
	}
	if s.Live != nil {
		s.Live.print(line)
	}
	return t.Flush()
}

func (l *Live) print(line func(key, format string, args ...any)) {
	line("agent", "%s, since %s", l.Version, l.Started.Format(time.RFC3339))
	trusted := "synchronised"
	if !l.Clock.Trusted {
		trusted = "not synchronised"
	}
	line("clock", "%s, %s", l.Clock.Now.UTC().Format(time.RFC3339), trusted)
	switch {
	case l.TPM.Open:
		line("TPM", "open; %d commands, the last took %.1f ms", l.TPM.Commands, l.TPM.LastMS)
	case l.TPM.Error != "":
		line("TPM", "not open: %s", l.TPM.Error)
	default:
		line("TPM", "not open yet")
	}
	if l.Broker.Up {
		line("broker", "session up since %s; %d so far", l.Broker.Since.Format(time.RFC3339), l.Broker.Sessions)
	} else {
		line("broker", "no session; %d so far, in %d attempts", l.Broker.Sessions, l.Broker.Attempts)
	}
	line("outbox", "%d messages wait, %d bytes; %d dropped", l.Outbox.Waiting, l.Outbox.Bytes, l.Outbox.Dropped)
	if l.Outbox.Disk != "" {
		line("", "the disk: %s", l.Outbox.Disk)
	}
	if p := l.Update.Progress; p != nil {
		line("writing", "%d of %d bytes, %d bytes a second", p.Done, p.Total, p.Rate)
	}
	if l.Retry != nil {
		line("waiting", "%s failed in state %s, attempt %d, again at %s", l.Retry.Kind, l.Retry.State, l.Retry.Attempt, l.Retry.At.Format(time.RFC3339))
		line("", "%s", l.Retry.Error)
		if l.Retry.Hint != "" {
			line("", "%s", l.Retry.Hint)
		}
	}
	const shown = 3
	for _, t := range l.Troubles[max(0, len(l.Troubles)-shown):] {
		var details []string
		for _, key := range slices.Sorted(maps.Keys(t.Details)) {
			details = append(details, key+"="+t.Details[key])
		}
		line("trouble", "%s, %d times: %s: %s", t.At.Format(time.RFC3339), t.Times, t.Message, strings.Join(details, " "))
	}
}
