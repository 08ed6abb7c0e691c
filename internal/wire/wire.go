// Package wire is a network for tests that have a clock of their own: what waits for a
// connection of it waits as testing/synctest wants it, so that a stall of half an hour
// takes no time. What goes over it is the real thing, TLS and HTTP for one.
//
//	network := wire.Listen()
//	go server.Serve(tls.NewListener(network, conf))
//	source.HTTP(ctx, address, source.Options{Dial: network.Dial, …})
//
// An address is dialed in vain when the network was closed.
package wire

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A Network has one server, which takes what is dialed, whatever the address. It has to
// be made in the bubble that it is used in.
type Network struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once // closes done
	dials atomic.Int64
}

// Listen returns a network.
func Listen() *Network {
	return &Network{conns: make(chan net.Conn), done: make(chan struct{})}
}

// Accept implements [net.Listener].
func (n *Network) Accept() (net.Conn, error) {
	select {
	case c := <-n.conns:
		return c, nil
	case <-n.done:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (n *Network) Close() error {
	n.once.Do(func() { close(n.done) })
	return nil
}

// Addr implements [net.Listener].
func (n *Network) Addr() net.Addr { return &net.TCPAddr{} }

// Dial connects to the server. Once the network is closed, there is nobody.
func (n *Network) Dial(ctx context.Context, network, _ string) (net.Conn, error) {
	n.dials.Add(1)
	ours, theirs := pair()
	select {
	case n.conns <- theirs:
		return ours, nil
	case <-n.done:
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Dials is how often it was dialed.
func (n *Network) Dials() int64 { return n.dials.Load() }

// An end is one side of a connection inside a bubble. As a socket does, it takes what is
// written before the other side reads: two sides of a net.Pipe that both say goodbye wait
// for each other, and net/http holds a lock meanwhile, at which a bubble's time stands still.
type end struct{ in, out *half }

// pair is a new connection's two sides.
func pair() (near, far *end) {
	a, b := &half{changed: make(chan struct{})}, &half{changed: make(chan struct{})}
	return &end{a, b}, &end{b, a}
}

func (e *end) Read(p []byte) (int, error)  { return e.in.read(p) }
func (e *end) Write(p []byte) (int, error) { return e.out.write(p) }

// Close ends both ways; the other side still reads what was written.
func (e *end) Close() error {
	e.in.change(func(h *half) { h.ended, h.data = true, nil })
	e.out.change(func(h *half) { h.ended = true })
	return nil
}

func (e *end) SetReadDeadline(until time.Time) error {
	e.in.change(func(h *half) { h.until = until })
	return nil
}

// SetDeadline is SetReadDeadline: only a side that does not read makes the other wait to
// write, and no test here has one.
func (e *end) SetDeadline(until time.Time) error { return e.SetReadDeadline(until) }
func (e *end) SetWriteDeadline(time.Time) error  { return nil }
func (e *end) LocalAddr() net.Addr               { return &net.TCPAddr{} }
func (e *end) RemoteAddr() net.Addr              { return &net.TCPAddr{} }

// A half is one way of a connection.
type half struct {
	mu      sync.Mutex
	changed chan struct{} // closed at the next change
	data    []byte        // written, and not read
	ended   bool
	until   time.Time // of reads
}

func (h *half) change(f func(*half)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(h)
	close(h.changed)
	h.changed = make(chan struct{})
}

// look is what there is, and what closes when there is more.
func (h *half) look() (waiting int, ended bool, until time.Time, more <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.data), h.ended, h.until, h.changed
}

// One goroutine at a time reads, as with TLS.
func (h *half) read(p []byte) (n int, err error) {
	for {
		waiting, ended, until, more := h.look()
		var late <-chan time.Time
		switch {
		case waiting > 0:
			h.change(func(h *half) { n = copy(p, h.data); h.data = h.data[n:] })
			return n, nil
		case ended:
			return 0, io.EOF
		case until.IsZero():
		case !time.Now().Before(until):
			return 0, os.ErrDeadlineExceeded
		default:
			late = time.After(time.Until(until))
		}
		select {
		case <-more:
		case <-late:
		}
	}
}

// write waits until less than 64 KiB are on the way.
func (h *half) write(p []byte) (int, error) {
	for {
		waiting, ended, _, more := h.look()
		switch {
		case ended:
			return 0, net.ErrClosed
		case waiting < 64<<10:
			h.change(func(h *half) { h.data = append(h.data, p...) })
			return len(p), nil
		}
		<-more
	}
}
