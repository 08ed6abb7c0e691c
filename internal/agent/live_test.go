package agent_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"birthmark/internal/agent"
	"birthmark/internal/agent/agenttest"
	"birthmark/internal/config"
	"birthmark/internal/metrics/metricstest"
)

// TestStatusAndMetricsTellHowItIsGoing follows a device whose broker is not there at
// first.
func TestStatusAndMetricsTellHowItIsGoing(t *testing.T) {
	p := newPatient(t, agenttest.StartLab(t), "dev-live")
	p.cfg.Telemetry.Labels = map[string]string{"site": "lab"}
	open := p.gate(&p.cfg.Broker.URLs[0])
	if s := p.agent.Status(); s.State != "blank" || !s.Running || s.Live.TPM.Open || s.Live.Broker.Up {
		t.Errorf("before it runs: %+v, %+v", s, s.Live)
	}
	p.start()
	p.log.await(t, "step failed, will be tried again")
	s := p.agent.Status()
	if s.State != "enrolled" || s.ID != "dev-live" || s.Owner == nil || !s.Live.TPM.Open || s.Live.TPM.Commands == 0 || s.Live.Broker.Up || s.Live.Broker.Attempts == 0 {
		t.Errorf("without a broker: %+v, %+v", s, s.Live)
	}
	if r := s.Live.Retry; r == nil || r.State != "enrolled" || r.Kind != "network" || r.Error == "" || !strings.Contains(r.Hint, "is the server running") || r.At.IsZero() {
		t.Errorf("without a broker it says of the failed step %+v", r)
	}
	if n := len(s.Live.Troubles); n == 0 || s.Live.Troubles[n-1].Details["err"] == "" {
		t.Errorf("without a broker it remembers the troubles %+v", s.Live.Troubles)
	}
	values := scrape(t, p.agent)
	for series, want := range map[string]float64{
		`birthmark_state{state="enrolled"}`: 1, `birthmark_state{state="operational"}`: 0, `birthmark_broker_session_up`: 0,
		`birthmark_broker_sessions_total`: 0, `birthmark_tpm_up`: 1, `birthmark_step_failures_total{kind="tpm"}`: 0,
	} {
		if got, ok := values[series]; !ok || got != want {
			t.Errorf("without a broker %s is %v (%t), want %v", series, got, ok, want)
		}
	}
	if values[`birthmark_step_failures_total{kind="network"}`] < 1 || values["birthmark_tpm_commands_total"] < 10 ||
		values[`birthmark_cert_expiry_seconds{certificate="ldevid"}`] < 3600 || values[`birthmark_cert_expiry_seconds{certificate="idevid"}`] < 7900*365*24*3600 {
		t.Errorf("without a broker: %v", values)
	}

	open()
	p.awaitService()
	s = p.agent.Status()
	if s.Birth.DaysLeft < 7900*365 { // it ends in 9999
		t.Errorf("the IDevID has %d days left until %v", s.Birth.DaysLeft, s.Birth.NotAfter)
	}
	if s.State != "operational" || !s.Live.Broker.Up || s.Live.Broker.Sessions != 1 || s.Live.Broker.Since.IsZero() || s.Live.Retry != nil {
		t.Errorf("in service: %+v, %+v", s, s.Live)
	}
	values = scrape(t, p.agent)
	if values["birthmark_broker_session_up"] != 1 || values["birthmark_broker_sessions_total"] != 1 || values["birthmark_tpm_last_command_seconds"] <= 0 {
		t.Errorf("in service: %v", values)
	}
	var text strings.Builder
	if err := s.Print(&text); err != nil || !strings.Contains(text.String(), "session up since") {
		t.Errorf("in service it prints\n%s%v", &text, err)
	}

	commands := values["birthmark_tpm_commands_total"]
	p.stop()
	if s := p.agent.Status(); s.Live.TPM.Open || float64(s.Live.TPM.Commands) < commands || s.Live.Broker.Up {
		t.Errorf("after the end: %+v, want the TPM closed and at least %v commands", s.Live, commands)
	}
}

func scrape(t *testing.T, a *agent.Agent) map[string]float64 {
	t.Helper()
	text, err := a.Metrics()
	if err != nil {
		t.Fatal(err)
	}
	values, err := metricstest.Parse(text)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return values
}

// newAgent is an agent that need not run.
func newAgent(t *testing.T, dir string) *agent.Agent {
	t.Helper()
	c := config.Default()
	c.Device.State = dir
	a, err := agent.New(&c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func TestTheMetricsOfANewDeviceAreWhole(t *testing.T) {
	values := scrape(t, newAgent(t, t.TempDir()))
	if values[`birthmark_state{state="blank"}`] != 1 || values["birthmark_start_time_seconds"] == 0 {
		t.Errorf("got %v", values)
	}
}

func TestLocalProgramsHaveSoManyNames(t *testing.T) {
	dir := t.TempDir()
	a := newAgent(t, dir)
	for i := range agent.GuestNames {
		if err := a.Tell(fmt.Sprintf("n%d", i), []byte("{}"), false); err != nil {
			t.Fatalf("name %d: %v", i, err)
		}
	}
	for range 2 {
		if err := a.Tell("one-more", []byte("{}"), false); !errors.Is(err, agent.ErrNoRoom) {
			t.Errorf("name %d: %v, want %v", agent.GuestNames+1, err, agent.ErrNoRoom)
		}
		if err := a.Tell("n0", []byte("{}"), false); err != nil {
			t.Errorf("a name that is known: %v", err)
		}
		a.Close()
		a = newAgent(t, dir) // which changes nothing
	}
}

func TestLocalProgramsCannotPushOutWhatIsDurable(t *testing.T) {
	a := newAgent(t, t.TempDir())
	object := fmt.Appendf(nil, `{"a":%q}`, strings.Repeat("x", 16<<10-10))
	taken := 0
	for ; a.Tell("big", object, true) == nil; taken++ {
		if taken > agent.GuestBytes/len(object)+1 {
			t.Fatalf("%d durable messages of %d bytes were taken, limit %d bytes", taken, len(object), agent.GuestBytes)
		}
	}
	if err := a.Tell("big", object, true); !errors.Is(err, agent.ErrNoRoom) || taken < 16 {
		t.Errorf("durable message %d: %v, want %v", taken, err, agent.ErrNoRoom)
	}
	if err := a.Tell("big", object, false); err != nil {
		t.Errorf("one that is not durable: %v", err)
	}
}

func TestTroublesAreKeptInBounds(t *testing.T) {
	c := config.Default()
	c.Device.State = t.TempDir()
	var passed strings.Builder
	a, err := agent.New(&c, slog.New(slog.NewTextHandler(&passed, &slog.HandlerOptions{Level: slog.LevelError})))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	log := a.Log().With("unit", "x")
	for i := range 100 {
		log.Warn(fmt.Sprintf("warning %d", i), "long", strings.Repeat("y", 10000), "line", "a\nb\x1b[1m")
	}
	for range 7 {
		log.Error("again", "err", errors.New("no"))
	}
	log.Info("all is well")
	all := a.Status().Live.Troubles
	last := all[len(all)-1]
	if len(all) != 16 || last.Message != "again" || last.Times != 7 || last.Details["err"] != "no" || last.Details["unit"] != "x" || last.Level != "ERROR" {
		t.Errorf("kept %d, last %+v; want 16, and the last 7 times", len(all), last)
	}
	if d := all[0].Details; all[0].Message != "warning 85" || len(d["long"]) > 600 || d["line"] != "a b [1m" {
		t.Errorf("first %s, with %d bytes, %q; want warning 85, cut, printable", all[0].Message, len(d["long"]), d["line"])
	}
	if n := strings.Count(passed.String(), "\n"); n != 7 {
		t.Errorf("%d lines were passed on, want the 7 errors", n)
	}
}

func TestTheTextfileIsReplacedEveryMinuteAndRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		a := newAgent(t, dir)
		path := filepath.Join(dir, "birthmark.prom")
		ctx, cancel := context.WithCancel(t.Context())
		go a.KeepTextfile(ctx, path)
		for range 3 {
			synctest.Wait()
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := metricstest.Parse(text); err != nil {
				t.Error(err)
			}
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
				t.Errorf("mode %v, %v; want 0644", info.Mode(), err)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute) // in the bubble
		}
		synctest.Wait()
		cancel()
		synctest.Wait()
		if files, _ := filepath.Glob(path + "*"); len(files) != 0 {
			t.Errorf("left behind: %v", files)
		}
	})
}
