package agent_test

import (
	"context"
	"strings"
	"testing"

	"birthmark/internal/agent/agenttest"
	"birthmark/internal/config"
)

// TestAReloadedConfigurationIsGoneBy changes the broker of a device that cannot reach
// the one that it has.
func TestAReloadedConfigurationIsGoneBy(t *testing.T) {
	p := newPatient(t, agenttest.StartLab(t), "dev-reload")
	good := *p.cfg
	p.cfg.Broker.URLs = []string{"mqtts://127.0.0.1:1"}
	p.start()
	p.log.await(t, "step failed, will be tried again")
	if err := p.agent.Reload(t.Context(), &good); err != nil {
		t.Fatal(err)
	}
	p.awaitService()
	sessions := p.agent.Status().Live.Broker.Sessions
	labelled := good
	labelled.Telemetry.Labels = map[string]string{"site": "berlin"}
	if err := p.agent.Reload(t.Context(), &labelled); err != nil {
		t.Fatal(err)
	}
	p.log.await(t, "session with the broker")
	if s := p.agent.Status(); s.State != "operational" || len(p.agent.Stuck()) > 0 {
		t.Errorf("after %d sessions and a reload in service: state %s, stuck %v", sessions, s.State, p.agent.Stuck())
	}
}

func TestWhatADeviceIsCannotBeReloaded(t *testing.T) {
	p := newPatient(t, agenttest.StartLab(t), "dev-same")
	t.Cleanup(func() { p.agent.Close() })
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // nobody takes up what is not refused
	for want, change := range map[string]func(*config.Config){
		"[device]":    func(c *config.Config) { c.Device.ID = "another" },
		"tpm.address": func(c *config.Config) { c.TPM.Address = "/dev/tpm1" },
		"[doors]":     func(c *config.Config) { c.Doors.Folder = "/tmp" },
	} {
		other := *p.cfg
		change(&other)
		if err := p.agent.Reload(ctx, &other); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("another %s: got %v, want an error that names it", want, err)
		}
	}
}
