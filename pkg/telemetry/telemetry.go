// Package telemetry is the device's voice: messages go up to the owner's broker
// over one MQTT session, and nothing that was promised is lost on the way.
//
// Start with a [Link], which keeps the session up, and an [Outbox], which keeps
// what is to be said until the broker has it:
//
//	outbox, err := telemetry.OpenOutbox(dir, telemetry.Limits{})
//	link := &telemetry.Link{Brokers: urls, ID: id, TLS: config, Outbox: outbox}
//	go link.Run(ctx)
//	outbox.Put(telemetry.Message{Topic: "tele/system", QoS: 1, Payload: json})
//
// A [Sampler] reads CPU, memory, disk, temperature and uptime; [Event] makes a
// CloudEvent. docs/telemetry.md shows every topic and payload by example.
//
// # What is promised
//
// A message leaves the outbox when the broker's PUBACK is here, never earlier: it
// is delivered at least once. (One with QoS 0 leaves when it is written.) A durable message is on disk when [Outbox.Put]
// returns. Other messages are in memory while the device is online; they are
// spilled to disk after 30 s without a broker and at Close. Memory and disk are
// bounded, and when they are full the oldest message that is not durable goes
// first. Every message carries the sequence number of its stream, which goes on
// after a restart: a gap says that something was lost, a repeated number that
// something came twice.
//
// # What is not believed
//
// The broker is an ordinary party that may be broken or broken into. Every packet
// is judged before the MQTT library sees it: length, type, flags, and whether an
// acknowledgement answers anything that was asked. A broker can delay and drop
// what the device says; it cannot make the device do anything. Commands that
// arrive are counted and logged, not obeyed: this version knows no signed ones.
//
// # Protocol
//
// MQTT 3.1.1 over TLS, no clean session, QoS 0 and 1. The library
// (eclipse/paho.mqtt.golang 1.5.1) is used as a codec for one connection at a
// time: reconnecting, waiting, queueing and limits are ours. Its loggers, which
// are global to the process, are left silent. After a lost connection an
// unacknowledged message is sent again under a new packet identifier and without
// the DUP flag, unlike MQTT 3.1.1 section 4.4: receivers go by the sequence number.
package telemetry

import (
	"fmt"
	"strings"
)

// root is the version of the topics; it changes when their meaning does.
const root = "birthmark/v1"

const (
	stateTopic  = "state"   // below the device's own level: birth and last will
	commandsFor = "cmd/+/+" // filter: commands, by verb and command id
)

// PayloadLimit is the largest payload of a message, in bytes.
const PayloadLimit = 64 << 10

// Topic is the full name of a device's topic: Topic("dev-1", "tele/system") is
// birthmark/v1/d/dev-1/tele/system.
func Topic(id, name string) string { return root + "/d/" + id + "/" + name }

// A Message is something the device says.
type Message struct {
	// Topic is the name below the device's own level: tele/NAME, evt/TYPE or
	// res/TYPE/ID, each level of [A-Za-z0-9._-]. Its first two levels name the
	// stream in which the message is numbered.
	Topic string
	// QoS is 1, or 0 for what may be lost on the way. Durable needs 1.
	QoS byte
	// Payload is one JSON object of at most PayloadLimit bytes, without a member
	// "seq": that is added.
	Payload []byte
	// Durable says that the message must be on disk before Put returns: results
	// and events. They are dropped only for each other, never for telemetry.
	Durable bool
}

// Device ids and topic levels hold nothing that means something to a broker. An
// id has no "." either: distributed brokers turn a level with one into two.
const (
	idSet     = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
	levelSet  = idSet + "."
	nameLimit = 64 // characters of an id or a level
)

// isName reports whether s is 1 to 64 characters of a set.
func isName(s, set string) bool {
	return s != "" && len(s) <= nameLimit && strings.Trim(s, set) == ""
}

// isTopic reports whether s can be a Message's.
func isTopic(s string) bool {
	kind, name, _ := strings.Cut(s, "/")
	if kind == "res" {
		verb, id, _ := strings.Cut(name, "/")
		return isName(verb, levelSet) && isName(id, levelSet)
	}
	return (kind == "tele" || kind == "evt") && isName(name, levelSet)
}

// check says what is wrong with m, its payload aside.
func (m Message) check() error {
	switch {
	case !isTopic(m.Topic):
		return fmt.Errorf("topic %q is not tele/NAME, evt/TYPE or res/TYPE/ID", m.Topic)
	case m.QoS > 1:
		return fmt.Errorf("QoS is %d: only 0 and 1 are used", m.QoS)
	case m.Durable && m.QoS == 0:
		return fmt.Errorf("a durable message needs QoS 1, or nobody would acknowledge it")
	case len(m.Payload) > PayloadLimit:
		return fmt.Errorf("payload has %d bytes: the limit is %d", len(m.Payload), PayloadLimit)
	}
	return nil
}

// stream is the name under which a topic's messages are numbered: its first two
// levels, so that the instances of a command's results share one.
func stream(topic string) string {
	levels := strings.SplitN(topic, "/", 3)
	return levels[0] + "/" + levels[1]
}
