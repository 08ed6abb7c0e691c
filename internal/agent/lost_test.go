package agent_test

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"birthmark/internal/agent"
	"birthmark/internal/agent/agenttest"
	"birthmark/internal/config"
	"birthmark/internal/swtpm/swtpmtest"
	"birthmark/pkg/rot"
)

// TestAKeyThatIsLostInServiceEndsIt clears the TPM of a device in service, or puts
// another one in its place. At the next handshake the agent knows, and says so, rather
// than trying the broker for ever.
func TestAKeyThatIsLostInServiceEndsIt(t *testing.T) {
	bench := agenttest.StartLab(t)
	for id, c := range map[string]struct {
		tpm  func() string // folder of the TPM that is there instead
		want error
	}{
		"dev-cleared":  {func() string { return swtpmtest.Dir(t) }, rot.ErrCleared},
		"dev-replaced": {func() string { other := swtpmtest.StartOther(t); other.Kill(); return other.Dir() }, rot.ErrReplaced},
	} {
		p := newPatient(t, bench, id)
		p.cfg.Broker.ReconnectWindow = config.Duration(time.Second)
		way := newWay(t, &p.cfg.Broker.URLs[0])
		ended := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		a := p.agent
		go func() { ended <- a.Run(ctx) }()
		p.awaitService()

		p.tpm.Kill()
		files, err := filepath.Glob(filepath.Join(c.tpm(), "tpm", "*.permall"))
		if err != nil || len(files) == 0 {
			t.Fatalf("the TPM has no files: %v", err)
		}
		for _, name := range files {
			text, err := os.ReadFile(name)
			if err == nil {
				err = os.WriteFile(filepath.Join(p.tpm.Dir(), "tpm", filepath.Base(name)), text, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		p.powerOn()
		way.cut()
		select {
		case err := <-ended:
			var stop *agent.StopError
			if !errors.As(err, &stop) || !errors.Is(err, c.want) {
				t.Errorf("%s: the agent ended with %v, want a StopError with %q", id, err, c.want)
			}
			if hint := agent.Hint(err); !strings.Contains(hint, "state folder") {
				t.Errorf("%s: hint %q, want one about the state folder", id, hint)
			}
		case <-time.After(bootLimit):
			t.Errorf("%s: %v after the TPM was changed the agent still tries", id, bootLimit)
			cancel()
			<-ended
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A way is one to a server, which can be cut.
type way struct {
	mu    sync.Mutex
	conns []net.Conn
}

// newWay puts itself between the device and the server at *address.
func newWay(t *testing.T, address *string) *way {
	t.Helper()
	server, err := url.Parse(*address)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	*address = server.Scheme + "://" + l.Addr().String()
	w := new(way)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.mu.Lock()
			w.conns = append(w.conns, c)
			w.mu.Unlock()
			go forward(c, server.Host)
		}
	}()
	return w
}

// cut hangs up on both sides; the next connection is let through.
func (w *way) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		c.Close()
	}
	w.conns = nil
}
