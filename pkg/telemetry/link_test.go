package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// running runs the link in the background of a bubble and stops it at the end, or
// when stop is called. The bubble does not end before paho's goroutines have.
func running(t *testing.T, l *Link) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run ended with %v, want nil", err)
			}
		})
	}
	t.Cleanup(stop)
	synctest.Wait()
	return stop
}

// pass lets time pass in a bubble, and everybody come to rest.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestSessionFromConnectToGoodbye(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBroker{}
		l := testLink(t, b)
		connected := 0
		l.OnConnected = func() { connected++ }
		l.Facts = func() map[string]any { return map[string]any{"fw": "1.2.3", "online": "a lie", "session": 0} }
		put(t, l.Outbox, 2)
		stop := running(t, l)
		put(t, l.Outbox, 1)
		synctest.Wait()
		stop()
		synctest.Wait()

		want := []string{
			"CONNECT", "SUBSCRIBE birthmark/v1/d/dev-1/cmd/+/+", "PUBLISH birthmark/v1/d/dev-1/state",
			"PUBLISH birthmark/v1/d/dev-1/tele/system", "PUBLISH birthmark/v1/d/dev-1/tele/system", "PUBLISH birthmark/v1/d/dev-1/tele/system",
			"PUBLISH birthmark/v1/d/dev-1/state", "DISCONNECT",
		}
		if !slices.Equal(b.log, want) {
			t.Errorf("packets:\n%s\nwant:\n%s", strings.Join(b.log, "\n"), strings.Join(want, "\n"))
		}
		c := b.connects[0]
		if c.ProtocolVersion != 4 || c.CleanSession || c.ClientIdentifier != "dev-1" || c.UsernameFlag || c.Keepalive != 60 {
			t.Errorf("CONNECT %v: want version 4, no clean session, client id dev-1, no user name, keep-alive 60", c)
		}
		if !c.WillFlag || c.WillQos != 1 || !c.WillRetain || string(c.WillMessage) != `{"online":false,"session":1}` {
			t.Errorf("will %q, QoS %d, retained %t: want offline, session 1, QoS 1, retained", c.WillMessage, c.WillQos, c.WillRetain)
		}
		states := b.payloads("birthmark/v1/d/dev-1/state")
		birth := states[0]
		if birth["online"] != true || birth["session"] != 1.0 || birth["fw"] != "1.2.3" {
			t.Errorf("birth %v: want online, session 1, fw 1.2.3", birth)
		}
		if now := birth["time"].(map[string]any)["now"]; now != "2000-01-01T00:00:00Z" {
			t.Errorf("birth says time.now is %v, want virtual time in RFC 3339", now)
		}
		if last := states[1]; last["online"] != false || last["session"] != 1.0 {
			t.Errorf("last state %v: want offline, session 1", last)
		}
		for _, p := range b.heard {
			if state := strings.HasSuffix(p.TopicName, "/state"); p.Retain != state || p.Qos != 1 {
				t.Errorf("%s: retained %t, QoS %d", p.TopicName, p.Retain, p.Qos)
			}
		}
		if got := b.seqs("birthmark/v1/d/dev-1/tele/system"); !slices.Equal(got, []int{1, 2, 3}) {
			t.Errorf("telemetry arrived as %v, want 1 2 3", got)
		}
		if connected != 1 {
			t.Errorf("OnConnected was called %d times, want 1", connected)
		}
		if n := l.Outbox.Stats().Waiting; n != 0 {
			t.Errorf("%d messages wait, want 0", n)
		}
	})
}

func TestKnock(t *testing.T) {
	t.Run("accepted", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := &fakeBroker{}
			l := testLink(t, b)
			put(t, l.Outbox, 1)
			if err := l.Knock(t.Context()); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if last := b.log[len(b.log)-1]; last != "DISCONNECT" || len(b.log) != 5 {
				t.Errorf("packets %q: want CONNECT, SUBSCRIBE, two states, DISCONNECT", b.log)
			}
			if n := l.Outbox.Stats().Waiting; n != 1 {
				t.Errorf("%d messages wait after a knock, want 1", n)
			}
		})
	})
	for code, refused := range map[byte]bool{1: false, 2: false, 3: false, 4: true, 5: true} {
		t.Run(fmt.Sprintf("CONNACK code %d", code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &fakeBroker{connack: code}
				err := testLink(t, b).Knock(t.Context())
				if err == nil || errors.Is(err, ErrRefused) != refused || !strings.Contains(err.Error(), "broker:8883") {
					t.Errorf("error %v: want one about broker:8883, ErrRefused %t", err, refused)
				}
				if n := len(b.connects); n != 1 {
					t.Errorf("%d CONNECTs, want 1: no other protocol version is tried", n)
				}
			})
		})
	}
	t.Run("one of two refuses, one is not there", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := &fakeBroker{connack: 5}
			l := testLink(t, b)
			l.Brokers = []string{"mqtts://broker", "mqtts://other:1"}
			l.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if addr == "other:1" {
					return nil, errors.New("no route")
				}
				return b.dial(ctx, network, addr)
			}
			err := l.Knock(t.Context())
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "no route") || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q: want both reasons in one line, and ErrRefused", err)
			}
		})
	})
	t.Run("not trusted", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := &fakeBroker{}
			l := testLink(t, b)
			l.Brokers = []string{"mqtts://another-name"}
			if err := l.Knock(t.Context()); err == nil || len(b.connects) > 0 {
				t.Errorf("error %v and %d CONNECTs for a broker with another name", err, len(b.connects))
			}
		})
	})
	t.Run("canceled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			err := testLink(t, &fakeBroker{deaf: true}).Knock(ctx)
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 2*time.Second {
				t.Errorf("error %v after %v, want the context's after 1 s", err, time.Since(start))
			}
		})
	})
}

func TestLinkSaysWhatIsWrongWithIt(t *testing.T) {
	good := func() *Link {
		return &Link{Brokers: []string{"mqtts://h:1"}, ID: "a", TLS: clientConfig, Outbox: &Outbox{}}
	}
	for name, spoil := range map[string]func(*Link){
		"no id":             func(l *Link) { l.ID = "" },
		"id with dot":       func(l *Link) { l.ID = "a.b" },
		"id with wildcard":  func(l *Link) { l.ID = "a/+" },
		"long id":           func(l *Link) { l.ID = strings.Repeat("a", 65) },
		"no broker":         func(l *Link) { l.Brokers = nil },
		"no TLS":            func(l *Link) { l.Brokers = []string{"mqtt://h:1"} },
		"no host":           func(l *Link) { l.Brokers = []string{"mqtts://:1"} },
		"password":          func(l *Link) { l.Brokers = []string{"mqtts://a:b@h:1"} },
		"path":              func(l *Link) { l.Brokers = []string{"mqtts://h:1/x"} },
		"no TLS settings":   func(l *Link) { l.TLS = nil },
		"no outbox":         func(l *Link) { l.Outbox = nil },
		"second is useless": func(l *Link) { l.Brokers = append(l.Brokers, "h:1") },
	} {
		l := good()
		if _, err := l.check(); err != nil {
			t.Fatal(err)
		}
		spoil(l)
		if err := l.Run(t.Context()); err == nil {
			t.Errorf("%s: Run returned nil", name)
		}
		if err := l.Knock(t.Context()); err == nil {
			t.Errorf("%s: Knock returned nil", name)
		}
	}
}

func TestMessageWaitsForItsPUBACK(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic := Topic("dev-1", "tele/system")
		b := &fakeBroker{mute: func(p *packets.PublishPacket) bool { return p.TopicName == topic }}
		l := testLink(t, b)
		put(t, l.Outbox, 3)
		running(t, l)
		if n := l.Outbox.Stats().Waiting; n != 3 {
			t.Errorf("%d messages wait before a PUBACK, want 3", n)
		}
		b.set(func() { b.mute = nil })
		pass(ackLimit - time.Second)
		if b.connections() != 1 {
			t.Error("the connection was given up before the deadline for PUBACK")
		}
		pass(2*time.Second + 2*defaultWindow) // the deadline, and the longest first pause
		if n := l.Outbox.Stats().Waiting; n != 0 {
			t.Errorf("%d messages wait at the end, want 0", n)
		}
		if got := b.seqs(topic); !slices.Equal(got, []int{1, 2, 3, 1, 2, 3}) {
			t.Errorf("arrived: %v, want 1 2 3 twice", got)
		}
		states := b.payloads(Topic("dev-1", "state"))
		if len(states) < 3 || states[1]["online"] != false || states[1]["session"] != 1.0 || states[2]["session"] != 2.0 {
			t.Errorf("states %v: want birth 1, its will, birth 2: a connection given up is not left with DISCONNECT", states)
		}
	})
}

func TestEveryPUBACKInOrder(t *testing.T) {
	// The broker dies after each of the first messages; nothing is lost, nothing
	// overtakes.
	for after := range 2 * inFlight {
		synctest.Test(t, func(t *testing.T) {
			topic := Topic("dev-1", "tele/system")
			b := &fakeBroker{}
			acked, dead := 0, false
			b.mute = func(p *packets.PublishPacket) bool {
				if p.TopicName == topic {
					acked++
				}
				dead = dead || acked > after
				return dead
			}
			l := testLink(t, b)
			put(t, l.Outbox, 3*inFlight)
			running(t, l)
			b.cut()
			b.set(func() { b.mute = nil })
			pass(2 * defaultWindow)
			seqs := b.seqs(topic)
			next := 1
			for _, n := range seqs {
				if n > next {
					t.Fatalf("%d arrived before %d: %v", n, next, seqs)
				}
				if n == next {
					next++
				}
			}
			if next != 3*inFlight+1 {
				t.Errorf("%d arrived, want %d", next-1, 3*inFlight)
			}
		})
	}
}

func TestSubscriptionRefused(t *testing.T) {
	for name, c := range map[string]struct {
		codes []byte
		dials int
	}{
		"granted":          {nil, 1},
		"granted at QoS 0": {[]byte{0}, 1},
		"refused once":     {[]byte{0x80}, 1},
		"refused twice":    {[]byte{0x80, 0x80}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &fakeBroker{suback: c.codes}
				l := testLink(t, b)
				put(t, l.Outbox, 1)
				running(t, l)
				pass(5 * time.Second)
				refused := strings.Count(string(c.codes), "\x80")
				if b.connections() != c.dials || strings.Count(strings.Join(b.log, "\n"), "UNSUB") != min(refused, 1) {
					t.Errorf("%d connections, packets %q: want %d connections", b.connections(), b.log, c.dials)
				}
				if n := l.Outbox.Stats().Waiting; n != 0 {
					t.Errorf("%d messages wait, want 0", n)
				}
			})
		})
	}
}

func TestBrokersAreTriedInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBroker{down: true}
		l := testLink(t, b)
		l.Brokers = []string{"mqtts://a", "mqtts://b:1", "mqtts://[::1]:2"}
		running(t, l)
		pass(time.Minute)
		want := []string{"a:8883", "b:1", "[::1]:2", "a:8883"}
		if len(b.addrs) < 4 || !slices.Equal(b.addrs[:4], want) {
			t.Errorf("tried %q, want %q and so on", b.addrs, want)
		}
	})
}

func TestLostConnectionIsSpreadOverTheWindow(t *testing.T) {
	const window = 10 * time.Minute
	var longest time.Duration
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			b := &fakeBroker{}
			l := testLink(t, b)
			l.Window = window
			running(t, l)
			pass(stableAfter)
			lost := time.Now()
			b.cut()
			pass(window + 2*time.Second)
			if b.connections() != 2 {
				t.Fatalf("%d connections, want 2", b.connections())
			}
			pause := b.dials[1].Sub(lost)
			if pause < retryFloor {
				t.Errorf("dialled again after %v, before %v", pause, retryFloor)
			}
			longest = max(longest, pause)
		})
	}
	if longest < window/2 {
		t.Errorf("of 20 pauses none was over %v, half the window", window/2)
	}
}

func TestStateIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBroker{}
		running(t, testLink(t, b))
		pass(3*stateInterval + time.Second)
		states := b.payloads(Topic("dev-1", "state"))
		if len(states) != 4 {
			t.Fatalf("%d states in %v, want 4", len(states), 3*stateInterval)
		}
		for _, s := range states {
			if s["online"] != true || s["session"] != 1.0 {
				t.Errorf("state %v: want online in session 1", s)
			}
		}
		if now := states[3]["time"].(map[string]any)["now"]; now != "2000-01-01T00:30:00Z" {
			t.Errorf("the last repetition says %v, want half an hour later", now)
		}
	})
}
