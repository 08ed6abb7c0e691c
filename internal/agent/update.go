package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"birthmark/internal/agent/firmware"
	"birthmark/internal/agent/update"
	"birthmark/internal/config"
	"birthmark/internal/sysroot"
	"birthmark/pkg/fota"
	"birthmark/pkg/fota/bundle"
	"birthmark/pkg/fota/source"
	"birthmark/pkg/lifecycle"
	"birthmark/pkg/rot"
	"birthmark/pkg/telemetry"
)

// UpdateBy lets a, which does not run yet, update the firmware of its device: by an
// installer, and by starting the system anew.
func (a *Agent) UpdateBy(installer update.Installer, restart func(context.Context) error) {
	a.update = update.New(update.Host{
		Load: func() update.State { return a.store.Get().Update },
		Save: func(change func(*update.State) error) error {
			return a.store.Update(func(d *Device) error { return change(&d.Update) })
		},
		Installer: installer,
		Open:      a.openBundle,
		Running:   func() (fota.Version, error) { return fota.Running(sysroot.FS()) },
		Boot:      systemStart,
		Restart:   restart,
		Ready:     a.ready,
		Reached:   a.live.reached,
		Lately:    a.live.lately,
		Tell:      a.tellUpdate,
		Record:    a.recordUpdate,
		Progress:  func(p update.Progress) { a.event("firmware-progress", p) },
		Do:        a.do,
		Beat: func(within time.Duration) {
			if within == 0 {
				a.heart.rest(updatePart)
				return
			}
			a.heart.beat(updatePart, within)
		},
		Now: a.clock.Now,
		Log: a.log,
	})
}

// Updates are those of the device's firmware; nil for an agent that has no means.
func (a *Agent) Updates() *update.Updater { return a.update }

// errFrozen keeps what a release on trial has to find as it is.
var errFrozen = errors.New("new firmware is armed or on trial, and the identity stays as it is until that is settled")

// frozen is why the device's identity cannot change now, if it cannot: no new key, and
// nothing that could take the old one's place.
func (a *Agent) frozen() error {
	if a.store.Get().Update.Freezes() {
		return errFrozen
	}
	return nil
}

// outlive stays when the loop has ended for good, until firmware that is on trial was
// left for that: nobody else would leave it.
func (a *Agent) outlive(ctx context.Context, err error) {
	if a.update == nil {
		return
	}
	a.live.stopped(err)
	a.heart.rest(loopPart)
	for !a.update.Looked() || a.store.Get().Update.Phase == update.Trial {
		if !Pause(ctx, time.Second) {
			return
		}
	}
}

// ready is why this agent is not well, by itself: what a release on trial is asked.
func (a *Agent) ready() error {
	if aside := a.store.Damaged(); aside != "" {
		return fmt.Errorf("the state file was damaged, and is kept as %s", aside)
	}
	if state := a.store.Get().State; !lifecycle.Known(state) {
		return fmt.Errorf("the state %q is not known to this version", state)
	}
	if err := a.live.whyStopped(); err != nil {
		return err
	}
	_, err := a.Root()
	return err
}

// openBundle opens a bundle as far as its signature. A server is believed by its own
// anchors, and shown the everyday certificate, if there is one.
func (a *Agent) openBundle(ctx context.Context, from update.From) (_ *update.Release, err error) {
	trust, err := firmware.Trust(a.clock)
	if err != nil {
		return nil, err
	}
	var src source.Source
	if from.Path != "" {
		src, err = source.File(from.Path)
	} else {
		src, from.Pin, err = a.openRemote(ctx, from.Pin)
	}
	if err != nil {
		return nil, err
	}
	b, err := bundle.Open(src, src.Size(), trust)
	if err != nil {
		src.Close()
		return nil, err
	}
	return &update.Release{Manifest: b.Manifest, Source: src, From: from}, nil
}

// A remote is a source on a server that knows who we are.
type remote struct {
	*source.Remote
	key *ldevid // nil without a certificate
}

func (r remote) Close() error {
	err := r.Remote.Close()
	if r.key != nil {
		r.key.Close()
	}
	return err
}

// openRemote opens an address, or goes on with what was pinned there.
func (a *Agent) openRemote(ctx context.Context, pin source.Pin) (source.Source, source.Pin, error) {
	settings := a.firmware.Load()
	if settings.ServerAnchors == "" {
		return nil, pin, &config.Error{Msg: "firmware.server_anchors is missing: without it, bundles are taken from files only"}
	}
	anchors, err := config.ReadCertificates(settings.ServerAnchors)
	if err != nil {
		return nil, pin, err
	}
	u, err := url.Parse(pin.URL)
	if err != nil {
		return nil, pin, errors.New("the address cannot be read") // which may hold what opens the door
	}
	conf := a.clock.TLS(anchors, u.Hostname())
	conf.ClientSessionCache = tls.NewLRUClientSessionCache(0) // or every loss would cost the TPM a signature
	var key *ldevid
	if owner := a.store.Get().Owner; owner.Key != "" {
		root, err := a.Root()
		if err != nil {
			return nil, pin, err
		}
		if key, err = openLDevID(ctx, root, rot.Blob(owner.Key)); err != nil {
			return nil, pin, err
		}
		cert, err := credential(owner.Chain, key)
		if err != nil {
			key.Close()
			return nil, pin, err
		}
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	options := source.Options{TLS: conf, BytesPerSecond: settings.BytesPerSecond}
	var src *source.Remote
	if pin.Size == 0 {
		src, err = source.HTTP(ctx, pin.URL, options)
	} else {
		src, err = source.Resume(ctx, pin, options)
	}
	if err != nil {
		if key != nil {
			key.Close()
		}
		return nil, pin, err
	}
	return remote{src, key}, src.Pin(), nil
}

// tellUpdate tells the owner where an update is, before it is remembered.
func (a *Agent) tellUpdate(s update.State) {
	a.event("firmware", summaryOfUpdate(s))
}

// event tells the owner something. What cannot be kept is said, and stops nothing.
func (a *Agent) event(kind string, data any) {
	id := a.store.Get().ID
	if id == "" { // nobody could tell who says so
		return
	}
	event, err := telemetry.Event(id, kind, a.clock.Now(), data)
	if err == nil {
		err = a.put(event)
	}
	if err != nil {
		a.log.Error("cannot keep an event", "event", kind, "err", err)
	}
}

// recordUpdate writes down where an update is.
func (a *Agent) recordUpdate(s update.State) {
	attrs := []slog.Attr{slog.String("phase", string(s.Phase)), slog.String("version", s.Version.String())}
	if s.Outcome != "" {
		attrs = append(attrs, slog.String("outcome", string(s.Outcome)))
	}
	if s.Why != nil {
		attrs = append(attrs, slog.String("why", s.Why.Reason))
	}
	a.log.LogAttrs(context.Background(), slog.LevelInfo, "firmware update", attrs...)
	a.record("firmware", attrs...)
}

// An UpdateSummary is the last update of the firmware in brief.
type UpdateSummary struct {
	Phase   update.Phase   `json:"phase"`
	Version string         `json:"version"`
	From    string         `json:"from"` // without what may be secret in an address
	Since   time.Time      `json:"since,omitzero"`
	Restart bool           `json:"restart,omitempty"` // the system is started anew for it, unasked
	Tries   int            `json:"tries,omitempty"`
	Starts  int            `json:"starts,omitempty"`
	Outcome update.Outcome `json:"outcome,omitempty"`
	Why     *update.Why    `json:"why,omitempty"`
}

func summaryOfUpdate(s update.State) *UpdateSummary {
	return &UpdateSummary{
		Phase: s.Phase, Version: s.Version.String(), From: s.From.String(), Since: s.Since, Restart: s.Restart,
		Tries: s.Tries, Starts: s.Starts, Outcome: s.Outcome, Why: s.Why,
	}
}

// String is a line for people.
func (s UpdateSummary) String() string {
	line := s.Version + " " + string(s.Phase)
	if s.Outcome != "" {
		line += ", " + string(s.Outcome)
	}
	if !s.Since.IsZero() {
		line += " since " + s.Since.UTC().Format(time.RFC3339)
	}
	if s.Why != nil {
		line += ": "
		if s.Why.Stage != "" {
			line += string(s.Why.Stage) + ": "
		}
		line += s.Why.Reason
	}
	return line
}

// systemStart names this start of the system, and says how long ago it was; proc(5).
func systemStart() (string, time.Duration, error) {
	id, err := os.ReadFile(sysroot.Path("/proc/sys/kernel/random/boot_id"))
	if err != nil {
		return "", 0, err
	}
	uptime, err := os.ReadFile(sysroot.Path("/proc/uptime"))
	if err != nil {
		return "", 0, err
	}
	first, _, _ := strings.Cut(string(uptime), " ")
	up, err := time.ParseDuration(first + "s")
	if err != nil {
		return "", 0, fmt.Errorf("cannot tell how long the system is up: %w", err)
	}
	return strings.TrimSpace(string(id)), up, nil
}
