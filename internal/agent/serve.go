package agent

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"math"
	"sync"
	"time"

	"birthmark/internal/config"
	"birthmark/internal/sysroot"
	"birthmark/internal/version"
	"birthmark/pkg/fota"
	"birthmark/pkg/lifecycle"
	"birthmark/pkg/rot"
	"birthmark/pkg/telemetry"
)

// connect ends with the first session that the owner's broker accepts. The owner
// hears of the new credential at least once: the event is durable before the
// state that it leads to.
func (a *Agent) connect(ctx context.Context) error {
	link, key, err := a.link(ctx)
	if err != nil {
		return err
	}
	defer key.Close()
	if err := a.do(effectKnock, func() error { return link.Knock(ctx) }); err != nil {
		return err
	}
	d := a.store.Get()
	enrolled, err := telemetry.Event(d.ID, "enrolled", a.clock.Now(), credentialFacts(d.Owner))
	if err != nil {
		return err
	}
	if err := a.put(enrolled); err != nil {
		return err
	}
	return a.move(lifecycle.Accepted, func(*Device) {})
}

// firstReading is how long the first reading waits for a session. To keep it is a sync of
// the disk, which would keep the device from coming online.
const firstReading = 5 * time.Second

// serve keeps the device in service until ctx ends.
func (a *Agent) serve(ctx context.Context) error {
	link, key, err := a.link(ctx)
	if err != nil {
		return err
	}
	defer key.Close()
	work, stop := context.WithCancelCause(ctx)
	key.lost = stop
	var working sync.WaitGroup
	defer working.Wait()
	defer stop(nil)
	a.heart.rest(loopPart) // the link is at work
	defer a.heart.beat(loopPart, startLimit)
	defer a.heart.rest(linkPart)
	up, once := make(chan struct{}), sync.Once{}
	link.OnConnected = func() {
		a.live.connected()
		once.Do(func() { close(up) })
	}
	ended := make(chan error, 1)
	working.Go(func() {
		ended <- link.Run(work)
		stop(nil)
	})
	select {
	case <-up:
	case <-time.After(firstReading):
	case <-work.Done():
	}
	if work.Err() == nil {
		sampler := telemetry.Sampler{Disk: a.cfg.Device.State}
		a.report(&sampler)
		working.Go(func() { a.sample(work, &sampler) })
	}
	err = <-ended
	if err == nil && ctx.Err() == nil {
		err = context.Cause(work) // what the key said
	}
	return err
}

// link is the way to the owner's broker with the present LDevID.
func (a *Agent) link(ctx context.Context) (*telemetry.Link, *ldevid, error) {
	d := a.store.Get()
	anchors, err := config.ReadCertificates(a.cfg.Broker.Anchors)
	if err != nil {
		return nil, nil, err
	}
	key, err := openLDevID(ctx, a.root, rot.Blob(d.Owner.Key))
	if err != nil {
		return nil, nil, err
	}
	cert, err := credential(d.Owner.Chain, key)
	if err != nil {
		key.Close()
		return nil, nil, err
	}
	return &telemetry.Link{
		Brokers: a.cfg.Broker.URLs,
		ID:      d.ID,
		TLS: func(server string) (*tls.Config, error) {
			a.live.connecting()
			conf := a.clock.TLS(anchors, server)
			conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
			return conf, nil
		},
		Outbox:    a.outbox,
		Facts:     a.facts,
		KeepAlive: time.Duration(a.cfg.Broker.KeepAlive),
		Window:    time.Duration(a.cfg.Broker.ReconnectWindow),
		Log:       a.log,

		Beat:    func(within time.Duration) { a.heart.beat(linkPart, within) },
		OnClone: a.suspectClone,
	}, key, nil
}

// suspectClone tells the owner, and whoever reads the audit log, that the session is
// taken over again and again, which another device with this credential would do.
func (a *Agent) suspectClone() {
	a.record("clone-suspected")
	a.event("clone-suspected", credentialFacts(a.store.Get().Owner))
}

// facts is what the device says of itself when it comes online.
func (a *Agent) facts() map[string]any {
	d := a.store.Get()
	facts := map[string]any{
		"agent": version.String(),
		"time":  map[string]any{"now": a.clock.Now().UTC().Format(time.RFC3339), "trusted": a.clock.Trusted(), "floor": a.clock.Floor().UTC().Format(time.RFC3339)},
	}
	if fw, err := fota.Running(sysroot.FS()); err == nil {
		facts["fw"] = fw.String()
	}
	if cert := credentialFacts(d.Owner); cert != nil {
		facts["cert"] = cert
	}
	return facts
}

// credentialFacts is what the device says of its everyday credential, nil if
// there is none.
func credentialFacts(o Owner) map[string]any {
	chain, err := config.ParseCertificates([]byte(o.Chain))
	if err != nil {
		return nil
	}
	return map[string]any{
		"serial": Serial(chain[0]), "not_after": chain[0].NotAfter.UTC().Format(time.RFC3339),
		"generation": o.Generation, "assurance": o.Assurance,
	}
}

// sample puts one reading of the device into the outbox at every interval.
func (a *Agent) sample(ctx context.Context, sampler *telemetry.Sampler) {
	interval := time.Duration(a.cfg.Telemetry.Interval)
	every := time.NewTicker(interval)
	defer every.Stop()
	defer a.heart.rest(samplerPart)
	for {
		a.heart.beat(samplerPart, interval+workLimit)
		select {
		case <-every.C:
			a.report(sampler)
		case <-ctx.Done():
			return
		}
	}
}

// readingTopic is where the agent's readings go.
const readingTopic = "tele/system"

// report puts one reading into the outbox. It asks the TPM nothing. A reading
// that cannot be kept is said; the next one may fit.
func (a *Agent) report(sampler *telemetry.Sampler) {
	a.heart.beat(samplerPart, workLimit)
	if a.outbox.Online() {
		a.live.online()
	}
	reading := struct {
		telemetry.System
		CertDaysLeft *float64          `json:"cert_days_left,omitempty"`
		TPMLatencyMS *float64          `json:"tpm_latency_ms,omitempty"`
		Labels       map[string]string `json:"labels,omitempty"`
	}{System: sampler.Sample(), Labels: a.cfg.Telemetry.Labels}
	if chain, err := config.ParseCertificates([]byte(a.store.Get().Owner.Chain)); err == nil {
		days := math.Round(chain[0].NotAfter.Sub(a.clock.Now()).Hours()/24*100) / 100
		reading.CertDaysLeft = &days
	}
	if m, ok := a.root.(rot.Meter); ok {
		ms := float64(m.Stats().Last.Microseconds()) / 1000
		reading.TPMLatencyMS = &ms
	}
	payload, err := json.Marshal(reading)
	if err == nil {
		err = a.put(telemetry.Message{Topic: readingTopic, QoS: 1, Payload: payload})
	}
	if err != nil {
		a.log.Error("cannot keep a telemetry message", "err", err)
	}
}

func (a *Agent) put(m telemetry.Message) error {
	return a.do(effectPut, func() error { return a.outbox.Put(m) })
}
