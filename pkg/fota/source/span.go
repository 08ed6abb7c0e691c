package source

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

const (
	spanCount = 4        // places that are read at in turn
	spanFirst = 64 << 10 // bytes of the first request at a place; the trailer and most signatures fit
	spanMost  = 1 << 20  // bytes of a request, and of a span in memory
	spanTail  = 64 << 10 // bytes that are kept when a span goes on: readers step back a little
	skipMost  = 64 << 10 // bytes that are read rather than skipped by a new request
	longAfter = 4 << 20  // bytes in a row after which the rest is asked for at once
)

// A span is a place at which somebody reads on: bytes in memory, and maybe an answer that
// brings those behind them.
type span struct {
	off  int64 // of bytes[0]
	buf  []byte
	next int64 // bytes to ask for when the reader goes on
	body *body // nil if there is none
	used int64 // the larger, the later
}

func (s *span) end() int64 { return s.off + int64(len(s.buf)) }

// drop ends the answer.
func (s *span) drop() {
	if s.body != nil {
		s.body.close()
		s.body = nil
	}
}

// begin makes the first request of all.
func (r *Remote) begin() error {
	s := &span{next: spanFirst}
	r.spans = []*span{s}
	// The first byte tells how many there are.
	if err := r.fetch(s, 1, spanFirst-1); err != nil {
		return err
	}
	return r.fetch(s, min(spanFirst, r.pin.Size)-1, spanFirst-1)
}

// at returns bytes from off on, at least one. About want of them will be read.
func (r *Remote) at(off, want int64) ([]byte, error) {
	s := r.place(off)
	for s.end() <= off {
		if err := r.extend(s, off+want-s.end()); err != nil {
			return nil, err
		}
	}
	r.uses++
	s.used = r.uses
	return s.buf[off-s.off:], nil
}

// place finds the span that holds off or is about to; or else gives up the one that was
// not used for the longest time.
func (r *Remote) place(off int64) *span {
	var next, old *span
	for _, s := range r.spans {
		switch {
		case off >= s.off && off < s.end():
			return s
		case off >= s.end() && off-s.end() <= skipMost:
			next = s
		}
		if old == nil || s.used < old.used {
			old = s
		}
	}
	if next != nil {
		return next
	}
	if len(r.spans) < spanCount {
		old = &span{}
		r.spans = append(r.spans, old)
	}
	old.drop()
	// At the end of the file, what is before the trailer will be wanted next.
	old.off = min(off, max(0, r.pin.Size-spanFirst))
	old.buf, old.next = old.buf[:0], spanFirst
	return old
}

// extend reads on at s, about want bytes.
func (r *Remote) extend(s *span, want int64) error {
	if r.last != s {
		r.last, r.run = s, 0
	}
	n := int64(spanFirst)
	if s.body == nil {
		n, s.next = s.next, min(2*s.next, spanMost)
	}
	n = min(max(n, want), spanMost, r.pin.Size-s.end())
	last := s.end() + n - 1
	if r.run >= longAfter {
		last = r.pin.Size - 1
		for _, other := range r.spans {
			if other != s {
				other.drop()
			}
		}
	}
	if surplus := len(s.buf) - spanTail; surplus > 0 {
		s.off += int64(surplus)
		s.buf = s.buf[:copy(s.buf, s.buf[surplus:])]
	}
	if err := r.fetch(s, n, last); err != nil {
		return err
	}
	r.run += n
	return nil
}

// fetch brings n bytes more into s. If there is no answer that holds them, it asks for all
// up to last. Losses are made good as long as there is progress.
func (r *Remote) fetch(s *span, n, last int64) error {
	if r.failed != nil {
		return r.failed
	}
	tries, from := 0, s.end()
	for end := s.end() + n; s.end() < end; {
		err := r.step(s, end, last)
		if s.end()-from >= progress {
			tries, from = 0, s.end()
		}
		if err == nil {
			continue
		}
		s.drop()
		tries++
		if err = r.again(err, tries); err != nil {
			return err
		}
	}
	return nil
}

// step brings a piece, of no more than up to end.
func (r *Remote) step(s *span, end, last int64) error {
	if s.body == nil {
		var err error
		if s.body, err = r.ask(s.end(), last); err != nil {
			return err
		}
	}
	n := int(min(piece, end-s.end(), s.body.left))
	if err := r.allowance.take(r.ctx, n); err != nil {
		return err
	}
	have := len(s.buf)
	s.buf = slices.Grow(s.buf, n)
	n, err := s.body.read(s.buf[have : have+n])
	s.buf = s.buf[:have+n]
	r.fetched.Add(int64(n))
	if err == nil && s.body.left == 0 {
		s.drop()
	}
	return err
}

// again waits before the next try; it returns an error if there shall be none.
func (r *Remote) again(err error, tries int) error {
	if cause := context.Cause(r.ctx); cause != nil {
		return cause
	}
	var lost *UnavailableError
	if !errors.As(err, &lost) {
		r.failed = err
		return err
	}
	if tries == triesMost {
		return &UnavailableError{RetryAfter: lost.RetryAfter, Err: fmt.Errorf("%w (tried %d times)", lost.Err, tries)}
	}
	if lost.RetryAfter > patience {
		return lost
	}
	r.retries.Add(1)
	return sleep(r.ctx, lost.RetryAfter+pause(tries))
}
