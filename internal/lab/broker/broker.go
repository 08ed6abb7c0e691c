// Package broker is the lab's MQTT broker: for demonstrations, tests and small
// fleets. It is also where the rules of a fleet's broker are written down, for
// this broker and for mosquitto.
//
// [Start] brings up a broker inside the process. [MosquittoConfig] and [ACL] write
// what makes mosquitto 2 obey the same; a test tries every rule on both.
//
// # Who may connect
//
// TLS 1.2 or 1.3, and a certificate for client authentication that chains to the
// given roots. Its CN is the party's name: a device id, or "operator", which the CA
// must keep from devices. A CONNECT with another client id is refused, for whoever
// connects under somebody else's ends that client's session and throws away what is
// queued for it; as is one with a last will that the party could not publish
// itself. The operator may also use any client id that begins with "operator.", so
// that it can listen and speak at once, and gets one if it has none; mosquitto
// knows it by one id only.
//
// # Who may say and hear what
//
// One table, in rules.go. A device publishes below its own level and receives its
// commands and answers, and its groups' commands, whatever the group: commands
// carry their own signature. The operator reads everything and sends commands.
//
// A filter must lie within what its owner may read, or the subscription is refused;
// mosquitto grants any subscription and delivers only what may be read. A forbidden
// message is told to an MQTT 5 client by both (reason 0x87). MQTT 3.1.1 has no word
// for it: with QoS 1 this broker hangs up, mosquitto acknowledges. Neither delivers.
//
// # Limits
//
// 256 KiB a packet, 1000 messages queued for a client, sessions kept for 7 days,
// 10 s from the connection to CONNECT. The rest is what memory holds: retained
// messages are not counted, so a hostile device can fill it.
//
// # What is not promised
//
// Sessions, queued and retained messages are in memory and end with the process.
// The store that mochi-mqtt 2.7.9 brings along (bolt) was tried: it keeps a queued
// message without its packet identifier, so that the broker hangs up on the client
// that it is for, and a client that comes back loses its subscriptions and messages in
// it. Devices subscribe and publish their state again at every connection, so what a
// restart loses is commands to devices that were away. For more than that there is
// mosquitto, which keeps them.
package broker

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// Limits, of this broker and, where it has them, of mosquitto.
const (
	packetLimit   = 256 << 10          // bytes of a packet
	queueLimit    = 1000               // messages with QoS 1 or 2 kept for a client
	inflightLimit = 64                 // messages a client may send before they are acknowledged
	clientLimit   = 10_000             // connected clients
	sessionLife   = 7 * 24 * time.Hour // of a client that is away: commands do not live longer
	connectLimit  = 10 * time.Second   // from a connection to the end of CONNECT
)

// Options are what a broker needs. The first three are a must.
type Options struct {
	Address string         // host:port to listen on; port 0 for a free one
	Roots   *x509.CertPool // that clients' certificates chain to

	// Certificate is the broker's own, asked for at every connection.
	Certificate func() (*tls.Certificate, error)

	// OnPublish is told of every message that a client may publish, last wills
	// included, before it is acknowledged; of one that is sent again, again. It is
	// called from several goroutines, and holds up the client while it works; it
	// must return for Close to end.
	OnPublish func(client, topic string, payload []byte)

	// Journal gets a line of JSON for every event: time, client, event (connect,
	// disconnect, publish, denied), topic, payload, reason. One Write a line.
	Journal io.Writer

	Log *slog.Logger // for trouble; nil for none
}

// A Broker is running until it is closed.
type Broker struct {
	server *mqtt.Server
	addr   net.Addr
	close  sync.Once
}

// Start starts a broker.
func Start(o Options) (*Broker, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	tcp, err := net.Listen("tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("cannot start the broker: %w", err)
	}
	server := mqtt.New(&mqtt.Options{
		Capabilities:           capabilities(),
		Logger:                 slog.New(warnings{o.Log.Handler()}),
		SysTopicResendInterval: 3600, // seconds: nobody may read $SYS
	})
	l := &listener{Listener: tcp, log: o.Log, config: &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return o.Certificate() },
		ClientAuth:     tls.RequireAndVerifyClientCert,
		ClientCAs:      o.Roots,
	}}
	l.goodbye = func() {
		for _, c := range server.Clients.GetAll() {
			if c.Net.Conn != nil && !c.Closed() {
				_ = server.DisconnectClient(c, packets.ErrServerShuttingDown) // it may be gone
			}
		}
	}
	err = errors.Join(
		server.AddHook(&hook{onPublish: o.OnPublish, journal: &journal{w: o.Journal, log: o.Log}}, nil),
		server.AddListener(l),
	)
	if err == nil {
		err = server.Serve()
	}
	if err != nil {
		tcp.Close()
		return nil, fmt.Errorf("cannot start the broker: %w", err)
	}
	return &Broker{server: server, addr: tcp.Addr()}, nil
}

// capabilities is what mochi-mqtt offers to clients, and its limits.
func capabilities() *mqtt.Capabilities {
	c := mqtt.NewDefaultServerCapabilities()
	c.MaximumClients = clientLimit
	c.MaximumPacketSize = packetLimit
	c.MaximumInflight = queueLimit
	c.MaximumClientWritesPending = queueLimit
	c.ReceiveMaximum = inflightLimit
	c.MaximumSessionExpiryInterval = uint32(sessionLife / time.Second)
	// It holds for retained messages, too, and those are to stay. Zero would be "no
	// limit", but 2.7.9 then lets its own acknowledgements expire at once.
	c.MaximumMessageExpiryInterval = 10 * 365 * 24 * 3600
	c.MinimumProtocolVersion = 4
	// 2.7.9 asks for permission before it resolves an alias.
	c.TopicAliasMaximum = 0
	c.SharedSubAvailable = 0
	return c
}

// Addr is the address that the broker listens on.
func (b *Broker) Addr() net.Addr { return b.addr }

// Close disconnects everybody and waits until nothing of the broker runs. It may be
// called again: mochi-mqtt 2.7.9 panics then.
func (b *Broker) Close() error {
	var err error
	b.close.Do(func() { err = b.server.Close() })
	return err
}
