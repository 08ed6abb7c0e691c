package agent

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"time"

	"birthmark/internal/agent/update"
	"birthmark/internal/metrics"
	"birthmark/internal/version"
	"birthmark/pkg/lifecycle"
)

// textfileInterval is what a textfile collector is read at, or more often.
const textfileInterval = time.Minute

// Metrics are the agent's numbers, as Prometheus reads them.
func (a *Agent) Metrics() ([]byte, error) {
	s := a.Status()
	gauge := func(name, help string, samples ...metrics.Sample) metrics.Family {
		return metrics.Family{Name: "birthmark_" + name, Kind: metrics.Gauge, Help: help, Samples: samples}
	}
	counter := func(name, help string, samples ...metrics.Sample) metrics.Family {
		return metrics.Family{Name: "birthmark_" + name, Kind: metrics.Counter, Help: help, Samples: samples}
	}
	one := func(value float64) metrics.Sample { return metrics.Sample{Value: value} }
	labelled := func(value float64, name, label string) metrics.Sample {
		return metrics.Sample{Labels: []metrics.Label{{Name: name, Value: label}}, Value: value}
	}

	info := metrics.Sample{Value: 1, Labels: []metrics.Label{{Name: "version", Value: version.String()}, {Name: "arch", Value: runtime.GOARCH}, {Name: "id", Value: s.ID}}}
	var states, expiry, failures []metrics.Sample
	for _, state := range []lifecycle.State{lifecycle.Blank, lifecycle.Born, lifecycle.Enrolled, lifecycle.Operational} {
		states = append(states, labelled(metrics.Bool(s.State == state.String()), "state", state.String()))
	}
	for _, c := range []struct {
		name string
		cert *Certificate
	}{{"idevid", s.Birth}, {"ldevid", s.Owner}} {
		if c.cert != nil {
			expiry = append(expiry, labelled(float64(secondsLeft(c.cert.NotAfter, a.clock.Now())), "certificate", c.name))
		}
	}
	var kinds []string
	for _, t := range troubles {
		if !slices.Contains(kinds, t.kind) {
			kinds = append(kinds, t.kind)
			failures = append(failures, labelled(float64(s.Live.Failures[t.kind]), "kind", t.kind))
		}
	}
	l := s.Live
	var phases []metrics.Sample
	for _, phase := range []update.Phase{update.Writing, update.Written, update.Armed, update.Trial, update.Settled} {
		phases = append(phases, labelled(metrics.Bool(s.Update != nil && s.Update.Phase == phase), "phase", string(phase)))
	}
	var writing update.Progress
	if l.Update.Progress != nil {
		writing = *l.Update.Progress
	}
	return metrics.Text(
		gauge("info", "The agent and its device.", info),
		gauge("start_time_seconds", "When the agent was started, in Unix time.", one(float64(l.Started.UnixMilli())/1000)),
		gauge("state", "Where the device stands in its life: 1 for the state that it is in.", states...),
		gauge("cert_expiry_seconds", "Time until a certificate expires, by the agent's clock.", expiry...),
		gauge("time_trusted", "Whether the kernel says that its clock is synchronised.", one(metrics.Bool(l.Clock.Trusted))),
		gauge("broker_session_up", "Whether there is a session with the broker.", one(metrics.Bool(l.Broker.Up))),
		counter("broker_sessions_total", "Sessions with the broker.", one(float64(l.Broker.Sessions))),
		counter("broker_attempts_total", "Attempts to get a session with the broker.", one(float64(l.Broker.Attempts))),
		gauge("outbox_messages", "Messages that wait for the broker.", one(float64(l.Outbox.Waiting))),
		gauge("outbox_bytes", "Bytes of the messages that wait for the broker.", one(float64(l.Outbox.Bytes))),
		counter("outbox_dropped_total", "Messages dropped for want of room, durable ones included.", one(float64(l.Outbox.Dropped))),
		counter("outbox_dropped_durable_total", "Durable messages dropped for want of room.", one(float64(l.Outbox.DroppedDurable))),
		gauge("tpm_up", "Whether the TPM is open.", one(metrics.Bool(l.TPM.Open))),
		counter("tpm_commands_total", "Commands sent to the TPM.", one(float64(l.TPM.Commands))),
		gauge("tpm_last_command_seconds", "How long the last command took the TPM.", one(l.TPM.LastMS/1000)),
		gauge("firmware_update", "Where the last update of the firmware stands: 1 for the phase that it is in.", phases...),
		gauge("firmware_written_bytes", "Bytes of new firmware that are written, while it is.", one(float64(writing.Done))),
		gauge("firmware_writing_bytes", "Bytes of new firmware that are to be written, while it is.", one(float64(writing.Total))),
		gauge("firmware_writing_bytes_per_second", "How fast new firmware is written, while it is.", one(float64(writing.Rate))),
		counter("step_failures_total", "Failures of a step of the device's life, by the kind of the cause.", failures...),
	)
}

// keepTextfile writes the metrics to the file at path until ctx ends. A file that
// stayed would say that the agent still runs, so it is removed then.
func (a *Agent) keepTextfile(ctx context.Context, path string) {
	defer func() {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			a.log.Warn("cannot remove the metrics", "path", path, "err", err)
		}
	}()
	every := time.NewTicker(textfileInterval)
	defer every.Stop()
	defer a.heart.rest(textfilePart)
	for {
		a.heart.beat(textfilePart, workLimit)
		if err := a.writeTextfile(path); err != nil {
			a.log.Warn("cannot write the metrics", "path", path, "err", err)
		}
		a.heart.beat(textfilePart, textfileInterval+workLimit)
		select {
		case <-every.C:
		case <-ctx.Done():
			return
		}
	}
}

// writeTextfile replaces the file at path at once, so that nobody reads half of it.
// It is not synced: after a power cut it would be wrong anyway. The draft's name does
// not end in .prom, or it would be read.
func (a *Agent) writeTextfile(path string) error {
	text, err := a.Metrics()
	if err != nil {
		return err
	}
	draft := path + ".new"
	if err := os.WriteFile(draft, text, 0o644); err != nil {
		return err
	}
	err = os.Chmod(draft, 0o644) // whatever the umask: somebody else reads it
	if err == nil {
		err = os.Rename(draft, path)
	}
	return err
}
