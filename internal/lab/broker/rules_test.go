package broker

import (
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// The parties of the tests: devices a and b, and the operator.
func connectAll(t *testing.T, b *target) map[string]*client {
	t.Helper()
	return map[string]*client{
		"a":          mustDial(t, b, hello{cert: b.pki.issue("a"), id: "a"}),
		"b":          mustDial(t, b, hello{cert: b.pki.issue("b"), id: "b"}),
		operatorName: mustDial(t, b, hello{cert: b.pki.issue(operatorName), id: operatorName}),
	}
}

// TestPublishRules holds both brokers against one list of who may publish where.
func TestPublishRules(t *testing.T) {
	onBoth(t, func(t *testing.T, b *target, _ bool) {
		parties := connectAll(t, b)
		for _, c := range []struct {
			who, topic string
			allowed    bool
		}{
			{"a", "birthmark/v1/d/a/state", true},
			{"a", "birthmark/v1/d/a/caps", true},
			{"a", "birthmark/v1/d/a/twin/health", true},
			{"a", "birthmark/v1/d/a/res/ping/1", true},
			{"a", "birthmark/v1/d/a/evt/enrolled", true},
			{"a", "birthmark/v1/d/a/tele/system", true},
			{"a", "birthmark/v1/d/a/req/time/1", true},
			{"b", "birthmark/v1/d/b/tele/system", true},

			{"a", "birthmark/v1/d/b/state", false},
			{"a", "birthmark/v1/d/b/tele/system", false},
			{"a", "birthmark/v1/d/b/cmd/ping/1", false},
			{"a", "birthmark/v1/d/b/rsp/time/1", false},
			{"a", "birthmark/v1/d/a/cmd/ping/1", false}, // no orders to oneself
			{"a", "birthmark/v1/d/a/rsp/time/1", false},
			{"a", "birthmark/v1/g/all/cmd/ping/1", false},
			{"a", "birthmark/v1/d/a/state/more", false},
			{"a", "birthmark/v1/d/a/tele", false},
			{"a", "birthmark/v1/d/a/tele/system/cpu", false},
			{"a", "birthmark/v1/d/a/res/ping", false},
			{"a", "birthmark/v1/d/a/other", false},
			{"a", "birthmark/v1/d/a", false},
			{"a", "birthmark/v1/d/A/state", false},
			{"a", "birthmark/v2/d/a/state", false},
			{"a", "elsewhere", false},
			{"a", "/birthmark/v1/d/a/state", false},

			{"operator", "birthmark/v1/d/a/cmd/ping/1", true},
			{"operator", "birthmark/v1/g/all/cmd/ping/1", true},
			{"operator", "birthmark/v1/d/a/rsp/time/1", true},
			{"operator", "birthmark/v1/d/a/state", false},
			{"operator", "birthmark/v1/d/a/tele/system", false},
			{"operator", "birthmark/v1/g/all/state", false},
			{"operator", "elsewhere", false},
		} {
			code := parties[c.who].publish(c.topic, false)
			switch code {
			case packets.CodeSuccess.Code, packets.CodeNoMatchingSubscribers.Code, packets.ErrNotAuthorized.Code:
			default:
				t.Errorf("%s publishes %s: got reason 0x%x, want success or 0x87", c.who, c.topic, code)
			}
			if got := code != packets.ErrNotAuthorized.Code; got != c.allowed {
				t.Errorf("%s publishes %s: got allowed %v, want %v", c.who, c.topic, got, c.allowed)
			}
		}
	})
}

// TestReadRules holds both brokers against one list of who hears what. They differ
// in one thing only: whether a filter that is too wide is refused, or delivers
// nothing.
func TestReadRules(t *testing.T) {
	for _, c := range []struct {
		who, filter   string
		sender, topic string // a message that matches the filter
		heard         bool
	}{
		{"a", "birthmark/v1/d/a/cmd/#", "operator", "birthmark/v1/d/a/cmd/ping/1", true},
		{"a", "birthmark/v1/d/a/cmd/+/+", "operator", "birthmark/v1/d/a/cmd/ping/1", true},
		{"a", "birthmark/v1/d/a/cmd/ping/+", "operator", "birthmark/v1/d/a/cmd/ping/1", true},
		{"a", "birthmark/v1/d/a/rsp/+/+", "operator", "birthmark/v1/d/a/rsp/time/1", true},
		{"a", "birthmark/v1/g/+/cmd/#", "operator", "birthmark/v1/g/all/cmd/ping/1", true},
		{"a", "birthmark/v1/g/all/cmd/+/+", "operator", "birthmark/v1/g/all/cmd/ping/1", true},

		{"a", "birthmark/v1/d/b/cmd/#", "operator", "birthmark/v1/d/b/cmd/ping/1", false},
		{"a", "birthmark/v1/d/+/cmd/#", "operator", "birthmark/v1/d/b/cmd/ping/1", false},
		{"a", "birthmark/v1/d/b/rsp/+/+", "operator", "birthmark/v1/d/b/rsp/time/1", false},
		{"a", "birthmark/v1/d/b/state", "b", "birthmark/v1/d/b/state", false},
		{"a", "birthmark/v1/d/+/tele/+", "b", "birthmark/v1/d/b/tele/system", false},
		{"a", "birthmark/v1/d/a/state", "a", "birthmark/v1/d/a/state", false},
		{"a", "birthmark/v1/#", "b", "birthmark/v1/d/b/evt/enrolled", false},
		{"a", "#", "b", "birthmark/v1/d/b/tele/system", false},
		{"a", "+/+/+/+/+/#", "operator", "birthmark/v1/d/b/cmd/ping/1", false},
		{"a", "$share/all/birthmark/v1/d/b/cmd/#", "operator", "birthmark/v1/d/b/cmd/ping/1", false},

		{"operator", "birthmark/v1/#", "b", "birthmark/v1/d/b/tele/system", true},
		{"operator", "birthmark/v1/d/+/state", "a", "birthmark/v1/d/a/state", true},
		{"operator", "birthmark/v1/d/b/cmd/#", "operator", "birthmark/v1/d/b/cmd/ping/1", true},
	} {
		t.Run(c.who+" "+c.filter, func(t *testing.T) {
			onBoth(t, func(t *testing.T, b *target, embedded bool) {
				parties := connectAll(t, b)
				who, last := parties[c.who], "birthmark/v1/d/a/cmd/last/1"
				code := who.subscribe(c.filter)
				if refused := code >= 0x80; refused != (embedded && !c.heard) {
					t.Errorf("got reason 0x%x for the subscription", code)
				}
				who.subscribe(last)
				if code := parties[c.sender].publish(c.topic, false); code >= 0x80 {
					t.Fatalf("%s cannot publish %s: reason 0x%x", c.sender, c.topic, code)
				}
				parties[operatorName].publish(last, false)
				if got := who.hears(c.topic, last); got != c.heard {
					t.Errorf("%s sends %s: got heard %v, want %v", c.sender, c.topic, got, c.heard)
				}
			})
		})
	}
}

// TestRetainedIsNotLeaked holds that a message which waits for subscribers waits
// only for those who may read it, and that nobody reads $SYS.
func TestRetainedIsNotLeaked(t *testing.T) {
	onBoth(t, func(t *testing.T, b *target, _ bool) {
		parties := connectAll(t, b)
		state, last := "birthmark/v1/d/b/state", "birthmark/v1/d/a/cmd/last/1"
		parties["b"].publish(state, true)
		a, operator := parties["a"], parties[operatorName]
		for _, filter := range []string{"#", "$SYS/#", "birthmark/v1/#", state, last} {
			a.subscribe(filter)
		}
		operator.subscribe("$SYS/#")
		operator.subscribe("birthmark/v1/#")
		operator.publish(last, false)
		if a.hears(state, last) {
			t.Error("a got the state of b")
		}
		if !operator.hears(state, last) {
			t.Error("the operator did not get the state of b")
		}
		for _, c := range []*client{a, operator} {
			for _, pk := range c.heard {
				if strings.HasPrefix(pk.TopicName, "$") {
					t.Errorf("somebody got %s", pk.TopicName)
				}
			}
		}
	})
}

// TestWill holds that a last will reaches who its sender could reach, and no others.
func TestWill(t *testing.T) {
	for _, c := range []struct {
		topic   string
		allowed bool
	}{
		{"birthmark/v1/d/a/state", true},
		{"birthmark/v1/d/b/state", false},
		{"birthmark/v1/d/b/cmd/ping/1", false},
		{"elsewhere", false},
	} {
		t.Run(c.topic, func(t *testing.T) {
			onBoth(t, func(t *testing.T, b *target, embedded bool) {
				operator := mustDial(t, b, hello{cert: b.pki.issue(operatorName), id: operatorName})
				operator.subscribe("birthmark/v1/#")
				a, code := dial(t, b, hello{cert: b.pki.issue("a"), id: "a", will: c.topic})
				if refused := code != 0; refused != (embedded && !c.allowed) {
					t.Fatalf("got reason 0x%x for the CONNECT", code)
				}
				if code == 0 {
					a.send(packets.Disconnect, packets.Packet{ReasonCode: packets.CodeDisconnectWillMessage.Code})
				}
				a.gone()
				last := "birthmark/v1/d/a/cmd/last/1"
				operator.publish(last, false)
				if got := operator.hears(c.topic, last); got != c.allowed {
					t.Errorf("got will heard %v, want %v", got, c.allowed)
				}
			})
		})
	}
}

// TestCloneIsRefused holds that a device with a certificate of its own cannot take
// another's session, nor what is queued for it.
func TestCloneIsRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, b *target, embedded bool) {
		a := mustDial(t, b, hello{cert: b.pki.issue("a"), id: "a", keep: true})
		a.subscribe("birthmark/v1/d/a/cmd/+/+")
		clone, code := dial(t, b, hello{cert: b.pki.issue("b"), id: "a"})
		if refused := code != 0; refused != embedded {
			t.Errorf("got reason 0x%x for b as client a", code)
		}
		if !embedded { // mosquitto lets it in under its own name
			clone.ping()
		}
		a.ping()
		a.conn.Close()
		operator := mustDial(t, b, hello{cert: b.pki.issue(operatorName), id: operatorName})
		operator.publish("birthmark/v1/d/a/cmd/ping/1", false)
		dial(t, b, hello{cert: b.pki.issue("b"), id: "a"})
		a = mustDial(t, b, hello{cert: b.pki.issue("a"), id: "a", keep: true})
		a.ping() // what is queued comes after CONNACK, and before this is answered
		operator.publish("birthmark/v1/d/a/cmd/last/1", false)
		if !a.hears("birthmark/v1/d/a/cmd/ping/1", "birthmark/v1/d/a/cmd/last/1") {
			t.Error("the command that was queued for a is lost")
		}
	})
}

// TestBothSidesNumberTheirOwn holds that a client may number its packets as the broker has
// numbered a command that it has not acknowledged: nothing is refused, and nothing lost.
func TestBothSidesNumberTheirOwn(t *testing.T) {
	onBoth(t, func(t *testing.T, b *target, _ bool) {
		device := hello{cert: b.pki.issue("a"), id: "a", version: 4, keep: true}
		a := mustDial(t, b, device)
		a.subscribe("birthmark/v1/d/a/cmd/+/+")
		a.conn.Close()
		operator := mustDial(t, b, hello{cert: b.pki.issue(operatorName), id: operatorName})
		operator.publish("birthmark/v1/d/a/cmd/ping/1", false)
		a = mustDial(t, b, device)
		a.unanswered(packets.Publish)
		a.send(packets.Subscribe, packets.Packet{PacketID: 1, Filters: packets.Subscriptions{{Filter: "birthmark/v1/d/a/cmd/+/+", Qos: 1}}})
		if code := a.unanswered(packets.Suback).ReasonCodes[0]; code >= 0x80 {
			t.Errorf("got reason 0x%x for a SUBSCRIBE", code)
		}
		a.send(packets.Publish, packets.Packet{FixedHeader: packets.FixedHeader{Qos: 1}, PacketID: 1, TopicName: "birthmark/v1/d/a/tele/system"})
		a.unanswered(packets.Puback)
		a.conn.Close()
		a = mustDial(t, b, device)
		a.ping()
		operator.publish("birthmark/v1/d/a/cmd/last/1", false)
		if !a.hears("birthmark/v1/d/a/cmd/ping/1", "birthmark/v1/d/a/cmd/last/1") {
			t.Error("the command is lost")
		}
	})
}

// TestDecisions holds the table alone against filters as an adversary writes them.
func TestDecisions(t *testing.T) {
	a := party("a")
	for _, c := range []struct {
		do      action
		topic   string
		allowed bool
	}{
		{read, "birthmark/v1/d/a/cmd", true}, // "cmd/#" covers "cmd"
		{read, "birthmark/v1/d/a/+/#", false},
		{read, "birthmark/v1/d/a/#", false},
		{read, "birthmark/v1/+/a/cmd/#", false},
		{read, "+/v1/d/a/cmd/#", false},
		{read, "birthmark/v1/g/#", false},
		{read, "birthmark/v1/g/x/y/cmd/#", false},
		{read, "birthmark/v1/d/a/rsp/#", false}, // more than rsp/+/+
		{read, "$share/x/birthmark/v1/d/a/cmd/#", false},
		{read, "", false},
		{publish, "birthmark/v1/d/a/tele/+", false}, // as a last will it would be legal for the broker
		{publish, "birthmark/v1/d/a/tele/#", false},
		{publish, "", false},
	} {
		if got := a.may(c.do, c.topic); got != c.allowed {
			t.Errorf("%s %q: got %v, want %v", c.do, c.topic, got, c.allowed)
		}
	}
}

// FuzzCovers holds that what is granted by a filter matches it: a topic that
// matches the narrow filter matches the wide one that covers it.
func FuzzCovers(f *testing.F) {
	f.Add("a/+/#", "a/b/+", "a/b/c")
	f.Add("a/#", "a", "a")
	f.Add("a/+", "a/#", "a/b/c")
	f.Add("+/+", "a/+", "a/")
	f.Fuzz(func(t *testing.T, wide, narrow, topic string) {
		if strings.ContainsAny(topic, "+#") {
			return
		}
		if covers(wide, narrow) && covers(narrow, topic) && !covers(wide, topic) {
			t.Errorf("%q covers %q, and that matches %q, but %q does not", wide, narrow, topic, wide)
		}
		if !covers(narrow, narrow) && !strings.Contains(narrow, "#") {
			t.Errorf("%q does not cover itself", narrow)
		}
	})
}
