package agent_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"birthmark/internal/agent"
	"birthmark/internal/agent/agenttest"
	"birthmark/internal/config"
	"birthmark/internal/lab"
	"birthmark/internal/lab/est"
	"birthmark/internal/swtpm"
	"birthmark/internal/swtpm/swtpmtest"
	"birthmark/pkg/lifecycle"
	"birthmark/pkg/rot"
	"birthmark/pkg/store"
)

// TestTroubleIsSaidAndWaitedFor puts something in the way of a new device. It must
// say on one line what is wrong and what to do, and remember nothing of it but
// whose TPM this is; once the trouble is gone it gets into service.
func TestTroubleIsSaidAndWaitedFor(t *testing.T) {
	bench := agenttest.StartLab(t)
	for _, trouble := range []struct {
		name  string
		begin func(*patient) (end func())
		state lifecycle.State // in which it waits
		says  string          // in the hint
	}{
		{name: "no TPM", says: "is the TPM enabled", begin: func(p *patient) func() {
			p.tpm.Kill()
			return p.powerOn
		}},
		{name: "busy TPM", says: "/dev/tpmrm0", begin: func(p *patient) func() {
			p.agent.FailOpen(1, rot.ErrBusy)
			return func() {}
		}},
		{name: "locked TPM", says: "wait for the TPM to recover", begin: func(p *patient) func() {
			p.agent.FailOpen(1, rot.ErrLockout)
			return func() {}
		}},
		{name: "no maker's CA", says: "is the server running", begin: func(p *patient) func() {
			return p.gate(&p.cfg.Birth.URL)
		}},
		{name: "no owner's CA", state: lifecycle.Born, says: "is the server running", begin: func(p *patient) func() {
			return p.gate(&p.cfg.EST.URL)
		}},
		{name: "no broker", state: lifecycle.Enrolled, says: "is the server running", begin: func(p *patient) func() {
			return p.gate(&p.cfg.Broker.URLs[0])
		}},
		{name: "an EST server of another CA", says: "compare the server's root certificate", begin: func(p *patient) func() {
			right := p.cfg.Birth.Anchors
			p.cfg.Birth.Anchors = p.cfg.EST.Anchors
			return func() { p.cfg.Birth.Anchors = right }
		}},
		{name: "a broker of another CA", state: lifecycle.Enrolled, says: "compare the server's root certificate", begin: func(p *patient) func() {
			right := p.cfg.Broker.Anchors
			p.cfg.Broker.Anchors = p.cfg.Birth.Anchors
			return func() { p.cfg.Broker.Anchors = right }
		}},
		{name: "a wrong password", says: "ask the CA's operator", begin: func(p *patient) func() {
			right := p.cfg.Birth.PasswordFile
			p.cfg.Birth.PasswordFile = filepath.Join(t.TempDir(), "password")
			if err := os.WriteFile(p.cfg.Birth.PasswordFile, []byte("no such password\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			return func() { p.cfg.Birth.PasswordFile = right }
		}},
		{name: "no password", says: "password", begin: func(p *patient) func() {
			right := p.cfg.Birth.PasswordFile
			p.cfg.Birth.PasswordFile += "-not-yet"
			return func() { p.cfg.Birth.PasswordFile = right }
		}},
	} {
		t.Run(trouble.name, func(t *testing.T) {
			p := newPatient(t, bench, "trouble-"+strings.ReplaceAll(strings.ReplaceAll(trouble.name, " ", "-"), "'", ""))
			end := trouble.begin(p)
			p.start()
			e := p.log.await(t, "step failed, will be tried again")
			if said := e["err"].(string) + " " + e["next"].(string); !strings.Contains(said, trouble.says) || strings.Contains(said, "\n") {
				t.Errorf("it said %q, want one line with %q", said, trouble.says)
			}
			p.stop()
			if d, _, err := store.Read[agent.Device](p.cfg.Device.State); err == nil && d.State != trouble.state {
				t.Errorf("state %s, want %s", d.State, trouble.state)
			}
			end()
			p.reopen()
			p.start()
			p.awaitService()
			p.stop()
		})
	}
}

// TestDamagedStateIsKeptAside scribbles over the state file of a device in service.
// The device says so, keeps the file, and gets into service again as itself.
func TestDamagedStateIsKeptAside(t *testing.T) {
	bench := agenttest.StartLab(t)
	p := newPatient(t, bench, "dev-damaged")
	p.start()
	p.awaitService()
	p.stop()
	file := filepath.Join(p.cfg.Device.State, "state.json")
	const damaged = `{"schema":1,"state":"operat`
	if err := os.WriteFile(file, []byte(damaged), 0o600); err != nil {
		t.Fatal(err)
	}
	p.reopen()
	p.start()
	e := p.log.await(t, "the state file was damaged; it is kept aside and the device starts from its birth again")
	if e["level"] != "ERROR" {
		t.Errorf("it said so at level %v, want ERROR", e["level"])
	}
	p.log.await(t, "session with the broker")
	p.stop()
	if kept, err := os.ReadFile(e["kept"].(string)); err != nil || string(kept) != damaged {
		t.Errorf("kept %q, %v: want what was found", kept, err)
	}
	agenttest.CheckState(t, p.cfg.Device.State, p.tpm.Address())
	agenttest.CheckIssued(t, filepath.Join(bench.Dir, "maker"), "dev-damaged")
	audit, err := os.ReadFile(filepath.Join(p.cfg.Device.State, "audit.log"))
	if err != nil || !bytes.Contains(audit, []byte("state-damaged")) {
		t.Errorf("the audit log does not tell of it: %v\n%s", err, audit)
	}
}

// A patient is a device that has trouble.
type patient struct {
	t         *testing.T
	tpm       *swtpm.TPM
	cfg       *config.Config
	inService <-chan struct{}
	log       logged
	agent     *agent.Agent
	stop      func()
}

func newPatient(t *testing.T, bench *agenttest.Lab, id string) *patient {
	p := &patient{t: t, tpm: swtpmtest.Start(t), inService: bench.InService(id), log: make(logged, 1000)}
	p.cfg = bench.Device(t, id, p.tpm.Address())
	p.reopen()
	return p
}

// reopen makes an agent on the state folder.
func (p *patient) reopen() {
	p.t.Helper()
	var err error
	if p.agent, err = agent.New(p.cfg, slog.New(slog.NewJSONHandler(p.log, nil))); err != nil {
		p.t.Fatal(err)
	}
}

// start runs the agent until stop is called.
func (p *patient) start() {
	ctx, cancel := context.WithCancel(p.t.Context())
	done := make(chan error, 1)
	a := p.agent
	go func() { done <- a.Run(ctx) }()
	p.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			p.t.Errorf("the agent ended with %v", err)
		}
		if err := a.Close(); err != nil {
			p.t.Error(err)
		}
	})
	p.t.Cleanup(p.stop)
}

func (p *patient) awaitService() {
	p.t.Helper()
	select {
	case <-p.inService:
	case <-time.After(bootLimit):
		p.t.Fatalf("not in service within %v", bootLimit)
	}
}

func (p *patient) powerOn() {
	p.t.Helper()
	tpm, err := swtpm.Start(p.t.Context(), p.tpm.Dir())
	if err != nil {
		p.t.Fatal(err)
	}
	p.tpm = tpm
	p.t.Cleanup(tpm.Kill)
}

// gate puts itself between the device and the server at *address. It hangs up at
// once until it is opened.
func (p *patient) gate(address *string) (open func()) {
	p.t.Helper()
	server, err := url.Parse(*address)
	if err != nil {
		p.t.Fatal(err)
	}
	gate, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { gate.Close() })
	*address = server.Scheme + "://" + gate.Addr().String()
	var opened atomic.Bool
	go func() {
		for {
			c, err := gate.Accept()
			if err != nil {
				return
			}
			if !opened.Load() {
				c.Close()
				continue
			}
			go forward(c, server.Host)
		}
	}()
	return func() { opened.Store(true) }
}

// forward joins c to the server at address until either hangs up.
func forward(c net.Conn, address string) {
	defer c.Close()
	s, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer s.Close()
	go func() {
		defer c.Close()
		io.Copy(c, s)
	}()
	io.Copy(s, c)
}

// logged receives the lines of a JSON log.
type logged chan map[string]any

func (l logged) Write(line []byte) (int, error) {
	var e map[string]any
	if err := json.Unmarshal(line, &e); err != nil {
		return 0, err
	}
	l <- e
	return len(line), nil
}

// await skips to the entry with the message msg.
func (l logged) await(t *testing.T, msg string) map[string]any {
	t.Helper()
	late := time.After(bootLimit)
	for {
		select {
		case e := <-l:
			if e["msg"] == msg {
				return e
			}
		case <-late:
			t.Fatalf("the log does not say %q", msg)
		}
	}
}

// TestAMakerThatIsGivenUpLeavesNothingBehind configures a device that waits for its
// maker's CA to do without one. It must not mistake the maker's request for the
// owner's.
func TestAMakerThatIsGivenUpLeavesNothingBehind(t *testing.T) {
	const id = "dev-orphan"
	bench := agenttest.StartLab(t, func(o *lab.Options) {
		o.EST = func(whose string, conf *est.Config) {
			if whose == lab.Maker {
				conf.Hold = func(*x509.CertificateRequest) time.Duration { return time.Hour }
			}
		}
	})
	p := newPatient(t, bench, id)
	p.start()
	p.log.await(t, "step failed, will be tried again")
	p.stop()

	password, err := bench.NewPassword(lab.Owner, id)
	if err != nil {
		t.Fatal(err)
	}
	p.cfg.Birth.Mode = config.BirthNone
	p.cfg.EST.PasswordFile = filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(p.cfg.EST.PasswordFile, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.reopen()
	p.start()
	p.awaitService()
	p.stop()
	agenttest.CheckIssued(t, filepath.Join(bench.Dir, "owner"), id)
}
