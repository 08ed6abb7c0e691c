package telemetry

import (
	"bytes"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"
)

// A rule is what a broker is held to. All hold, always: the tests leave out one at a
// time, to see what it keeps off.
type rule string

const (
	// A packet by itself: see headerRules and bodyRules.
	ruleType         rule = "it is of a type that a broker sends"
	ruleFlags        rule = "its reserved flags are as they must be"
	ruleQoS          rule = "QoS 2 is not used"
	ruleDUP          rule = "QoS 0 comes without DUP"
	ruleSize         rule = "it is as long as its type allows"
	ruleConnack      rule = "CONNACK says what it can say"
	ruleSubackCodes  rule = "SUBACK says what it can say"
	ruleTopic        rule = "a message has a topic"
	ruleIdentifier   rule = "a message with QoS 1 has an identifier"
	ruleGreeting     rule = "CONNACK comes first, and once"            // what came before: see conn
	ruleQuestion     rule = "an answer follows a question"             //
	ruleFilters      rule = "SUBACK answers for each filter"           //
	ruleUnacked      rule = "few messages wait for our PUBACK"         //
	ruleSilence      rule = "a packet comes within 1.5 keep-alives"    // time: see conn and session
	ruleWrite        rule = "the broker reads what is written to it"   //
	ruleOpen         rule = "a session is open within a minute"        //
	ruleAck          rule = "a message is acknowledged in time"        //
	ruleSubscription rule = "the subscription is granted"              // see session
	ruleLog          rule = "commands are logged ever more seldom"     //
	rulePause        rule = "pauses between connections become longer" // see Link
)

// forEver is a limit that is none.
const forEver = 100 * 365 * 24 * time.Hour

// limit is d, unless the rule is left out.
func (l *Link) limit(r rule, d time.Duration) time.Duration {
	if r == l.without {
		return forEver
	}
	return d
}

// A demand is a rule about one thing, and how that is held against it.
type demand[T any] struct {
	rule  rule
	check func(T) error
}

// judge holds x against all demands but one.
func judge[T any](demands []demand[T], x T, without rule) error {
	for _, d := range demands {
		if d.rule == without {
			continue
		}
		if err := d.check(x); err != nil {
			return err
		}
	}
	return nil
}

// sizes are the packets that a broker may send (MQTT 3.1.1 section 2.2.1), and how
// many bytes may follow their fixed header. QoS 2 is never asked for, so its packets
// are not among them.
var sizes = map[byte]struct{ least, most int }{
	typeConnack:  {2, 2},
	typePublish:  {3, packetLimit},
	typePuback:   {2, 2},
	typeSuback:   {3, packetLimit},
	typeUnsuback: {2, 2},
	typePingresp: {0, 0},
}

// headerRules are about a fixed header alone (MQTT 3.1.1 section 2.2).
var headerRules = []demand[header]{
	{ruleType, func(h header) error {
		if _, ok := sizes[h.kind()]; !ok {
			return fmt.Errorf("a packet of type %d", h.kind())
		}
		return nil
	}},
	{ruleFlags, func(h header) error {
		if h.kind() != typePublish && h.flags() != 0 {
			return fmt.Errorf("a packet of type %d with flags %#x", h.kind(), h.flags())
		}
		return nil
	}},
	{ruleQoS, func(h header) error {
		if h.kind() == typePublish && h.qos() > 1 {
			return fmt.Errorf("a message with QoS %d", h.qos())
		}
		return nil
	}},
	{ruleDUP, func(h header) error {
		if h.kind() == typePublish && h.qos() == 0 && h.flags()&0x08 != 0 {
			return errors.New("a message with QoS 0 and DUP") // MQTT-3.3.1-2
		}
		return nil
	}},
	{ruleSize, func(h header) error {
		if s, ok := sizes[h.kind()]; ok && (h.size < s.least || h.size > s.most) {
			return fmt.Errorf("a packet of type %d with %d bytes", h.kind(), h.size)
		}
		return nil
	}},
}

// bodyRules are about a packet whose header is fine.
var bodyRules = []demand[packet]{
	{ruleConnack, func(p packet) error {
		if p.kind() == typeConnack && (p.body[0] > 1 || p.body[1] > 5) {
			return fmt.Errorf("CONNACK with flags %#x and code %d", p.body[0], p.body[1])
		}
		return nil
	}},
	{ruleSubackCodes, func(p packet) error {
		if p.kind() != typeSuback {
			return nil
		}
		for _, code := range p.body[2:] {
			if code > 2 && code != 0x80 {
				return fmt.Errorf("SUBACK with code %#x", code) // MQTT-3.9.3-2
			}
		}
		return nil
	}},
	{ruleTopic, func(p packet) error { // MQTT 3.1.1 section 3.3.2.1
		if p.kind() != typePublish {
			return nil
		}
		topic, _, ok := cutString(p.body)
		switch {
		case !ok || len(topic) == 0:
			return errors.New("a message without a topic")
		case !utf8.Valid(topic) || bytes.ContainsAny(topic, "\x00+#"):
			return errors.New("a message with an illegal topic")
		}
		return nil
	}},
	{ruleIdentifier, func(p packet) error { // MQTT 3.1.1 sections 2.3.1 and 3.3.2.2
		if p.kind() != typePublish || p.qos() == 0 {
			return nil
		}
		_, rest, _ := cutString(p.body)
		switch {
		case len(rest) < 2:
			return errors.New("a message without its packet identifier")
		case rest[0]|rest[1] == 0:
			return errors.New("a message with packet identifier 0")
		}
		return nil
	}},
}
