package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"birthmark/internal/agent"
	"birthmark/internal/agent/agenttest"
	"birthmark/pkg/fota"
)

// noInstaller stands for a device without one.
type noInstaller struct{}

func (noInstaller) Status(context.Context) (fota.Status, error) {
	return fota.Status{}, os.ErrNotExist
}
func (noInstaller) Install(context.Context, io.ReaderAt, int64, func(done, total int64)) error {
	return os.ErrNotExist
}
func (noInstaller) Arm(context.Context, fota.Version) error { return os.ErrNotExist }
func (noInstaller) Cancel(context.Context) error            { return os.ErrNotExist }
func (noInstaller) Bless(context.Context) error             { return os.ErrNotExist }

// TestArmedFirmwareFreezesTheIdentity: no key is made for an owner, and no certificate
// asked for, as long as the next start may be that of another release.
func TestArmedFirmwareFreezesTheIdentity(t *testing.T) {
	p := newPatient(t, agenttest.StartLab(t), "dev-frozen")
	state := filepath.Join(p.cfg.Device.State, "state.json")
	p.agent.Close()
	text, err := json.Marshal(map[string]any{"schema": 1, "update": map[string]any{"phase": "armed", "version": "9.9.9+sv9", "boot": "x"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(state, text, 0o600); err != nil {
		t.Fatal(err)
	}
	p.reopen()
	p.agent.UpdateBy(noInstaller{}, func(context.Context) error { return nil })
	p.start()
	for deadline := time.After(bootLimit); ; {
		s := p.agent.Status()
		if s.Live.Retry != nil && s.Live.Retry.Kind == "firmware" {
			if s.State != "born" || s.Owner != nil || s.Asking != nil || !strings.Contains(s.Live.Retry.Error, "armed or on trial") {
				t.Errorf("frozen it is %s, asking %+v: %s; want it born, and asking nobody", s.State, s.Asking, s.Live.Retry.Error)
			}
			break
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-deadline:
			t.Fatalf("not frozen within %v: %+v", bootLimit, s)
		}
	}
	p.stop()
}

// TestAnAgentThatStopsLeavesATrial: what cannot get better by waiting ends an agent, and
// nobody would start the system anew for it.
func TestAnAgentThatStopsLeavesATrial(t *testing.T) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	p := newPatient(t, agenttest.StartLab(t), "dev-trial")
	p.agent.Close()
	// The release without a name is the one that runs here.
	text, err := json.Marshal(map[string]any{"schema": 1, "state": "made-up", "update": map[string]any{"phase": "trial", "boot": strings.TrimSpace(string(boot)), "starts": 1}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.cfg.Device.State, "state.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	p.reopen()
	restarted := make(chan struct{}, 1)
	p.agent.UpdateBy(noInstaller{}, func(context.Context) error { restarted <- struct{}{}; return nil })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- p.agent.Run(ctx) }()
	select {
	case <-restarted:
	case err := <-ended:
		t.Fatalf("the agent ended, with %v, and the trial goes on", err)
	case <-time.After(bootLimit):
		t.Fatalf("no restart within %v: %+v", bootLimit, p.agent.Status().Update)
	}
	if s := p.agent.Status(); s.Update.Why == nil || !strings.Contains(s.Update.Why.Reason, `"made-up" is not known`) {
		t.Errorf("the reason is %+v, want the state that is not known", s.Update.Why)
	}
	cancel()
	var stop *agent.StopError
	if err := <-ended; !errors.As(err, &stop) {
		t.Errorf("it ended with %v, want a StopError", err)
	}
	if err := p.agent.Close(); err != nil {
		t.Error(err)
	}
}
