package telemetry

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	writeLimit   = 20 * time.Second // one packet must be gone within this
	unackedLimit = 64               // received messages not yet acknowledged to the broker
)

var (
	errClosed = errors.New("the connection was closed here")
	errHungUp = errors.New("the broker closed the connection")
)

// A conn stands under the MQTT library and lets through only what is fit for it.
// Bare paho 1.5.1 takes memory for any announced length before a byte of it has
// come, dies of a SUBACK with more codes than filters, and starts a goroutine for
// every message that comes in.
//
// An acknowledgement is let through only when it answers a packet that has been
// written in full. Otherwise paho would take a SUBACK for the answer to a publish,
// and might complete one token from two goroutines at once, which it does not
// survive.
//
// A conn says in gone that it is of no more use, and in err why: paho's tokens
// stay open for ever when their connection is lost.
type conn struct {
	net.Conn
	plain   net.Conn      // what lies under TLS
	silence time.Duration // the longest time for a packet: a broker has to answer pings
	without rule          // left out

	in      *bufio.Reader // owned by Read
	rest    []byte        // owned by Read: the part of a packet that paho has not taken yet
	greeted bool          // owned by Read: the CONNACK was here

	unacked chan struct{} // holds one entry for every message not yet acknowledged

	writing chan struct{} // holds an entry while a packet is written

	mu    sync.Mutex
	asked map[question]*asked // guarded by mu

	once sync.Once
	gone chan struct{} // closed when the connection is of no more use
	err  error         // why; written before gone is closed
}

// asked is what is known of a question on its way.
type asked struct {
	filters int           // of a SUBSCRIBE
	written chan struct{} // closed when the whole packet was written
}

func newConn(c, plain net.Conn, silence time.Duration, without rule) *conn {
	return &conn{
		Conn:    c,
		plain:   plain,
		silence: silence,
		without: without,
		in:      bufio.NewReader(c),
		unacked: make(chan struct{}, unackedLimit),
		writing: make(chan struct{}, 1),
		asked:   map[question]*asked{},
		gone:    make(chan struct{}),
	}
}

// Read hands out packets that were judged. After the first error it returns no
// more data.
func (c *conn) Read(b []byte) (int, error) {
	if len(c.rest) == 0 {
		p, err := c.next()
		if err != nil {
			return 0, c.fail(err)
		}
		c.rest = p.raw
	}
	n := copy(b, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// next reads one packet and holds it against what came before.
func (c *conn) next() (packet, error) {
	if c.greeted {
		c.SetReadDeadline(time.Now().Add(c.silence))
	}
	p, err := readPacket(c.in, c.without)
	switch {
	case err == io.EOF:
		return p, errHungUp
	case errors.Is(err, os.ErrDeadlineExceeded):
		return p, fmt.Errorf("no whole packet from the broker within %v", c.silence)
	case isNetwork(err):
		return p, err
	case err != nil:
		return p, fmt.Errorf("the broker sent %w", err)
	}
	if c.greeted == (p.kind() == typeConnack) {
		if err := c.breach(ruleGreeting, "a packet of type %d out of turn", p.kind()); err != nil {
			return p, err
		}
	}
	c.greeted = true
	if p.kind() == typeConnack {
		return p, connackError(p.body[1])
	}
	if q, ok := p.question(); ok {
		return p, c.settle(q, len(p.body)-2)
	}
	if p.kind() == typePublish && p.qos() == 1 && c.without != ruleUnacked {
		select {
		case c.unacked <- struct{}{}: // Write takes it out again
		case <-c.gone:
			return p, c.err
		}
	}
	return p, nil
}

// breach is the error of a broken rule, nil if that is left out.
func (c *conn) breach(r rule, sent string, args ...any) error {
	if r == c.without {
		return nil
	}
	return fmt.Errorf("the broker sent "+sent, args...)
}

// connackError is what a CONNACK code means (MQTT 3.1.1 section 3.2.2.3). It is found
// here since paho closes the connection first and says why afterwards.
func connackError(code byte) error {
	switch code {
	case 0:
		return nil
	case 4, 5:
		return fmt.Errorf("%w: CONNACK code %d", ErrRefused, code)
	}
	return fmt.Errorf("the broker sent CONNACK code %d", code)
}

// hungUp says that err is the broker's doing, neither the network's nor ours.
func hungUp(err error) bool {
	return errors.Is(err, errHungUp) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// isNetwork says that err came from below, not from what was read.
func isNetwork(err error) bool {
	var n net.Error
	return errors.As(err, &n) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe)
}

// settle takes a question as answered, with that many codes if it was a SUBSCRIBE.
func (c *conn) settle(q question, codes int) error {
	c.mu.Lock()
	a := c.asked[q]
	delete(c.asked, q)
	c.mu.Unlock()
	if a == nil {
		return c.breach(ruleQuestion, "an acknowledgement of type %d for nothing", q.answer)
	}
	if q.answer == typeSuback && codes != a.filters {
		if err := c.breach(ruleFilters, "SUBACK with %d codes for %d filters", codes, a.filters); err != nil {
			return err
		}
	}
	select {
	case <-a.written: // at once, unless the broker answers what it cannot have read
		return nil
	case <-c.gone:
		return c.err
	}
}

// Write writes one whole packet, as paho always does, within writeLimit.
func (c *conn) Write(b []byte) (int, error) {
	p, q, filters, err := parseSent(b)
	if err != nil {
		return 0, c.fail(err)
	}
	a := &asked{filters: filters, written: make(chan struct{})}
	if q.answer != 0 {
		c.mu.Lock()
		c.asked[q] = a
		c.mu.Unlock()
	}
	n, err := c.write(b)
	if err != nil {
		return n, c.fail(err)
	}
	close(a.written)
	if p.kind() == typePuback {
		select {
		case <-c.unacked:
		default:
		}
	}
	return n, nil
}

// write has a deadline for this packet only: one that stayed would hit what TLS
// writes by itself while it reads.
func (c *conn) write(b []byte) (int, error) {
	select {
	case c.writing <- struct{}{}: // paho pings from a goroutine of its own
	case <-c.gone:
		return 0, c.err
	}
	defer func() { <-c.writing }()
	if c.without != ruleWrite {
		c.SetWriteDeadline(time.Now().Add(writeLimit))
		defer c.SetWriteDeadline(time.Time{})
	}
	return c.Conn.Write(b)
}

// fail makes err the reason for the end, unless there was one before, and returns
// the reason.
func (c *conn) fail(err error) error {
	c.once.Do(func() {
		c.err = err
		close(c.gone)
	})
	return c.err
}

// Close is called by paho and by us. TLS writes its goodbye within a deadline, which a
// write that ends just then takes away again: so the connection under it is cut in
// any case.
func (c *conn) Close() error {
	c.fail(errClosed)
	cut := time.AfterFunc(leaveLimit, func() { c.plain.Close() })
	defer cut.Stop()
	return c.Conn.Close()
}
