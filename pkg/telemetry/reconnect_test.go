package telemetry

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"birthmark/internal/lab/broker"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// A credential is what a device shows and whom it trusts, at one time.
type credential struct {
	cert tls.Certificate
	root *x509.Certificate
}

// newCredential is a device's credential and the broker's of the same owner.
func newCredential(device string) (credential, tls.Certificate) {
	root, key := mustCertificate("root", nil, nil)
	identity := func(name string) tls.Certificate {
		leaf, leafKey := mustCertificate(name, root, key)
		return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: leafKey, Leaf: leaf}
	}
	return credential{identity(device), root}, identity("broker")
}

// holder is a Link's TLS that says what is in it now.
type holder struct{ atomic.Pointer[credential] }

func (h *holder) TLS(server string) (*tls.Config, error) {
	now := h.Load()
	roots := x509.NewCertPool()
	roots.AddCert(now.root)
	return &tls.Config{RootCAs: roots, ServerName: server, Certificates: []tls.Certificate{now.cert}}, nil
}

func TestReconnectShowsTheNewCredential(t *testing.T) {
	old, oldBroker := newCredential("dev-1")
	renewed, newBroker := newCredential("dev-1")
	for name, opening := range map[string]bool{"in a session": false, "while one is opened": true} {
		synctest.Test(t, func(t *testing.T) {
			b := &fakeBroker{cert: &oldBroker, deaf: opening}
			l := testLink(t, b)
			var now holder
			now.Store(&old)
			l.TLS = now.TLS
			l.Reconnect() // means nothing before Run
			running(t, l)
			start := time.Now()

			now.Store(&renewed)
			b.set(func() { b.cert, b.deaf = &newBroker, false })
			l.Reconnect()
			synctest.Wait()
			if b.connections() != 2 || !l.Outbox.Online() || time.Since(start) > 0 {
				t.Fatalf("%s: %d connections after %v, online %t: want the second at once", name, b.connections(), time.Since(start), l.Outbox.Online())
			}
			if !b.shown[0].Equal(old.cert.Leaf) || !b.shown[1].Equal(renewed.cert.Leaf) {
				t.Errorf("%s: the certificates shown are not the old and the new one", name)
			}
			if leave := slices.Index(b.log, "DISCONNECT"); (leave >= 0) == opening {
				t.Errorf("%s: packets %q: want a goodbye only from a session", name, b.log)
			}
		})
	}
}

func TestReconnectLosesAndRepeatsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBroker{}
		l := testLink(t, b)
		running(t, l)
		for range 20 {
			put(t, l.Outbox, 2*inFlight)
			l.Reconnect()
			synctest.Wait()
		}
		want := make([]int, 20*2*inFlight)
		for i := range want {
			want[i] = i + 1
		}
		if got := b.seqs(Topic("dev-1", "tele/system")); !slices.Equal(got, want) {
			t.Errorf("arrived: %v, want 1 to %d once each", got, len(want))
		}
		if b.connections() != 21 {
			t.Errorf("%d connections, want 21", b.connections())
		}
	})
}

// The owner's CA and the broker's certificate change; a command that is sent while
// the device is away reaches it, which shows that the broker has kept the session.
func TestReconnectKeepsTheSession(t *testing.T) {
	old, oldBroker := newCredential("dev-1")
	renewed, newBroker := newCredential("dev-1")
	roots := x509.NewCertPool()
	for _, root := range []*x509.Certificate{rootCert, old.root, renewed.root} {
		roots.AddCert(root)
	}
	var shown atomic.Pointer[tls.Certificate]
	shown.Store(&oldBroker)
	b, err := broker.Start(broker.Options{
		Address: "127.0.0.1:0", Roots: roots,
		Certificate: func() (*tls.Certificate, error) { return shown.Load(), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()

	var now holder
	now.Store(&old)
	var away sync.Mutex // held while the device may not connect
	connected, dialling, arrived := make(chan struct{}, 2), make(chan struct{}, 2), make(chan struct{}, 2)
	l := &Link{
		Brokers: []string{"mqtts://" + b.Addr().String()}, ID: "dev-1", Outbox: testOutbox(t), TLS: now.TLS,
		OnConnected: func() { connected <- struct{}{} },
		Log: slog.New(slog.NewTextHandler(writerFunc(func(line []byte) (int, error) {
			if bytes.Contains(line, []byte(Topic("dev-1", "cmd/ping/1"))) {
				arrived <- struct{}{}
			}
			return len(line), nil
		}), nil)),
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			dialling <- struct{}{}
			away.Lock()
			defer away.Unlock()
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	soon(t, dialling, "the first connection")
	soon(t, connected, "the first session")

	away.Lock()
	now.Store(&renewed)
	shown.Store(&newBroker)
	l.Reconnect()
	soon(t, dialling, "the second connection")
	command(t, b.Addr().String(), renewed.root, Topic("dev-1", "cmd/ping/1"))
	away.Unlock()
	soon(t, connected, "the second session")
	soon(t, arrived, "the command that was sent while the device was away")
	stop()
	if err := soon(t, ended, "the end"); err != nil {
		t.Error(err)
	}
}

// soon waits for something that happens on this machine.
func soon[T any](t *testing.T, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("%s did not come within %v", what, patience)
	}
	return v
}

// command sends a command as the operator, and returns when the broker has it.
func command(t *testing.T, addr string, root *x509.Certificate, topic string) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(root)
	o := mqtt.NewClientOptions()
	o.Servers = []*url.URL{{Scheme: "ssl", Host: addr}}
	o.SetClientID("operator").SetProtocolVersion(4).SetAutoReconnect(false)
	o.SetTLSConfig(&tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{mustIdentity("operator")}})
	c := mqtt.NewClient(o)
	defer c.Disconnect(0)
	for _, step := range []func() mqtt.Token{c.Connect, func() mqtt.Token { return c.Publish(topic, 1, false, "{}") }} {
		if token := step(); !token.WaitTimeout(patience) || token.Error() != nil {
			t.Fatal(fmt.Errorf("the operator cannot send a command: %w", token.Error()))
		}
	}
}
