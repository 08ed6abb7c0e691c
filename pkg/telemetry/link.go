package telemetry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"sync/atomic"
	"time"
)

// ErrRefused says that a broker answered, and said no: CONNACK code 4 or 5 (MQTT
// 3.1.1 section 3.2.2.3). Every other error means that it could not be reached or
// did not do its part.
var ErrRefused = errors.New("the broker refuses this device")

const (
	defaultKeepAlive = time.Minute
	keepAliveLimit   = 18 * time.Hour // MQTT counts seconds in 16 bits
)

// A Link keeps one MQTT session with one of the owner's brokers. Its fields are
// set before the first use and not changed afterwards.
type Link struct {
	// Brokers are tried in turn: "mqtts://HOST:PORT", the port 8883 if there is none.
	Brokers []string
	// ID is the device's id: the client id, a level of its topics and its
	// certificate's common name.
	ID string
	// TLS is asked before every connection for what to show and whom to trust, so
	// what it says may change; server is the name in the broker's address.
	TLS func(server string) (*tls.Config, error)
	// Outbox holds what is sent, and gives every session its number.
	Outbox *Outbox

	// Facts is what the birth message says besides online, session, outbox and,
	// unless the facts have one, time. It is asked again whenever the state is
	// repeated. May be nil.
	Facts func() map[string]any
	// KeepAlive is the longest silence before the broker is asked for a sign of
	// life; default 60 s, at least 1 s. After half as long again, less the up to 5 s
	// that paho is late, the connection is given up: a slow network needs 20 s or more.
	KeepAlive time.Duration
	// Window is the span over which the first retry after a lost connection is
	// spread: devices / (connections the brokers take a second). Default 60 s.
	Window time.Duration
	// Log may be nil.
	Log *slog.Logger
	// OnConnected is called when a session of Run is up and its birth acknowledged.
	// May be nil.
	OnConnected func()
	// Beat is called by Run whenever it goes on, with the time within which it will do
	// so again. May be nil.
	Beat func(within time.Duration)
	// OnClone is called when Run has lost so many sessions to the broker in a row that
	// another device may have this identity: once, until a session held for an hour.
	// Meanwhile Run connects once in 5 to 10 minutes. May be nil; Run waits for it.
	OnClone func()
	// Dial opens the connection under TLS. nil goes by the environment: HTTPS_PROXY,
	// NO_PROXY and their lower case, as net/http takes them for https://HOST:PORT, a
	// user and password in the proxy's address included.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	commands atomic.Uint64
	leave    atomic.Pointer[context.CancelFunc] // of Run's newest connection
	without  rule                               // left out; only tests do
}

// Commands is how many commands came in. None was obeyed: this version knows no
// signed ones.
func (l *Link) Commands() uint64 { return l.commands.Load() }

// Knock proves that a broker accepts this device: one session with subscription
// and acknowledged birth, left in good order. It tries every broker once. When
// one of them refused, the error is an ErrRefused.
func (l *Link) Knock(ctx context.Context) error {
	brokers, err := l.check()
	if err != nil {
		return err
	}
	var failed error
	for _, broker := range brokers {
		s, err := l.open(ctx, broker)
		if err == nil {
			s.leave()
			return nil
		}
		if failed != nil {
			err = fmt.Errorf("%w; %w", failed, err)
		}
		failed = err
	}
	return failed
}

// Run keeps a session up and empties the outbox until ctx ends, which is no
// error. It returns early only when the Link itself is wrong.
func (l *Link) Run(ctx context.Context) error {
	brokers, err := l.check()
	if err != nil {
		return err
	}
	again := retry{window: l.Window}
	if again.window <= 0 {
		again.window = defaultWindow
	}
	for turn := 0; ; {
		broker := brokers[turn%len(brokers)]
		l.beat(openLimit + aliveLimit)
		up, err := l.session(ctx, broker)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errPlanned) {
			continue
		}
		turn++
		var pause time.Duration
		if l.without == rulePause {
			again = retry{}
		}
		if up > 0 {
			if again.suspect(up, hungUp(err)) {
				l.log().Error("the broker keeps hanging up: another device may have this identity")
				if l.OnClone != nil {
					l.OnClone()
				}
			}
			pause = again.lost(up)
			l.log().Warn("connection to the broker lost", "broker", broker.Host, "err", err, "up", up, "retry", pause)
		} else {
			pause = again.failed()
			l.log().Warn("no session with the broker", "broker", broker.Host, "err", err, "retry", pause)
		}
		l.beat(pause + aliveLimit)
		if !sleep(ctx, pause) {
			return nil
		}
	}
}

// errPlanned is the end of a connection that Reconnect asked for.
var errPlanned = errors.New("left to connect again")

// Reconnect lets Run leave its session in good order and open it again at once, with
// what TLS says then: after a renewal, say. The broker keeps the session, and what it
// has not acknowledged is sent again. A connection that is being made is given up
// for one with the news; with none, the next one has them anyway. Reconnect does not
// wait.
func (l *Link) Reconnect() {
	if leave := l.leave.Load(); leave != nil {
		(*leave)()
	}
}

// session serves one session to its end and says how long it was up; 0 if it
// never was.
func (l *Link) session(ctx context.Context, broker *url.URL) (up time.Duration, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.leave.Store(&cancel) // before TLS is asked, or news could be missed
	defer func() {
		if ctx.Err() != nil {
			err = errPlanned // Run knows whether it was its own end
		}
	}()
	s, err := l.open(ctx, broker)
	if err != nil {
		return 0, err
	}
	defer s.close()
	l.log().Info("session with the broker", "broker", broker.Host, "session", s.number)
	l.Outbox.online()
	defer l.Outbox.offline()
	if l.OnConnected != nil {
		l.OnConnected()
	}
	start := time.Now()
	err = s.serve(ctx)
	return max(time.Since(start), 1), err
}

// check says what is wrong with the Link, and takes its addresses apart.
func (l *Link) check() ([]*url.URL, error) {
	switch {
	case !isName(l.ID, idSet):
		return nil, fmt.Errorf("cannot use %q as device id: 1 to 64 of A-Z a-z 0-9 _ - are allowed", l.ID)
	case len(l.Brokers) == 0:
		return nil, errors.New("cannot connect: no broker is configured")
	case l.TLS == nil || l.Outbox == nil:
		return nil, errors.New("cannot connect: the link has no TLS configuration or no outbox")
	}
	var brokers []*url.URL
	for _, b := range l.Brokers {
		u, err := url.Parse(b)
		if err != nil || u.Scheme != "mqtts" || u.Hostname() == "" || u.User != nil || u.Path != "" || u.RawQuery != "" {
			return nil, fmt.Errorf("cannot use %q as broker address: it is not mqtts://HOST:PORT", b)
		}
		if u.Port() == "" {
			u.Host = net.JoinHostPort(u.Hostname(), "8883")
		}
		brokers = append(brokers, u)
	}
	return brokers, nil
}

// keepAlive is KeepAlive within what MQTT can say, in whole seconds. paho would
// round less than a second down to "never".
func (l *Link) keepAlive() time.Duration {
	if l.KeepAlive == 0 {
		return defaultKeepAlive
	}
	return min(max(l.KeepAlive, time.Second), keepAliveLimit)
}

func (l *Link) beat(within time.Duration) {
	if l.Beat != nil {
		l.Beat(within)
	}
}

func (l *Link) log() *slog.Logger {
	if l.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l.Log
}
