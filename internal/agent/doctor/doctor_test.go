package doctor_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"birthmark/internal/agent"
	"birthmark/internal/agent/agenttest"
	"birthmark/internal/agent/doctor"
	"birthmark/internal/config"
	"birthmark/internal/swtpm"
	"birthmark/internal/swtpm/swtpmtest"
	"birthmark/pkg/rot"
	"birthmark/pkg/rot/tpm"
	"birthmark/pkg/store"
)

// A patient is a device in service.
type patient struct {
	cfg   *config.Config
	tpm   *swtpm.TPM
	agent *agent.Agent
	stop  func()
}

func inService(t *testing.T, bench *agenttest.Lab, id string) *patient {
	t.Helper()
	p := &patient{tpm: swtpmtest.Start(t)}
	p.cfg = bench.Device(t, id, p.tpm.Address())
	var err error
	if p.agent, err = agent.New(p.cfg, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.agent.Run(ctx) }()
	stopped := false
	p.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := errors.Join(<-done, p.agent.Close()); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(p.stop)
	select {
	case <-bench.InService(id):
	case <-time.After(30 * time.Second):
		t.Fatal("the device does not get into service")
	}
	return p
}

// loaded is a configuration from nowhere.
func loaded(c *config.Config) *config.Loaded { return &config.Loaded{Config: *c} }

// check finds a check by its name.
func check(t *testing.T, r doctor.Report, name string) doctor.Check {
	t.Helper()
	for _, c := range r.Checks {
		if c.Name == name {
			return c
		}
	}
	t.Errorf("no check %q in %+v", name, r.Checks)
	return doctor.Check{}
}

func TestADeviceThatIsWell(t *testing.T) {
	p := inService(t, agenttest.StartLab(t), "dev-well")
	p.cfg.Birth.PasswordFile += "-gone" // no credential is used, so none is missed
	well := func(when string, r doctor.Report) {
		t.Helper()
		if err := r.Err(); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		for name, says := range map[string]string{
			"configuration": "without mistakes", "state": "dev-well is operational", "audit log": "an unbroken chain", "disk": "MiB free",
			"tpm": "firmware", "tpm ek certificate": "is there", "tpm lockout": "0 wrong tries", "tpm handles": "sessions loaded",
			"idevid": "its key is in the TPM", "ldevid": "its key is in the TPM",
			"est maker": "is trusted", "est owner": "is trusted", "broker": "is trusted",
		} {
			if c := check(t, r, name); c.Result != doctor.OK || !strings.Contains(c.Found, says) {
				t.Errorf("%s: %+v, want it ok, and to say %q", when, c, says)
			}
		}
		check(t, r, "clock") // a machine of tests need not be synchronised
	}
	well("examined by the agent", doctor.Examine(t.Context(), doctor.Patient{Config: loaded(p.cfg), Root: p.agent.Root}))
	before, _ := os.ReadDir(p.cfg.Device.State)

	// Another program, while the agent has the only connection to the TPM.
	r := doctor.Examine(t.Context(), doctor.Patient{Config: loaded(p.cfg)})
	if c := check(t, r, "tpm"); c.Result != doctor.Warn || !strings.Contains(c.Do, "birthmark-admin") {
		t.Errorf("examined beside the agent: %+v", c)
	}
	if c := check(t, r, "ldevid"); c.Result != doctor.OK || !strings.Contains(c.Found, "was not looked for") {
		t.Errorf("examined beside the agent: %+v", c)
	}

	p.stop()
	well("examined without an agent", doctor.Examine(t.Context(), doctor.Patient{Config: loaded(p.cfg)}))
	after, _ := os.ReadDir(p.cfg.Device.State)
	if len(before) == 0 || len(before) != len(after) {
		t.Errorf("there were %d files in the state folder, now there are %d", len(before), len(after))
	}
}

func TestANewDeviceIsNotTouched(t *testing.T) {
	bench := agenttest.StartLab(t)
	cfg := bench.Device(t, "dev-blank", swtpmtest.Start(t).Address())
	before, err := tpm.Examine(t.Context(), tpm.Config{Address: cfg.TPM.Address})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r := doctor.Examine(t.Context(), doctor.Patient{Config: loaded(cfg)})
		if err := r.Err(); err != nil {
			t.Errorf("%v: %+v", err, r.Checks)
		}
		if c := check(t, r, "tpm handles"); !strings.Contains(c.Found, fmt.Sprintf(" %d persistent keys", before.Persistent)) {
			t.Errorf("%+v, want %d persistent keys", c, before.Persistent)
		}
	}
	if _, err := os.Stat(cfg.Device.State); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state folder is there: %v", err)
	}
}

// TestWhatIsWrongIsFound brings one trouble after the other to a device.
func TestWhatIsWrongIsFound(t *testing.T) {
	bench := agenttest.StartLab(t)
	p := inService(t, bench, "dev-ill")
	p.stop()
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	deaf, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { deaf.Close() })
	go func() {
		for {
			c, err := deaf.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("220 this is no broker\r\n"))
			c.Close()
		}
	}()
	write := func(name, text string) func(*testing.T, *config.Config) {
		return func(t *testing.T, c *config.Config) {
			if err := os.WriteFile(filepath.Join(c.Device.State, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tc := range []struct {
		trouble     string
		begin       func(*testing.T, *config.Config)
		check       string
		result      doctor.Result
		unreachable bool
		says        string
	}{
		{"no TPM", func(t *testing.T, c *config.Config) { c.TPM.Address = "unix:/nowhere/sock" }, "tpm", doctor.Fail, true, "is the TPM enabled"},
		{"another TPM", func(t *testing.T, c *config.Config) { c.TPM.Address = swtpmtest.StartOther(t).Address() }, "tpm", doctor.Fail, false, "another device"},
		{"an EST server that is down", func(t *testing.T, c *config.Config) { c.EST.URL = "https://" + nobody.Addr().String() }, "est owner", doctor.Fail, true, "is the server running"},
		{"an EST server of another CA", func(t *testing.T, c *config.Config) { c.EST.Anchors = c.Birth.Anchors }, "est owner", doctor.Fail, false, "compare the server's root certificate"},
		{"anchors that are gone", func(t *testing.T, c *config.Config) { c.EST.Anchors += "-gone" }, "est owner", doctor.Fail, false, "correct the configuration"},
		{"a maker that is gone", func(t *testing.T, c *config.Config) { c.Birth.URL = "https://" + nobody.Addr().String() }, "est maker", doctor.Warn, false, "not needed any more"},
		{"a broker that is down", func(t *testing.T, c *config.Config) { c.Broker.URLs = []string{"mqtts://" + nobody.Addr().String()} }, "broker", doctor.Fail, true, "is the server running"},
		{"a broker of another CA", func(t *testing.T, c *config.Config) { c.Broker.Anchors = c.Birth.Anchors }, "broker", doctor.Fail, false, "compare the server's root certificate"},
		{"a broker without TLS", func(t *testing.T, c *config.Config) { c.Broker.URLs = []string{"mqtts://" + deaf.Addr().String()} }, "broker", doctor.Fail, false, "does not speak TLS"},
		{"a spare broker that is down", func(t *testing.T, c *config.Config) {
			c.Broker.URLs = []string{"mqtts://" + nobody.Addr().String(), c.Broker.URLs[0]}
		}, "broker", doctor.Warn, false, "is the server running"},
		{"a state that is damaged", write("state.json", `{"schema":1,"sta`), "state", doctor.Fail, false, "keeps a damaged file aside"},
		{"a state from the future", write("state.json", `{"schema":9,"state":"ascended"}`), "state", doctor.Fail, false, `"ascended" is not known`},
		{"a state that was damaged", write("state.json.damaged-1", `{`), "state", doctor.Warn, false, "look for the cause"},
		{"a certificate for another key", func(t *testing.T, c *config.Config) {
			d, _, err := store.Read[agent.Device](c.Device.State)
			if err != nil {
				t.Fatal(err)
			}
			d.Owner.Chain = d.Birth.Chain
			text, err := json.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			write("state.json", string(text))(t, c)
		}, "ldevid", doctor.Fail, false, "is for another key"},
		{"an audit log that was changed", func(t *testing.T, c *config.Config) {
			file := filepath.Join(c.Device.State, "audit.log")
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			write("audit.log", strings.Replace(string(text), "first-boot", "second-boot", 1))(t, c)
		}, "audit log", doctor.Fail, false, "keep a copy as evidence"},
	} {
		t.Run(tc.trouble, func(t *testing.T) {
			cfg := *p.cfg
			cfg.Device.State = filepath.Join(t.TempDir(), "state")
			if err := os.CopyFS(cfg.Device.State, os.DirFS(p.cfg.Device.State)); err != nil {
				t.Fatal(err)
			}
			tc.begin(t, &cfg)
			r := doctor.Examine(t.Context(), doctor.Patient{Config: loaded(&cfg)})
			c := check(t, r, tc.check)
			if c.Result != tc.result || c.Unreachable != tc.unreachable || !strings.Contains(c.Found+" "+c.Do, tc.says) || c.Do == "" {
				t.Errorf("%+v, want %s, unreachable %t, and to say %q", c, tc.result, tc.unreachable, tc.says)
			}
			var failed *doctor.FailedError
			switch err := r.Err(); {
			case tc.result == doctor.Warn && err != nil:
				t.Errorf("%v, want warnings only: %+v", err, r.Checks)
			case tc.result == doctor.Fail && (!errors.As(err, &failed) || failed.Unreachable != tc.unreachable):
				t.Errorf("%#v, want a failure, unreachable %t", err, tc.unreachable)
			}
		})
	}
}

func TestARootThatTheAgentHasNotIsSaid(t *testing.T) {
	cfg := config.Default()
	cfg.Device.State = t.TempDir()
	r := doctor.Examine(t.Context(), doctor.Patient{Config: loaded(&cfg), Root: func() (rot.Root, error) { return nil, rot.ErrLockout }})
	if c := check(t, r, "tpm"); c.Result != doctor.Fail || !strings.Contains(c.Do, "wait for the TPM to recover") {
		t.Errorf("%+v", c)
	}
}
