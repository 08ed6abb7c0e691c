package telemetry

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// A scene is one device and one broker that attacks it, in virtual time.
type scene struct {
	*Link
	*fakeBroker
	lines atomic.Int64 // in the device's log
	most  int          // goroutines at any time
	taken uint64       // bytes of memory in all
}

// An attack is what a broker does, the rule that keeps it off, and how to see that it
// has succeeded.
type attack struct {
	name    string
	rule    rule
	does    twist
	success func(*scene) bool
}

// attackTime is how long an attack is looked at: shorter than stateInterval, or the
// repeated state could find out what the rule that is left out would have.
const attackTime = stateInterval - time.Minute

// believed says that the device has put up with it.
func believed(s *scene) bool { return s.connections() == 1 }

// lost says that the message is gone, though the broker has not acknowledged it.
func lost(s *scene) bool { return s.Outbox.Stats().Waiting == 0 }

// acknowledges says that p is a message of the device that is to be acknowledged.
func acknowledges(p packets.ControlPacket, topic string) (id uint16, ok bool) {
	m, ok := p.(*packets.PublishPacket)
	if !ok || m.TopicName != Topic("dev-1", topic) {
		return 0, false
	}
	return m.MessageID, true
}

// says sends bytes after the acknowledgement of the birth, at once. Messages are not
// acknowledged.
func says(raw ...byte) twist {
	return func(_ net.Conn, p packets.ControlPacket, answer []byte) []byte {
		if _, ok := acknowledges(p, stateTopic); ok {
			return slices.Concat(answer, raw)
		}
		if _, ok := acknowledges(p, "evt/promised"); ok {
			return nil
		}
		return answer
	}
}

// answers answers the device's message with a packet of another kind and its
// identifier, and whatever follows.
func answers(kind byte, rest ...byte) twist {
	return func(_ net.Conn, p packets.ControlPacket, answer []byte) []byte {
		if id, ok := acknowledges(p, "evt/promised"); ok {
			return slices.Concat([]byte{kind, byte(2 + len(rest)), byte(id >> 8), byte(id)}, rest)
		}
		return answer
	}
}

// subacks answers the first and the second SUBSCRIBE of a connection with a code.
func subacks(first, second byte) twist {
	asked := map[net.Conn]bool{}
	return func(c net.Conn, p packets.ControlPacket, answer []byte) []byte {
		subscribe, ok := p.(*packets.SubscribePacket)
		if !ok {
			return says()(c, p, answer)
		}
		code := first
		if asked[c] {
			code = second
		}
		asked[c] = true
		return []byte{0x90, 3, byte(subscribe.MessageID >> 8), byte(subscribe.MessageID), code}
	}
}

// pongs answers a ping.
func pongs(raw ...byte) twist {
	return func(_ net.Conn, p packets.ControlPacket, answer []byte) []byte {
		if _, ok := p.(*packets.PingreqPacket); ok {
			return raw
		}
		return says()(nil, p, answer)
	}
}

// commandPacket is a PUBLISH of the broker.
func commandPacket(first byte, size int) []byte {
	p := &packets.PublishPacket{TopicName: Topic("dev-1", "cmd/ping/1"), MessageID: 7, Payload: make([]byte, size)}
	p.FixedHeader = packets.FixedHeader{MessageType: packets.Publish, Qos: first >> 1 & 3, Dup: first&8 != 0, Retain: first&1 != 0}
	var raw bytes.Buffer
	if err := p.Write(&raw); err != nil {
		panic(err)
	}
	return raw.Bytes()
}

// keepsTalking answers nothing that follows a packet of that type, but sends a
// message now and then, so that it is not silent.
func keepsTalking(kind packets.ControlPacket) twist {
	begun := map[net.Conn]bool{}
	return func(c net.Conn, p packets.ControlPacket, answer []byte) []byte {
		if fmt.Sprintf("%T", p) == fmt.Sprintf("%T", kind) {
			begun[c] = true
			go every(c, 10*time.Second, commandPacket(0x30, 2))
		}
		if begun[c] {
			return nil
		}
		return answer
	}
}

// every writes the same again and again until the device hangs up.
func every(c net.Conn, pause time.Duration, raw []byte) {
	for {
		time.Sleep(pause)
		if _, err := c.Write(raw); err != nil {
			return
		}
	}
}

func attacks() []attack {
	return []attack{
		// One packet that must not be. Bare paho believes each of these.
		{"PINGREQ", ruleType, says(0xc0, 0), believed},
		{"DISCONNECT", ruleType, says(0xe0, 0), believed},
		{"SUBSCRIBE", ruleType, says(0x80, 6, 0, 8, 0, 1, 'a', 1), believed},
		{"UNSUBSCRIBE", ruleType, says(0xa0, 5, 0, 9, 0, 1, 'a'), believed},
		{"PUBREL for nothing", ruleType, says(0x60, 2, 0, 7), believed},
		{"PUBREC for nothing", ruleType, says(0x50, 2, 0, 7), believed},
		{"PUBCOMP for a message", ruleType, answers(0x70), lost},
		{"PUBACK with flags", ruleFlags, answers(0x42), lost},
		{"PINGRESP with flags", ruleFlags, pongs(0xd5, 0), believed},
		{"QoS 2", ruleQoS, says(commandPacket(0x34, 2)...), believed},
		{"QoS 3", ruleQoS, says(commandPacket(0x36, 2)...), believed},
		{"QoS 0 and DUP", ruleDUP, says(commandPacket(0x38, 2)...), believed},
		{"256 MB announced in 5 bytes", ruleSize, says(0x30, 0xff, 0xff, 0xff, 0x7f), func(s *scene) bool { return s.taken > 200<<20 }},
		{"one byte over the limit", ruleSize, says(commandPacket(0x30, packetLimit+1-2-len(Topic("dev-1", "cmd/ping/1")))...), believed},
		{"4 MB of payload", ruleSize, says(commandPacket(0x30, 4<<20)...), believed},
		{"PUBACK of 3 bytes", ruleSize, answers(0x40, 0), lost},
		{"PINGRESP with a body", ruleSize, pongs(0xd0, 1, 0), believed},
		{"a topic with a wildcard", ruleTopic, says(0x30, 3, 0, 1, '#'), believed},
		{"a topic with a zero", ruleTopic, says(0x30, 3, 0, 1, 0), believed},
		{"a topic that is not UTF-8", ruleTopic, says(0x30, 3, 0, 1, 0xff), believed},
		{"no topic", ruleTopic, says(0x30, 3, 0, 0, 'x'), believed},
		{"identifier 0", ruleIdentifier, says(0x32, 5, 0, 1, 'a', 0, 0), believed},
		// A packet that must not be there.
		{"a second CONNACK", ruleGreeting, says(connack...), believed},
		{"PUBACK for what was never sent", ruleQuestion, says(0x40, 2, 0x70, 7), believed},
		{"SUBACK for nothing", ruleQuestion, says(0x90, 3, 0x70, 8, 1), believed},
		{"SUBACK for a message", ruleQuestion, answers(0x90, 1), lost},
		{"UNSUBACK for a message", ruleQuestion, answers(0xb0), lost},
		{"PINGRESP for nothing, 10,000 times", ruleQuestion, says(bytes.Repeat([]byte{0xd0, 0}, 10_000)...), believed},
		{"CONNACK with reserved flags", ruleConnack, func(_ net.Conn, p packets.ControlPacket, answer []byte) []byte {
			if _, ok := p.(*packets.ConnectPacket); ok {
				return []byte{0x20, 2, 0xfe, 0}
			}
			return answer
		}, believed},
		{"SUBACK with an unknown code", ruleSubackCodes, subacks(3, 1), believed},
		{"the subscription is refused", ruleSubscription, subacks(0x80, 0x80), believed},
		// Time.
		{"silence after CONNECT", ruleOpen, func(net.Conn, packets.ControlPacket, []byte) []byte { return nil }, believed},
		{"no answer to SUBSCRIBE", ruleOpen, keepsTalking(&packets.SubscribePacket{}), believed},
		{"no answer to the birth", ruleOpen, keepsTalking(&packets.PublishPacket{}), believed},
		{"no PUBACK for a message", ruleAck, says(), believed},
		{"silence in a session", ruleSilence, silent(), believed},
		{"a message of a byte a second", ruleSilence, dripping(commandPacket(0x30, packetLimit/2)), believed},
		{"nothing is read any more", ruleWrite, deafened(), believed},
		// Floods.
		{"a flood of 20,000 commands", ruleLog, says(bytes.Repeat(commandPacket(0x32, 2), 20_000)...), noisy},
		{"20,000 retained messages", ruleLog, says(bytes.Repeat(commandPacket(0x31, 2), 20_000)...), noisy},
		{"a flood without reading", ruleUnacked, flooded(5000), func(s *scene) bool { return s.most > 3000 }},
		{"hanging up after CONNECT", rulePause, hangingUp, func(s *scene) bool { return s.connections() > 100 }},
		{"refusing CONNECT", rulePause, func(net.Conn, packets.ControlPacket, []byte) []byte { return []byte{0x20, 2, 0, 5} },
			func(s *scene) bool { return s.connections() > 100 }},
	}
}

func noisy(s *scene) bool { return s.lines.Load() > 10_000 }

func hangingUp(c net.Conn, _ packets.ControlPacket, _ []byte) []byte {
	c.Close()
	return nil
}

// silent answers nothing any more once the session is open.
func silent() twist {
	open := map[net.Conn]bool{}
	return func(c net.Conn, p packets.ControlPacket, answer []byte) []byte {
		if open[c] {
			return nil
		}
		_, open[c] = acknowledges(p, stateTopic)
		return answer
	}
}

// dripping sends raw, a byte a second, in place of all answers in a session. When raw
// ends early there is silence.
func dripping(raw []byte) twist {
	mute := silent()
	return func(c net.Conn, p packets.ControlPacket, answer []byte) []byte {
		answer = mute(c, p, answer)
		if _, ok := acknowledges(p, stateTopic); ok && answer != nil {
			go func() {
				for i := range raw {
					time.Sleep(time.Second)
					if _, err := c.Write(raw[i : i+1]); err != nil {
						return
					}
				}
			}()
		}
		return answer
	}
}

// deafened reads nothing any more once the session is open, but asks for an
// acknowledgement and goes on talking.
func deafened() twist { return flooded(1) }

// flooded sends n commands to be acknowledged, and reads no acknowledgement.
func flooded(n int) twist {
	return says(slices.Concat(bytes.Repeat(commandPacket(0x32, 2), n), stopReading)...)
}

// play runs the attack on a device that holds to all rules but one, and has promised
// a message if promise is set.
func (a attack) play(t *testing.T, without rule, promise bool, judge func(*scene)) {
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBroker{twist: a.does}
		s := &scene{fakeBroker: b, Link: testLink(t, b)}
		s.without, s.Window = without, time.Second
		s.KeepAlive = 10 * time.Second
		s.Log = slog.New(slog.NewTextHandler(writerFunc(func(line []byte) (int, error) { s.lines.Add(1); return len(line), nil }), nil))
		if promise {
			if err := s.Outbox.Put(Message{Topic: "evt/promised", QoS: 1, Payload: []byte("{}"), Durable: true}); err != nil {
				t.Fatal(err)
			}
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		stop := running(t, s.Link)
		for range 60 {
			s.most = max(s.most, runtime.NumGoroutine())
			pass(attackTime / 60)
		}
		runtime.ReadMemStats(&after)
		s.taken = after.TotalAlloc - before.TotalAlloc
		judge(s)
		s.cut()
		stop()
		pass(time.Minute) // the broker finds out
	})
}

func TestAttacksFail(t *testing.T) {
	if n := len(attacks()); n < 30 {
		t.Errorf("%d attacks, want 30 at least", n)
	}
	for _, a := range attacks() {
		a.play(t, "", true, func(s *scene) {
			if a.success(s) && !(a.rule == ruleLog || a.rule == ruleUnacked) || noisy(s) || s.most > 300 {
				t.Errorf("%s: it succeeds", a.name)
			}
			if n := s.connections(); n > 40 {
				t.Errorf("%s: %d connections in %v, want the device in back-off", a.name, n, attackTime)
			}
			if n := s.lines.Load(); n > 100 {
				t.Errorf("%s: %d lines in the log in %v, want 100 at most", a.name, n, attackTime)
			}
			if n := s.Outbox.Stats().Waiting; n != 1 {
				t.Errorf("%s: %d messages wait, want the one that was promised", a.name, n)
			}
			// The broker gets well.
			s.set(func() { s.twist = nil })
			s.cut()
			pass(2 * retryCap)
			if n := len(s.payloads(Topic("dev-1", "evt/promised"))); n == 0 || !s.Outbox.Online() || s.Outbox.Stats().Waiting > 0 {
				t.Errorf("%s: a good broker got the message %d times, %+v waits, online %t", a.name, n, s.Outbox.Stats(), s.Outbox.Online())
			}
		})
	}
}

func TestAttacksSucceedWithoutTheirRule(t *testing.T) {
	for _, a := range attacks() {
		promise := fmt.Sprintf("%p", a.success) == fmt.Sprintf("%p", lost) || a.rule == ruleAck
		a.play(t, a.rule, promise, func(s *scene) {
			if !a.success(s) {
				t.Errorf("%s: it fails though %q is left out: %d connections, %d lines, %d goroutines", a.name, a.rule, s.connections(), s.lines.Load(), s.most)
			}
		})
	}
}

// TestEveryRuleHasAnAttack keeps rules out that keep nothing off.
func TestEveryRuleHasAnAttack(t *testing.T) {
	all := []rule{ruleGreeting, ruleQuestion, ruleUnacked, ruleSilence, ruleWrite, ruleOpen, ruleAck, ruleSubscription, ruleLog, rulePause}
	for _, d := range headerRules {
		all = append(all, d.rule)
	}
	for _, d := range bodyRules {
		all = append(all, d.rule)
	}
	for _, r := range all {
		if !slices.ContainsFunc(attacks(), func(a attack) bool { return a.rule == r }) {
			t.Errorf("no attack shows what %q is for", r)
		}
	}
}

func TestBrokerThatHangsUpAtEveryPacket(t *testing.T) {
	for n := range 2 * inFlight {
		synctest.Test(t, func(t *testing.T) {
			left := n
			b := &fakeBroker{twist: func(c net.Conn, _ packets.ControlPacket, answer []byte) []byte {
				if left--; left < 0 {
					return hangingUp(c, nil, nil)
				}
				return answer
			}}
			l := testLink(t, b)
			put(t, l.Outbox, inFlight)
			running(t, l)
			b.set(func() { b.twist = nil })
			b.cut()
			pass(2 * clonePause)
			heard := map[int]bool{}
			for _, n := range b.seqs(Topic("dev-1", "tele/system")) {
				heard[n] = true
			}
			if waiting := l.Outbox.Stats().Waiting; waiting > 0 || len(heard) != inFlight {
				t.Errorf("hanging up after %d packets: %d messages arrived and %d wait, want %d and 0", n, len(heard), waiting, inFlight)
			}
		})
	}
}
