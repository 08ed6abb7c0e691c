package broker

import (
	"crypto/tls"
	"encoding/json"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// TestWhoMayConnect is about certificates and client ids.
func TestWhoMayConnect(t *testing.T) {
	p := newPKI(t)
	b := startEmbedded(t, p, nil)
	for _, c := range []struct {
		name    string
		cert    tls.Certificate
		id      string
		welcome bool
	}{
		{"a device by its name", p.issue("a"), "a", true},
		{"a device by another's name", p.issue("b"), "a", false},
		{"a device without a client id", p.issue("a"), "", false},
		{"a device as the operator", p.issue("a"), operatorName, false},
		{"a device as an operator's client", p.issue("a"), "operator.1", false},
		{"a device whose name differs in case", p.issue("A"), "a", false},
		{"a name with a wildcard", p.issue("+"), "+", false},
		{"a name of two levels", p.issue("a/b"), "a/b", false},
		{"a name with a dot", p.issue("a.b"), "a.b", false},
		{"no name", p.issue(""), "", false},
		{"the operator", p.issue(operatorName), operatorName, true},
		{"an operator's second client", p.issue(operatorName), "operator.2", true},
		{"an operator without a client id", p.issue(operatorName), "", true},
		{"the operator as a device", p.issue(operatorName), "a", false},
	} {
		for _, version := range []byte{4, 5} {
			if _, code := dial(t, b, hello{cert: c.cert, id: c.id, version: version}); (code == 0) != c.welcome {
				t.Errorf("%s, MQTT version %d: got reason 0x%x, want welcome %v", c.name, version, code, c.welcome)
			}
		}
	}
}

// TestNoTLSNoEntry is about those who do not get as far as MQTT.
func TestNoTLSNoEntry(t *testing.T) {
	p := newPKI(t)
	b := startEmbedded(t, p, nil)
	foreign := newPKI(t).issue("a")
	for _, c := range []struct {
		name   string
		config *tls.Config
	}{
		{"without a certificate", &tls.Config{RootCAs: p.pool}},
		{"with a certificate of another root", &tls.Config{RootCAs: p.pool, Certificates: []tls.Certificate{foreign}}},
		{"with TLS 1.1", &tls.Config{RootCAs: p.pool, Certificates: []tls.Certificate{p.issue("a")}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}},
	} {
		conn, err := tls.Dial("tcp", b.addr, c.config)
		if err != nil {
			continue
		}
		defer conn.Close()
		// In TLS 1.3 the client's handshake ends before the server judges.
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err = conn.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s: got %v from the connection, want a refusal", c.name, err)
		}
	}
}

// TestJournal holds that all that happens is in the journal, and what is published
// is told, before it is acknowledged.
func TestJournal(t *testing.T) {
	p := newPKI(t)
	var mu sync.Mutex
	var heard []string
	b := startEmbedded(t, p, func(client, topic string, payload []byte) {
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, client+" "+topic+" "+string(payload))
	})
	a := mustDial(t, b, hello{cert: p.issue("a"), id: "a", will: "birthmark/v1/d/a/state"})
	a.publish("birthmark/v1/d/a/tele/system", false)
	a.publish("birthmark/v1/d/b/tele/system", false)
	a.subscribe("birthmark/v1/#")
	a.send(packets.Disconnect, packets.Packet{ReasonCode: packets.CodeDisconnectWillMessage.Code})
	a.gone()
	dial(t, b, hello{cert: p.issue("b"), id: "a"})

	mu.Lock()
	defer mu.Unlock()
	if want := []string{
		"a birthmark/v1/d/a/tele/system payload of birthmark/v1/d/a/tele/system",
		"a birthmark/v1/d/a/state will",
	}; !slices.Equal(heard, want) {
		t.Errorf("OnPublish was told %q, want %q", heard, want)
	}
	var got []string
	for line := range strings.Lines(b.journal.String()) {
		var e entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("a line of the journal is %q: %v", line, err)
		}
		if since := time.Since(e.Time); since < 0 || since > patience {
			t.Errorf("%q is %v old", line, since)
		}
		got = append(got, strings.Join([]string{e.Client, e.Event, e.Topic, e.Payload, e.Reason}, "|"))
	}
	for _, want := range []string{
		"a|connect|||",
		"a|publish|birthmark/v1/d/a/tele/system|payload of birthmark/v1/d/a/tele/system|",
		"a|denied|birthmark/v1/d/b/tele/system||no right to publish",
		"a|denied|birthmark/v1/#||no right to read",
		"a|publish|birthmark/v1/d/a/state|will|last will",
		`b|denied|||client id "a" is not the name in the certificate`,
	} {
		if !slices.Contains(got, want) {
			t.Errorf("the journal does not say %q, but\n%s", want, strings.Join(got, "\n"))
		}
	}
}

// TestOldProtocolIsHeldToTheRules: MQTT 3.1.1 has no word for a refused message,
// so the broker hangs up; nothing is delivered.
func TestOldProtocolIsHeldToTheRules(t *testing.T) {
	b := startEmbedded(t, newPKI(t), nil)
	operator := mustDial(t, b, hello{cert: b.pki.issue(operatorName), id: operatorName, version: 4})
	operator.subscribe("birthmark/v1/#")
	a := mustDial(t, b, hello{cert: b.pki.issue("a"), id: "a", version: 4})
	a.send(packets.Publish, packets.Packet{FixedHeader: packets.FixedHeader{Qos: 1}, PacketID: 1, TopicName: "birthmark/v1/d/b/state"})
	a.gone()
	operator.publish("birthmark/v1/d/a/cmd/last/1", false)
	if operator.hears("birthmark/v1/d/b/state", "birthmark/v1/d/a/cmd/last/1") {
		t.Error("a published the state of b")
	}
}

// TestBigPacketIsRefused holds both brokers against one limit.
func TestBigPacketIsRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, b *target, _ bool) {
		a := mustDial(t, b, hello{cert: b.pki.issue("a"), id: "a"})
		fits := packets.Packet{TopicName: "birthmark/v1/d/a/tele/x", Payload: make([]byte, packetLimit-100)}
		a.send(packets.Publish, fits)
		a.ping()
		big := fits
		big.Payload = make([]byte, packetLimit)
		_ = a.write(packets.Publish, big) // mosquitto hangs up before it has all of it
		a.gone()
	})
}

// TestClose ends with clients connected, with one that says nothing, and twice.
func TestClose(t *testing.T) {
	p := newPKI(t)
	started, err := Start(Options{Address: "127.0.0.1:0", Certificate: p.server, Roots: p.pool})
	if err != nil {
		t.Fatal(err)
	}
	b := &target{addr: started.Addr().String(), pki: p}
	a := mustDial(t, b, hello{cert: p.issue("a"), id: "a"})
	silent, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for range 2 {
		if err := started.Close(); err != nil {
			t.Error(err)
		}
	}
	a.gone()
	if conn, err := net.Dial("tcp", b.addr); err == nil {
		conn.Close()
		t.Error("the broker still listens")
	}
	if again, err := Start(Options{Address: b.addr, Certificate: p.server, Roots: p.pool}); err != nil {
		t.Errorf("cannot start on the same address again: %v", err)
	} else {
		again.Close()
	}
}

// TestCloseGoesItsOwnWay: mochi-mqtt's, in 2.7.9, waits for ever when a client leaves at
// that moment.
func TestCloseGoesItsOwnWay(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	disconnected := false
	l := &listener{Listener: tcp, log: slog.New(slog.DiscardHandler), goodbye: func() { disconnected = true }}
	if err := l.Init(nil); err != nil {
		t.Fatal(err)
	}
	go l.Serve(nil)
	l.Close(func(string) { t.Error("clients are disconnected in mochi-mqtt's way") })
	if !disconnected {
		t.Error("clients are not disconnected")
	}
}

// TestMosquittoConfigRefusesPaths that would be another line of the file, or mean
// another file somewhere else.
func TestMosquittoConfigRefusesPaths(t *testing.T) {
	good := Mosquitto{Port: 8883, CA: "/ca", Cert: "/cert", Key: "/key", ACL: "/acl", Data: "/data folder"}
	if _, err := MosquittoConfig(good); err != nil {
		t.Error(err)
	}
	for _, path := range []string{"", "ca.pem", "/ca\nallow_anonymous true", "/ca\x00"} {
		bad := good
		bad.CA = path
		if conf, err := MosquittoConfig(bad); err == nil {
			t.Errorf("path %q was accepted:\n%s", path, conf)
		}
	}
}
