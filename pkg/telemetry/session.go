package telemetry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"net"
	"net/url"
	"syscall"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

const (
	openLimit     = time.Minute             // from dialling to the acknowledged birth
	ackLimit      = 30 * time.Second        // PUBACK of a message
	leaveLimit    = 1500 * time.Millisecond // saying goodbye
	stateInterval = 10 * time.Minute        // the state is said again this often

	aliveInterval = 30 * time.Second // a session that does nothing goes on this often
	aliveLimit    = 30 * time.Second // what Run does without waiting takes less

	inFlight = 16 // messages sent and not yet acknowledged
)

// A session is one connection to one broker, from CONNECT to DISCONNECT, with a
// paho client of its own: a client that was disconnected is not fit for another.
type session struct {
	link   *Link
	conn   *conn
	client mqtt.Client
	number uint64 // in birth and last will, so that a late will is recognised
}

// open makes a session: CONNECT, SUBACK and an acknowledged birth. The caller
// closes it.
func (l *Link) open(ctx context.Context, broker *url.URL) (*session, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, l.limit(ruleOpen, openLimit), fmt.Errorf("no answer within %v", openLimit))
	defer cancel()
	c, err := l.dial(ctx, broker)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to %s: %w", broker.Host, err)
	}
	silence := l.limit(ruleSilence, l.keepAlive()*3/2)
	s := &session{link: l, conn: newConn(c, c.NetConn(), silence, l.without), number: l.Outbox.sessionNumber()}
	s.client = mqtt.NewClient(s.options(broker))
	for _, step := range []func(context.Context) error{s.connect, s.subscribe, s.birth} {
		if err := step(ctx); err != nil {
			s.close()
			return nil, fmt.Errorf("cannot open a session with %s: %w", broker.Host, err)
		}
	}
	return s, nil
}

// dial opens the TLS connection.
func (l *Link) dial(ctx context.Context, broker *url.URL) (*tls.Conn, error) {
	conf, err := l.TLS(broker.Hostname())
	if err != nil {
		return nil, err
	}
	dial := l.Dial
	if dial == nil {
		dial = dialEnvironment
	}
	plain, err := dial(ctx, "tcp", broker.Host)
	if err != nil {
		return nil, reason(ctx, err)
	}
	c := tls.Client(plain, conf)
	if err := c.HandshakeContext(ctx); err != nil {
		plain.Close()
		return nil, reason(ctx, err)
	}
	return c, nil
}

// limitUnacked has the kernel give a connection up when the other side has
// acknowledged nothing for a minute, rather than after a quarter of an hour.
func limitUnacked(_, _ string, c syscall.RawConn) error {
	const (
		userTimeout = 18 // TCP_USER_TIMEOUT, linux/tcp.h; syscall has no name for it
		limit       = time.Minute
	)
	var err error
	if e := c.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, userTimeout, int(limit.Milliseconds()))
	}); e != nil {
		return e
	}
	return err
}

// reason prefers what ended ctx over the error that this led to.
func reason(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		return cause
	}
	return err
}

// options makes paho a codec for the one connection that is open already.
func (s *session) options(broker *url.URL) *mqtt.ClientOptions {
	o := mqtt.NewClientOptions()
	o.Servers = []*url.URL{broker}
	o.SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) { return s.conn, nil })
	o.SetConnectTimeout(forEver) // the context of open has a deadline
	o.SetProtocolVersion(4)      // or paho tries 3.1 after any refusal
	o.SetClientID(s.link.ID)
	o.SetCleanSession(false)
	o.SetAutoReconnect(false)
	o.SetConnectRetry(false)
	o.SetOrderMatters(false)
	o.SetWriteTimeout(writeLimit)
	o.SetKeepAlive(s.link.keepAlive())
	o.SetPingTimeout(forEver) // the connection looks after itself
	// Before CONNECT: the broker may send what it kept for us before we subscribe.
	o.SetDefaultPublishHandler(s.link.received)
	o.SetBinaryWill(Topic(s.link.ID, stateTopic), s.offline(), 1, true)
	return o
}

// connect sends CONNECT and awaits CONNACK.
func (s *session) connect(ctx context.Context) error { return s.await(ctx, s.client.Connect()) }

// subscribe asks for commands and looks at the answer: paho takes a refusal for
// success. A broker that has lost its half of a kept session refuses once, so the
// subscription is made anew, once.
func (s *session) subscribe(ctx context.Context) error {
	filter := Topic(s.link.ID, commandsFor)
	for try := 0; ; try++ {
		t := s.client.Subscribe(filter, 1, nil).(*mqtt.SubscribeToken)
		if err := s.await(ctx, t); err != nil {
			return err
		}
		granted, ok := t.Result()[filter]
		if ok && granted <= 1 {
			return nil
		}
		if try == 1 && s.link.without == ruleSubscription {
			return nil
		}
		if try == 1 {
			return fmt.Errorf("the broker refuses the subscription %s", filter)
		}
		if err := s.await(ctx, s.client.Unsubscribe(filter)); err != nil {
			return err
		}
	}
}

// birth says that the device is there.
func (s *session) birth(ctx context.Context) error {
	return s.await(ctx, s.publishState())
}

// publishState says that the device is online, and what it is.
func (s *session) publishState() mqtt.Token {
	state := map[string]any{"time": map[string]any{"now": time.Now().UTC().Format(time.RFC3339)}}
	if s.link.Facts != nil {
		maps.Copy(state, s.link.Facts())
	}
	state["online"] = true
	state["session"] = s.number
	state["outbox"] = s.link.Outbox.Stats()
	payload, err := json.Marshal(state)
	if err != nil || len(payload) > PayloadLimit {
		// The facts are the caller's; online and session must be said all the same.
		s.link.log().Error("cannot put the facts into the state message", "err", err, "bytes", len(payload))
		payload = s.plainState(true)
	}
	return s.publish(stateTopic, 1, true, payload)
}

// offline is the last will, and what is said when leaving in good order.
func (s *session) offline() []byte { return s.plainState(false) }

func (s *session) plainState(online bool) []byte {
	return fmt.Appendf(nil, `{"online":%t,"session":%d}`, online, s.number)
}

// publish hands a message to paho. While another is being written paho waits, for
// writeLimit and even if the connection is gone meanwhile; this does not.
func (s *session) publish(topic string, qos byte, retained bool, payload []byte) mqtt.Token {
	taken := make(chan mqtt.Token, 1)
	go func() { taken <- s.client.Publish(Topic(s.link.ID, topic), qos, retained, payload) }()
	select {
	case t := <-taken:
		return t
	case <-s.conn.gone:
		return &lostToken{err: s.conn.err}
	}
}

// A lostToken is for a message that paho had no time to take.
type lostToken struct {
	mqtt.DummyToken
	err error
}

func (t *lostToken) Error() error { return t.err }

// await waits for the answer, the end of the connection or the end of ctx.
func (s *session) await(ctx context.Context, t mqtt.Token) error {
	select {
	case <-t.Done():
		if t.Error() == nil {
			return nil
		}
		return s.because(t.Error())
	case <-s.conn.gone:
		return s.conn.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// because prefers the connection's own reason to what paho makes of it.
func (s *session) because(err error) error {
	select {
	case <-s.conn.gone:
		return s.conn.err
	default:
		return err
	}
}

// A flight is a packet on its way; item is nil for a repeated state.
type flight struct {
	item  *item
	token mqtt.Token
	due   time.Time
}

// serve sends what is in the outbox until the connection or ctx ends. Messages
// are acknowledged in the order in which they were sent (MQTT 3.1.1 section 4.6),
// so only the oldest is waited for.
func (s *session) serve(ctx context.Context) error {
	unblock := context.AfterFunc(ctx, s.expire)
	defer unblock()
	repeat := time.NewTicker(stateInterval)
	defer repeat.Stop()
	alive := time.NewTicker(aliveInterval)
	defer alive.Stop()
	var flights []flight
	for {
		s.link.beat(aliveInterval + aliveLimit)
		flights = s.send(flights)
		var acked <-chan struct{}
		var late <-chan time.Time
		if len(flights) > 0 {
			acked = flights[0].token.Done()
			late = time.After(time.Until(flights[0].due))
		}
		select {
		case <-acked:
			if err := flights[0].token.Error(); err != nil {
				return s.because(err)
			}
			s.acknowledged(flights[0])
			flights = flights[1:]
		case <-late:
			return fmt.Errorf("no PUBACK within %v", ackLimit)
		case <-repeat.C:
			flights = append(flights, flight{nil, s.publishState(), s.due()})
		case <-s.link.Outbox.wake:
		case <-alive.C:
		case <-s.conn.gone:
			return s.conn.err
		case <-ctx.Done():
			s.leave()
			// The last PUBACKs came while it said goodbye.
			for _, f := range flights {
				select {
				case <-f.token.Done():
					if f.token.Error() == nil {
						s.acknowledged(f)
					}
				default:
				}
			}
			return nil
		}
	}
}

func (s *session) acknowledged(f flight) {
	if f.item != nil {
		s.link.Outbox.done(f.item)
	}
}

// send fills the flight with what waits in the outbox.
func (s *session) send(flights []flight) []flight {
	for len(flights) < inFlight {
		it := s.link.Outbox.next()
		if it == nil {
			break
		}
		t := s.publish(it.topic, it.qos, false, it.payload)
		flights = append(flights, flight{it, t, s.due()})
	}
	return flights
}

// due is when a packet that was sent now must be acknowledged.
func (s *session) due() time.Time { return time.Now().Add(s.link.limit(ruleAck, ackLimit)) }

// expire ends the session soon, even if paho is stuck in a write.
func (s *session) expire() { time.AfterFunc(leaveLimit, func() { s.conn.Close() }) }

// leave says goodbye. DISCONNECT makes the broker forget the will, so the state is
// said first; a broker that does not acknowledge it is left without DISCONNECT and
// says it for us.
func (s *session) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), leaveLimit)
	defer cancel()
	if s.await(ctx, s.publish(stateTopic, 1, true, s.offline())) == nil {
		s.client.Disconnect(uint(leaveLimit.Milliseconds()))
	}
	s.close()
}

// close cuts the connection, so that the broker publishes the will unless leave
// has said goodbye, and ends paho's goroutines. It may be called twice.
func (s *session) close() {
	s.conn.Close()
	s.client.Disconnect(0)
}

// received counts a command. It is logged at 1, 2, 4, 8 and so on: whoever floods
// the device must not flood its log.
func (l *Link) received(_ mqtt.Client, m mqtt.Message) {
	if n := l.commands.Add(1); bits.OnesCount64(n) == 1 || l.without == ruleLog {
		l.log().Warn("unsigned commands are not obeyed", "topic", m.Topic(), "bytes", len(m.Payload()), "received", n)
	}
}
