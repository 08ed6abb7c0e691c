package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/listeners"
)

const (
	goodbyeLimit = time.Second            // for what is written to clients at Close
	acceptPause  = 100 * time.Millisecond // when no connection can be accepted, for lack of files
)

// A listener accepts TLS connections for mochi-mqtt. Unlike its own it gives a
// deadline to those who say nothing, goes on after a failed accept, and Close waits
// for everything that it started.
type listener struct {
	net.Listener
	config *tls.Config
	log    *slog.Logger
	// goodbye disconnects all clients. It stands in for what mochi-mqtt hands to Close,
	// which in 2.7.9 waits for ever if a client leaves at that moment: GetByListener takes
	// a lock for reading twice.
	goodbye func()

	ctx    context.Context // ends at Close
	cancel context.CancelFunc
	served sync.WaitGroup // one for Serve, one for each connection

	mu    sync.Mutex
	conns map[net.Conn]struct{} // nil after Close
}

var _ listeners.Listener = (*listener)(nil)

func (l *listener) ID() string       { return "tls" }
func (l *listener) Protocol() string { return "mqtts" }
func (l *listener) Address() string  { return l.Addr().String() }

// Init is called by mochi-mqtt when the listener is added; Serve follows.
func (l *listener) Init(*slog.Logger) error {
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.conns = map[net.Conn]struct{}{}
	l.served.Add(1)
	return nil
}

// Serve accepts connections until Close.
func (l *listener) Serve(establish listeners.EstablishFn) {
	defer l.served.Done()
	for {
		conn, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			l.log.Warn("cannot accept a connection to the broker", "err", err)
			select {
			case <-time.After(acceptPause):
			case <-l.ctx.Done():
			}
		case !l.add(conn):
			conn.Close()
		default:
			go l.serve(conn, establish)
		}
	}
}

// serve lets mochi-mqtt serve a connection once it is known who is there.
func (l *listener) serve(conn net.Conn, establish listeners.EstablishFn) {
	defer l.remove(conn)
	remote := conn.RemoteAddr().String()
	// mochi-mqtt replaces the deadline by one from the client's keep-alive when the
	// CONNECT has come.
	_ = conn.SetDeadline(time.Now().Add(connectLimit))
	secured := tls.Server(conn, l.config)
	if err := secured.HandshakeContext(l.ctx); err != nil {
		l.log.Warn("no TLS with a client of the broker", "remote", remote, "err", err)
		return
	}
	err := establish(l.ID(), secured)
	l.log.Debug("a client of the broker is gone", "remote", remote, "err", err)
}

// add counts a connection in, unless there are too many or the end has come.
func (l *listener) add(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns == nil || len(l.conns) >= clientLimit {
		return false
	}
	l.conns[conn] = struct{}{}
	l.served.Add(1)
	return true
}

func (l *listener) remove(conn net.Conn) {
	defer l.served.Done()
	conn.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, conn)
}

// Close ends all connections, those that mochi-mqtt knows with a DISCONNECT. A
// client that does not read it is not waited for.
func (l *listener) Close(listeners.CloseFn) {
	l.cancel()
	// The address is free again, whatever it says.
	_ = l.Listener.Close()
	l.mu.Lock()
	conns := l.conns
	l.conns = nil
	l.mu.Unlock()
	for conn := range conns {
		_ = conn.SetDeadline(time.Now().Add(goodbyeLimit))
	}
	l.goodbye()
	for conn := range conns {
		conn.Close()
	}
	l.served.Wait()
}
