package broker

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// patience is how long a test waits for what takes milliseconds when all is well.
const patience = 20 * time.Second

// A client speaks MQTT, one packet at a time. It answers nothing by itself.
type client struct {
	tb      testing.TB
	conn    net.Conn
	in      *bufio.Reader
	version byte
	heard   []packets.Packet // PUBLISHes that came while the client waited for something else
}

// A hello is what a client says of itself.
type hello struct {
	cert    tls.Certificate
	id      string
	version byte   // 4 for MQTT 3.1.1; 5 if zero
	will    string // topic of a last will
	keep    bool   // the session
}

// dial connects and returns the reason code of the CONNACK.
func dial(tb testing.TB, b *target, h hello) (*client, byte) {
	tb.Helper()
	conn, err := tls.Dial("tcp", b.addr, &tls.Config{RootCAs: b.pki.pool, Certificates: []tls.Certificate{h.cert}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		tb.Fatal(err)
	}
	if h.version == 0 {
		h.version = 5
	}
	c := &client{tb: tb, conn: conn, in: bufio.NewReader(conn), version: h.version}
	connect := packets.Packet{Connect: packets.ConnectParams{
		ProtocolName: []byte("MQTT"), ClientIdentifier: h.id, Clean: !h.keep, Keepalive: 60,
	}}
	if h.keep && h.version == 5 {
		connect.Properties.SessionExpiryInterval, connect.Properties.SessionExpiryIntervalFlag = 3600, true
	}
	if h.will != "" {
		connect.Connect.WillFlag, connect.Connect.WillQos = true, 1
		connect.Connect.WillTopic, connect.Connect.WillPayload = h.will, []byte("will")
	}
	c.send(packets.Connect, connect)
	return c, c.want(packets.Connack).ReasonCode
}

// mustDial connects somebody who is welcome.
func mustDial(tb testing.TB, b *target, h hello) *client {
	tb.Helper()
	c, code := dial(tb, b, h)
	if code != 0 {
		tb.Fatalf("CONNECT of %q: got reason 0x%x, want 0", h.id, code)
	}
	return c
}

func (c *client) send(kind byte, pk packets.Packet) {
	c.tb.Helper()
	if err := c.write(kind, pk); err != nil {
		c.tb.Fatal(err)
	}
}

func (c *client) write(kind byte, pk packets.Packet) error {
	pk.FixedHeader.Type, pk.ProtocolVersion = kind, c.version
	var buf bytes.Buffer
	var err error
	switch kind {
	case packets.Connect:
		err = pk.ConnectEncode(&buf)
	case packets.Publish:
		err = pk.PublishEncode(&buf)
	case packets.Puback:
		err = pk.PubackEncode(&buf)
	case packets.Subscribe:
		pk.FixedHeader.Qos = 1
		err = pk.SubscribeEncode(&buf)
	case packets.Pingreq:
		err = pk.PingreqEncode(&buf)
	case packets.Disconnect:
		err = pk.DisconnectEncode(&buf)
	}
	if err == nil {
		_, err = c.conn.Write(buf.Bytes())
	}
	return err
}

// next is the next packet.
func (c *client) next() (pk packets.Packet, err error) {
	first, err := c.in.ReadByte()
	if err != nil {
		return pk, err
	}
	if err := pk.FixedHeader.Decode(first); err != nil {
		return pk, err
	}
	n, _, err := packets.DecodeLength(c.in)
	if err != nil {
		return pk, err
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(c.in, body); err != nil {
		return pk, err
	}
	pk.FixedHeader.Remaining, pk.ProtocolVersion = n, c.version
	switch pk.FixedHeader.Type {
	case packets.Connack:
		err = pk.ConnackDecode(body)
	case packets.Publish:
		err = pk.PublishDecode(body)
	case packets.Puback:
		err = pk.PubackDecode(body)
	case packets.Suback:
		err = pk.SubackDecode(body)
	case packets.Disconnect:
		err = pk.DisconnectDecode(body)
	}
	return pk, err
}

// want reads up to a packet of a kind; messages that come before it are kept.
func (c *client) want(kind byte) packets.Packet {
	c.tb.Helper()
	for {
		pk, err := c.next()
		if err != nil {
			c.tb.Fatalf("no %s came: %v", packets.PacketNames[kind], err)
		}
		if pk.FixedHeader.Type == packets.Publish {
			if pk.FixedHeader.Qos > 0 {
				c.send(packets.Puback, packets.Packet{PacketID: pk.PacketID})
			}
			c.heard = append(c.heard, pk)
		}
		if pk.FixedHeader.Type == kind {
			return pk
		}
	}
}

// unanswered reads up to a packet of a kind, and acknowledges nothing.
func (c *client) unanswered(kind byte) packets.Packet {
	c.tb.Helper()
	for {
		pk, err := c.next()
		if err != nil {
			c.tb.Fatalf("no %s came: %v", packets.PacketNames[kind], err)
		}
		if pk.FixedHeader.Type == kind {
			return pk
		}
	}
}

// publish publishes and returns the reason code of the PUBACK. When it returns,
// the broker is done with the message.
func (c *client) publish(topic string, retain bool) byte {
	c.tb.Helper()
	c.send(packets.Publish, packets.Packet{
		FixedHeader: packets.FixedHeader{Qos: 1, Retain: retain}, PacketID: 7, TopicName: topic, Payload: []byte("payload of " + topic),
	})
	code := c.want(packets.Puback).ReasonCode
	c.ping()
	return code
}

func (c *client) ping() {
	c.tb.Helper()
	c.send(packets.Pingreq, packets.Packet{})
	c.want(packets.Pingresp)
}

// subscribe returns the reason code of the SUBACK.
func (c *client) subscribe(filter string) byte {
	c.tb.Helper()
	c.send(packets.Subscribe, packets.Packet{PacketID: 8, Filters: packets.Subscriptions{{Filter: filter, Qos: 1}}})
	return c.want(packets.Suback).ReasonCodes[0]
}

// hears reports whether a message of the topic has come before one of the topic
// last.
func (c *client) hears(topic, last string) bool {
	c.tb.Helper()
	found := false
	for i := 0; ; i++ {
		for i >= len(c.heard) {
			c.want(packets.Publish)
		}
		switch c.heard[i].TopicName {
		case topic:
			found = true
		case last:
			c.heard = c.heard[i+1:]
			return found
		}
	}
}

// gone waits until the broker has hung up.
func (c *client) gone() {
	c.tb.Helper()
	for {
		_, err := c.next()
		var late net.Error
		if errors.As(err, &late) && late.Timeout() {
			c.tb.Fatalf("the connection is still there after %v", patience)
		}
		if err != nil {
			return
		}
	}
}
