package telemetry

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// A quietConn passes on nothing in either direction while it is quiet, and says
// nothing of it: the other side is gone, or a NAT box has forgotten the connection.
type quietConn struct {
	net.Conn
	mu     sync.Mutex
	quiet  chan struct{} // closed when it is
	closed chan struct{}
	at     time.Time // when it was closed
}

func newQuietConn(c net.Conn) *quietConn {
	return &quietConn{Conn: c, quiet: make(chan struct{}), closed: make(chan struct{})}
}

// Read hands out nothing that comes once it is quiet.
func (c *quietConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	for err == nil {
		select {
		case <-c.quiet:
			n, err = c.Conn.Read(b)
		default:
			return n, err
		}
	}
	return n, err
}

func (c *quietConn) Write(b []byte) (int, error) {
	select {
	case <-c.quiet:
		return len(b), nil
	default:
		return c.Conn.Write(b)
	}
}

func (c *quietConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.closed:
	default:
		c.at = time.Now()
		close(c.closed)
	}
	return c.Conn.Close()
}

func TestHalfOpenConnectionIsFoundInTime(t *testing.T) {
	for _, keepAlive := range []time.Duration{time.Second, 5 * time.Second, 12 * time.Second, 20 * time.Second, time.Minute, 10 * time.Minute} {
		for _, after := range []time.Duration{0, keepAlive / 3, 7*keepAlive + keepAlive/2} {
			synctest.Test(t, func(t *testing.T) {
				var c *quietConn
				b := &fakeBroker{wrap: func(under net.Conn) net.Conn { c = newQuietConn(under); return c }}
				l := testLink(t, b)
				l.KeepAlive = keepAlive
				running(t, l)
				first := c
				pass(after)
				start := time.Now()
				select {
				case <-first.closed:
					t.Fatalf("keep-alive %v: given up after %v, though the broker answered", keepAlive, after)
				default:
				}
				close(first.quiet)
				<-first.closed
				if d := first.at.Sub(start); d > keepAlive*3/2 {
					t.Errorf("keep-alive %v, quiet after %v: given up %v later, want %v at most", keepAlive, after, d, keepAlive*3/2)
				}
			})
		}
	}
}

// TestHalfOpenConnectionOverTCP is about real sockets: the kernel would notice in a
// minute at the earliest.
func TestHalfOpenConnectionOverTCP(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	b := &fakeBroker{}
	relayed := make(chan *quietConn, 1)
	go func() {
		device, err := listener.Accept()
		if err != nil {
			return // the test has said why
		}
		broker, _ := b.dial(context.Background(), "tcp", "")
		c := newQuietConn(broker)
		relayed <- c
		go func() {
			_, _ = io.Copy(device, c) // goes on until the test ends
		}()
		_, _ = io.Copy(c, device) // until the device hangs up
		c.Close()
	}()
	connected := make(chan struct{}, 1)
	l := testLink(t, b)
	l.KeepAlive = time.Second
	l.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", listener.Addr().String())
	}
	l.OnConnected = func() { connected <- struct{}{} }
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	soon(t, connected, "the session")
	c := soon(t, relayed, "the connection")
	close(c.quiet)
	soon(t, c.closed, "the end of a quiet connection")
	stop()
	if err := soon(t, ended, "the end"); err != nil {
		t.Error(err)
	}
}

func TestStopInEveryState(t *testing.T) {
	for name, spoil := range map[string]func(*fakeBroker){
		"connected":         func(*fakeBroker) {},
		"no PUBACK":         func(b *fakeBroker) { b.set(func() { b.mute = func(*packets.PublishPacket) bool { return true } }) },
		"deaf":              func(b *fakeBroker) { b.set(func() { b.deaf = true }) },
		"cut":               func(b *fakeBroker) { b.cut() },
		"does not read":     func(b *fakeBroker) { b.set(func() { b.stuck = make(chan struct{}) }) },
		"waiting to retry":  func(b *fakeBroker) { b.set(func() { b.down = true }); b.cut() },
		"opening a session": func(b *fakeBroker) { b.set(func() { b.deaf = true }); b.cut() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &fakeBroker{}
				l := testLink(t, b)
				l.Window = time.Second
				stop := running(t, l)
				spoil(b)
				put(t, l.Outbox, 2*inFlight)
				pass(5 * time.Second)
				start := time.Now()
				stop()
				if d := time.Since(start); d >= 2*time.Second {
					t.Errorf("Run ended %v after its context, want less than 2s", d)
				}
				if b.stuck != nil {
					close(b.stuck)
				}
				pass(writeLimit) // paho may still be waiting for its turn to write
			})
		})
	}
}

// A holedConn passes on n bytes from the broker, then nothing, without an error.
type holedConn struct {
	net.Conn
	left int
	hole chan struct{}
	once sync.Once
}

func (c *holedConn) Read(b []byte) (int, error) {
	if c.left == 0 {
		<-c.hole
		return 0, net.ErrClosed
	}
	n, err := c.Conn.Read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
}

func (c *holedConn) Close() error {
	c.once.Do(func() { close(c.hole) })
	return c.Conn.Close()
}

func TestBlackHoleAtEveryByte(t *testing.T) {
	const step = 13 // bytes; every one would take a minute
	through := false
	for n := 0; !through; n += step {
		synctest.Test(t, func(t *testing.T) {
			b := &fakeBroker{wrap: func(c net.Conn) net.Conn {
				return &holedConn{Conn: c, left: n, hole: make(chan struct{})}
			}}
			start := time.Now()
			err := testLink(t, b).Knock(t.Context())
			through = err == nil
			if d := time.Since(start); d > openLimit+3*leaveLimit {
				t.Errorf("after %d bytes: %v until error %v, want %v at most", n, d, err, openLimit+3*leaveLimit)
			}
			if n > 16<<10 {
				t.Fatal("no session within 16 KiB")
			}
		})
	}
}

// countLines counts log lines.
type countLines struct{ n int }

func (c *countLines) Write(b []byte) (int, error) { c.n++; return len(b), nil }

func TestFloodOfCommands(t *testing.T) {
	const commands = 20_000
	synctest.Test(t, func(t *testing.T) {
		var lines countLines
		b := &fakeBroker{}
		command := &packets.PublishPacket{
			FixedHeader: packets.FixedHeader{MessageType: packets.Publish, Qos: 1},
			TopicName:   Topic("dev-1", "cmd/ping/1"), MessageID: 7, Payload: []byte("{}"),
		}
		l := testLink(t, b)
		l.Log = slog.New(slog.NewTextHandler(&lines, nil))
		for range commands {
			command.Write(writerTo(&b.hello))
		}
		running(t, l)
		put(t, l.Outbox, 1)
		synctest.Wait()
		if n := l.Commands(); n != commands {
			t.Errorf("%d commands were counted, want %d", n, commands)
		}
		if b.unacked != commands {
			t.Errorf("%d commands were acknowledged, want %d", b.unacked, commands)
		}
		if lines.n > 20 {
			t.Errorf("%d lines in the log, want 20 at most", lines.n)
		}
		if n := l.Outbox.Stats().Waiting; n != 0 || b.connections() != 1 {
			t.Errorf("%d messages wait, %d connections: want 0 and 1", n, b.connections())
		}
	})
}

// writerTo appends to b.
func writerTo(b *[]byte) writerFunc {
	return func(p []byte) (int, error) { *b = append(*b, p...); return len(p), nil }
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
