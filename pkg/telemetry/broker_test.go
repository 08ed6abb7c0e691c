package telemetry

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// A fakeBroker is a broker in memory: TLS and MQTT 3.1.1 over net.Pipe, so that it
// also works in virtual time. Its fields say how it misbehaves; a test sets them
// before it dials, or under mu.
type fakeBroker struct {
	mu      sync.Mutex
	down    bool                              // connections are refused
	connack byte                              // code of CONNACK
	suback  []byte                            // codes of the SUBACKs to come; then 1
	mute    func(*packets.PublishPacket) bool // no PUBACK for this one
	deaf    bool                              // nothing is answered any more
	stuck   chan struct{}                     // until it is closed, nothing more is read
	hello   []byte                            // written after SUBACK
	wrap    func(net.Conn) net.Conn           // around the device's end of the pipe
	twist   twist                             // changes what is answered
	cert    *tls.Certificate                  // what it shows; nil is serverCert
	kick    bool                              // a client's older connection is closed when it comes again

	dials    []time.Time // when, and where to
	addrs    []string
	connects []*packets.ConnectPacket
	log      []string                 // packets as they came, by name and topic
	heard    []*packets.PublishPacket // published by devices, wills included
	conns    []net.Conn
	shown    []*x509.Certificate // by devices, nil if none
	clients  map[string]net.Conn // by client id, the newest
	unacked  int                 // PUBACKs from the device
}

// A twist is told of every packet and says what is answered instead. It must not write
// to c itself, but may start somebody who does.
type twist func(c net.Conn, p packets.ControlPacket, answer []byte) []byte

// stopReading, at the end of an answer, has the broker read no more on that
// connection, but send a message now and then. It is not sent itself.
var stopReading = []byte("\x00stop reading")

// dial is a Link's Dial.
func (b *fakeBroker) dial(_ context.Context, _, addr string) (net.Conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dials = append(b.dials, time.Now())
	b.addrs = append(b.addrs, addr)
	if b.down {
		return nil, errors.New("connection refused")
	}
	device, mine := net.Pipe()
	b.conns = append(b.conns, mine)
	cert := serverCert
	if b.cert != nil {
		cert = *b.cert
	}
	go b.serve(tls.Server(mine, &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert}))
	if b.wrap != nil {
		return b.wrap(device), nil
	}
	return device, nil
}

func (b *fakeBroker) serve(c *tls.Conn) {
	answers := make(chan []byte, 64)
	failed := make(chan struct{})
	go write(c, answers, failed)
	defer close(answers)
	var will *packets.PublishPacket
	for {
		p, err := packets.ReadPacket(c)
		if err != nil {
			break
		}
		if connect, ok := p.(*packets.ConnectPacket); ok {
			b.meet(c, connect.ClientIdentifier)
		}
		answer, w, stuck := b.take(c, p)
		if stuck != nil {
			<-stuck
		}
		if w != nil {
			will = w
		}
		if _, ok := p.(*packets.DisconnectPacket); ok {
			return
		}
		answer, deaf := bytes.CutSuffix(answer, stopReading)
		if len(answer) > 0 {
			answers <- answer
		}
		for deaf {
			select {
			case answers <- commandPacket(0x30, 2):
			case <-failed:
			}
			select {
			case <-failed: // looked at alone: write takes answers from then on, too
				deaf = false
			case <-time.After(10 * time.Second):
			}
		}
	}
	if will != nil {
		b.mu.Lock()
		b.heard = append(b.heard, will)
		b.mu.Unlock()
	}
}

// meet notes who comes, and hangs up on an older connection of the same name.
func (b *fakeBroker) meet(c *tls.Conn, id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var leaf *x509.Certificate
	if chain := c.ConnectionState().PeerCertificates; len(chain) > 0 {
		leaf = chain[0]
	}
	b.shown = append(b.shown, leaf)
	if older := b.clients[id]; older != nil && b.kick {
		older.Close()
	}
	if b.clients == nil {
		b.clients = map[string]net.Conn{}
	}
	b.clients[id] = c
}

// write writes answers while others are still being thought of: a broker that did
// not read while it writes could wait for a device that waits for it.
func write(c net.Conn, answers <-chan []byte, failed chan<- struct{}) {
	defer c.Close()
	var err error
	for a := range answers {
		if err != nil {
			continue // serve finds out for itself
		}
		if _, err = c.Write(a); err != nil {
			close(failed)
		}
	}
}

// take notes a packet and says what to answer, and whether to wait before; a
// CONNECT brings a will.
func (b *fakeBroker) take(c net.Conn, p packets.ControlPacket) (answer []byte, will *packets.PublishPacket, stuck chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch p := p.(type) {
	case *packets.ConnectPacket:
		b.note("CONNECT", "")
		b.connects = append(b.connects, p)
		will = &packets.PublishPacket{TopicName: p.WillTopic, Payload: p.WillMessage}
		answer = []byte{0x20, 2, 0, b.connack}
	case *packets.SubscribePacket:
		b.note("SUBSCRIBE", p.Topics[0])
		code := byte(1)
		if len(b.suback) > 0 {
			code, b.suback = b.suback[0], b.suback[1:]
		}
		answer = append([]byte{0x90, 3, byte(p.MessageID >> 8), byte(p.MessageID), code}, b.hello...)
	case *packets.UnsubscribePacket:
		b.note("UNSUBSCRIBE", p.Topics[0])
		answer = []byte{0xb0, 2, byte(p.MessageID >> 8), byte(p.MessageID)}
	case *packets.PublishPacket:
		b.note("PUBLISH", p.TopicName)
		b.heard = append(b.heard, p)
		if p.Qos == 1 && (b.mute == nil || !b.mute(p)) {
			answer = []byte{0x40, 2, byte(p.MessageID >> 8), byte(p.MessageID)}
		}
	case *packets.PubackPacket:
		b.unacked++
	case *packets.PingreqPacket:
		answer = []byte{0xd0, 0}
	case *packets.DisconnectPacket:
		b.note("DISCONNECT", "")
	}
	if b.twist != nil {
		answer = b.twist(c, p, answer)
	}
	if b.deaf {
		answer = nil
	}
	return answer, will, b.stuck
}

func (b *fakeBroker) note(packet, topic string) {
	if topic != "" {
		packet += " " + topic
	}
	b.log = append(b.log, packet)
}

// set changes how the broker behaves.
func (b *fakeBroker) set(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

// cut drops the newest connection.
func (b *fakeBroker) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conns[len(b.conns)-1].Close()
}

// connections is how many were tried.
func (b *fakeBroker) connections() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.dials)
}

// payloads is what was published on a topic, in order.
func (b *fakeBroker) payloads(topic string) (all []map[string]any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.heard {
		var m map[string]any
		if p.TopicName == topic && json.Unmarshal(p.Payload, &m) == nil {
			all = append(all, m)
		}
	}
	return all
}

// seqs are the sequence numbers that arrived on a topic.
func (b *fakeBroker) seqs(topic string) (all []int) {
	for _, m := range b.payloads(topic) {
		all = append(all, int(m["seq"].(float64)))
	}
	return all
}

// The certificates of the tests hold in virtual time, which starts in 2000, too.
var (
	rootCert, rootKey = mustCertificate("root", nil, nil)
	serverCert        = mustIdentity("broker")
)

// mustIdentity is a certificate by the tests' root, and its key.
func mustIdentity(name string) tls.Certificate {
	leaf, key := mustCertificate(name, rootCert, rootKey)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// mustCertificate makes a CA certificate when there is no issuer, else one for name,
// localhost and 127.0.0.1.
func mustCertificate(name string, issuer *x509.Certificate, issuerKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC),
		DNSNames:     []string{name, "localhost"},
		IPAddresses:  []net.IP{{127, 0, 0, 1}},
	}
	if issuer == nil {
		c.DNSNames, c.IPAddresses = nil, nil
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		issuer, issuerKey = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, issuer, &key.PublicKey, issuerKey)
	if err != nil {
		panic(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		panic(err)
	}
	return c, key
}

// clientConfig trusts the tests' root.
func clientConfig(server string) (*tls.Config, error) {
	roots := x509.NewCertPool()
	roots.AddCert(rootCert)
	return &tls.Config{RootCAs: roots, ServerName: server}, nil
}

// testOutbox is an outbox of default size that is closed at the end.
func testOutbox(t testing.TB) *Outbox {
	t.Helper()
	o, err := OpenOutbox(t.TempDir(), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

// testLink is a link of dev-1 to b.
func testLink(t testing.TB, b *fakeBroker) *Link {
	t.Helper()
	return &Link{Brokers: []string{"mqtts://broker"}, ID: "dev-1", TLS: clientConfig, Outbox: testOutbox(t), Dial: b.dial}
}

// put puts telemetry.
func put(t testing.TB, o *Outbox, n int) {
	t.Helper()
	for range n {
		if err := o.Put(Message{Topic: "tele/system", QoS: 1, Payload: []byte(`{"a": 1}`)}); err != nil {
			t.Fatal(err)
		}
	}
}
