package telemetry

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// patience is how long a test waits for something that happens on this machine.
const patience = 2 * time.Minute

// A mosquitto is Debian's broker on a port of its own. It demands certificates and
// takes their common names for user name and client id, as a fleet's should.
type mosquitto struct {
	t    *testing.T
	addr string
	conf string
	cmd  *exec.Cmd
}

func startMosquitto(t *testing.T) *mosquitto {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr)
	l.Close()
	key, err := x509.MarshalPKCS8PrivateKey(serverCert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name, kind string, text []byte) string {
		path := filepath.Join(dir, name)
		if kind != "" {
			text = pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: text})
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	settings := []string{
		fmt.Sprintf("listener %d 127.0.0.1", addr.Port),
		"cafile " + file("root.pem", "CERTIFICATE", rootCert.Raw),
		"certfile " + file("cert.pem", "CERTIFICATE", serverCert.Certificate[0]),
		"keyfile " + file("key.pem", "PRIVATE KEY", key),
		"require_certificate true", "use_identity_as_username true", "use_username_as_clientid true",
		"allow_anonymous false", "set_tcp_nodelay true", "log_type error", "log_type information",
	}
	if os.Getuid() == 0 {
		settings = append(settings, "user root") // or it could not read what was just written
	}
	m := &mosquitto{t: t, addr: addr.String(), conf: file("mosquitto.conf", "", []byte(strings.Join(settings, "\n")+"\n"))}
	t.Cleanup(m.kill)
	m.start()
	return m
}

// start starts it and waits until it says that it runs.
func (m *mosquitto) start() {
	m.t.Helper()
	program, err := exec.LookPath("mosquitto")
	if err != nil {
		program = "/usr/sbin/mosquitto" // not in everybody's PATH
	}
	m.cmd = exec.Command(program, "-c", m.conf)
	said, err := m.cmd.StderrPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := m.cmd.Start(); err != nil {
		m.t.Fatalf("cannot start Debian's mosquitto (make setup installs it): %v", err)
	}
	silent := time.AfterFunc(patience, func() { _ = m.cmd.Process.Kill() })
	defer silent.Stop()
	lines := bufio.NewScanner(said)
	var all []string
	for lines.Scan() {
		all = append(all, lines.Text())
		if strings.Contains(lines.Text(), " running") {
			go func() {
				for lines.Scan() { // or it would wait for a reader
				}
			}()
			return
		}
	}
	m.t.Fatalf("mosquitto does not run:\n%s", strings.Join(all, "\n"))
}

func (m *mosquitto) kill() {
	if m.cmd != nil {
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait() // killed, as it says
		m.cmd = nil
	}
}

// A heard is a message that the owner's side gets.
type heard struct {
	topic    string
	retained bool
	payload  map[string]any
}

// listen subscribes to all that dev-1 says.
func (m *mosquitto) listen(name string) <-chan heard {
	m.t.Helper()
	messages := make(chan heard, 100)
	o := mqtt.NewClientOptions()
	o.Servers = []*url.URL{{Scheme: "ssl", Host: m.addr}}
	o.SetClientID(name).SetProtocolVersion(4).SetAutoReconnect(false)
	conf, _ := clientConfig("localhost")
	conf.Certificates = []tls.Certificate{mustIdentity(name)}
	o.SetTLSConfig(conf)
	c := mqtt.NewClient(o)
	for _, step := range []func() mqtt.Token{c.Connect, func() mqtt.Token {
		return c.Subscribe(Topic("dev-1", "#"), 1, func(_ mqtt.Client, msg mqtt.Message) {
			h := heard{topic: msg.Topic(), retained: msg.Retained()}
			if err := json.Unmarshal(msg.Payload(), &h.payload); err != nil {
				m.t.Errorf("%s: %q: %v", msg.Topic(), msg.Payload(), err)
			}
			messages <- h
		})
	}} {
		if t := step(); !t.WaitTimeout(patience) || t.Error() != nil {
			m.t.Fatalf("the owner's side cannot listen: %v", t.Error())
		}
	}
	m.t.Cleanup(func() { c.Disconnect(0) })
	return messages
}

// want waits for a message on a topic with these members; others may come before.
func want(t *testing.T, messages <-chan heard, topic string, members map[string]any) heard {
	t.Helper()
	late := time.After(patience)
	var others []heard
next:
	for {
		select {
		case h := <-messages:
			for name, value := range members {
				if h.topic != Topic("dev-1", topic) || h.payload[name] != value {
					others = append(others, h)
					continue next
				}
			}
			return h
		case <-late:
			t.Fatalf("no message on %s with %v within %v, but %v", topic, members, patience, others)
		}
	}
}

// A gate lets connections through while it is open, and can cut the newest.
type gate struct {
	mu   sync.Mutex // held while shut
	conn net.Conn
}

func (g *gate) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	g.conn = c
	return c, err
}

func TestMosquitto(t *testing.T) {
	m := startMosquitto(t)
	var g gate
	connected := make(chan struct{}, 10)
	l := &Link{
		Brokers: []string{"mqtts://" + m.addr}, ID: "dev-1", Outbox: testOutbox(t), Window: time.Second, Dial: g.dial,
		TLS: func(server string) (*tls.Config, error) {
			conf, err := clientConfig(server)
			conf.Certificates = []tls.Certificate{mustIdentity("dev-1")}
			return conf, err
		},
		OnConnected: func() { connected <- struct{}{} },
	}
	up := func() {
		t.Helper()
		select {
		case <-connected:
		case <-time.After(patience):
			t.Fatalf("no session within %v", patience)
		}
	}

	stranger := &Link{Brokers: l.Brokers, ID: l.ID, Outbox: testOutbox(t), TLS: clientConfig}
	if err := stranger.Knock(t.Context()); err == nil {
		t.Error("a device without a certificate was let in")
	}
	if err := l.Knock(t.Context()); err != nil {
		t.Fatal(err)
	}

	owner := m.listen("owner")
	if h := want(t, owner, "state", map[string]any{"online": false, "session": 1.0}); !h.retained {
		t.Error("what the device said when it left is not retained")
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	defer stop()
	up()
	want(t, owner, "state", map[string]any{"online": true, "session": 2.0})
	put(t, l.Outbox, 2)
	want(t, owner, "tele/system", map[string]any{"seq": 1.0, "a": 1.0})
	want(t, owner, "tele/system", map[string]any{"seq": 2.0})

	// The connection is cut: the broker says the will.
	g.mu.Lock()
	g.conn.Close()
	want(t, owner, "state", map[string]any{"online": false, "session": 2.0})
	g.mu.Unlock()
	up()
	want(t, owner, "state", map[string]any{"online": true, "session": 3.0})

	// The broker dies, and forgets everything.
	g.mu.Lock()
	m.kill()
	put(t, l.Outbox, 1)
	m.start()
	owner = m.listen("owner")
	g.mu.Unlock()
	up()
	want(t, owner, "state", map[string]any{"online": true, "session": 4.0})
	want(t, owner, "tele/system", map[string]any{"seq": 3.0})

	stop()
	if err := <-ended; err != nil {
		t.Errorf("Run ended with %v", err)
	}
	want(t, owner, "state", map[string]any{"online": false, "session": 4.0})
	if s := l.Outbox.Stats(); s.Waiting != 0 || s.Dropped != 0 {
		t.Errorf("stats %+v, want nothing waiting: all was acknowledged", s)
	}
}
