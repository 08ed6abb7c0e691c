package installer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

const (
	replyLimit = 10 * time.Minute // for a peer to reply to one ask: its network may be gone
	startLimit = 20 * time.Minute // for all replies, and
	slowest    = 4 << 10          // bytes for each second more
)

// patience is how long a peer may take for its next reply, when it took so long for so
// many bytes. One that gives a byte an hour would keep everybody else from installing.
func patience(given int64, waited time.Duration) time.Duration {
	return min(replyLimit, startLimit+time.Duration(given)*time.Second/slowest-waited)
}

var (
	errGone  = errors.New("the peer went away")
	errSpoke = errors.New("the peer spoke without being asked")
)

// A remote is a bundle that a peer reads out, as an [io.ReaderAt]. Of a peer who has
// passed a file nothing is asked, but it has to stay, and to be silent.
//
// One goroutine hears all that the peer says: what it was asked for, or too much, or
// that it is gone, at any time. The latter two end everything that is done for it.
type remote struct {
	*peer
	size int64

	ctx    context.Context // of what is done for the peer
	end    context.CancelCauseFunc
	silent chan struct{} // closed when nothing is heard any more
	asked  chan *asked   // the one that is not replied to

	reading  sync.Mutex // one ask at a time
	given    int64
	waited   time.Duration
	deadline sync.Mutex // for the connection's: none is set after the one of the end
	patience func(given int64, waited time.Duration) time.Duration
}

type asked struct {
	into []byte
	done chan error // has room
}

// hearing begins to hear a peer. What is done for it is done with the remote's context,
// which ends with ctx, with close, and with the peer.
func hearing(ctx context.Context, p *peer, size int64) *remote {
	r := &remote{peer: p, size: size, silent: make(chan struct{}), asked: make(chan *asked, 1), patience: patience}
	r.ctx, r.end = context.WithCancelCause(ctx)
	context.AfterFunc(r.ctx, func() { r.until(time.Unix(1, 0)) })
	go func() {
		defer close(r.silent)
		r.end(r.hear())
	}()
	return r
}

// close stops hearing. The connection stays open.
func (r *remote) close() {
	r.end(nil)
	<-r.silent
}

// until sets the deadline for what is heard, if it has not come to its end.
func (r *remote) until(t time.Time) {
	r.deadline.Lock()
	defer r.deadline.Unlock()
	if r.ctx.Err() != nil {
		t = time.Unix(1, 0)
	}
	_ = r.c.SetReadDeadline(t) // it fails when the connection is closed, and so does hearing
}

// hear says why nothing more is to be heard.
func (r *remote) hear() error {
	for {
		_, err := r.in.Peek(1)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return errors.New("the peer did not reply in time")
		}
		if err != nil {
			return errGone
		}
		select {
		case a := <-r.asked:
			err := r.take(a.into)
			r.until(time.Time{})
			a.done <- err
			if err != nil {
				return err
			}
		default:
			return errSpoke
		}
	}
}

// take reads a reply.
func (r *remote) take(into []byte) error {
	text, err := readLine(r.in)
	if err != nil {
		return fmt.Errorf("no whole reply came: %w", err)
	}
	reply, err := parseReply(text)
	switch {
	case err != nil:
		return fmt.Errorf("cannot take the reply: %w", err)
	case reply.err != "":
		return fmt.Errorf("the peer cannot read the bundle: %s", printable(reply.err))
	case reply.length != len(into):
		return fmt.Errorf("the peer was asked for %d bytes, and replied with %d", len(into), reply.length)
	}
	if _, err := io.ReadFull(r.in, into); err != nil {
		return fmt.Errorf("no whole reply came: %w", err)
	}
	if r.in.Buffered() > 0 || len(r.inbox.files) > 0 {
		return errSpoke
	}
	return nil
}

// ReadAt asks the peer. What it gives is worth nothing until it is verified.
func (r *remote) ReadAt(b []byte, off int64) (n int, err error) {
	r.reading.Lock()
	defer r.reading.Unlock()
	if off < 0 {
		return 0, fmt.Errorf("there is no offset %d", off)
	}
	for n < len(b) {
		at := off + int64(n)
		length := min(int64(len(b)-n), readLimit, r.size-at)
		if length <= 0 {
			return n, io.EOF
		}
		if err := r.ask(b[n:n+int(length)], at); err != nil {
			return n, err
		}
		n += int(length)
	}
	return n, nil
}

func (r *remote) ask(b []byte, off int64) error {
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	start := time.Now()
	a := &asked{b, make(chan error, 1)}
	r.asked <- a // there is room: nothing else is asked
	r.until(start.Add(r.patience(r.given, r.waited)))
	if err := r.tell(answer{Read: &ask{off, len(b)}}); err != nil {
		r.end(err)
	}
	// Whatever happens, b is not written to when this returns.
	var err error
	select {
	case err = <-a.done:
	case <-r.silent:
		select {
		case err = <-a.done:
		default:
			err = context.Cause(r.ctx)
		}
	}
	r.given += int64(len(b))
	r.waited += time.Since(start)
	return err
}
