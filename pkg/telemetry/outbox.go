package telemetry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	defaultBytes    = 4 << 20   // Limits.Bytes
	leastBytes      = 512 << 10 // what Limits.Bytes cannot be below
	defaultMessages = 4096      // Limits.Messages

	spillAfter   = 30 * time.Second // without a session
	streamLimit  = 64               // streams: each takes memory and disk for ever
	reserve      = 256              // numbers given out for one write to the disk
	rewriteLimit = 64 << 10         // bytes up to which a journal is not worth rewriting
)

// Limits bound an Outbox. Zero fields mean the defaults.
type Limits struct {
	// Bytes is what the outbox takes on disk at most, its past and the room for
	// rewriting included; default 4 MiB, at least 512 KiB. A third of it is for
	// messages that wait, which are in memory as well.
	Bytes int64
	// Messages is how many can wait; default 4096.
	Messages int
}

// Stats is what an Outbox knows of itself. It is part of the state message.
type Stats struct {
	// Waiting messages and their bytes, those on their way included.
	Waiting int   `json:"waiting"`
	Bytes   int64 `json:"bytes"`
	// Dropped messages since the outbox was opened, for want of room, and how many
	// of them were durable.
	Dropped        uint64 `json:"dropped"`
	DroppedDurable uint64 `json:"dropped_durable,omitempty"`
	// Damaged lines in the journal when it was opened, a torn last one included.
	Damaged int `json:"damaged,omitempty"`
	// Disk is the last error of the disk, empty once it works again. Messages that
	// are not durable go on without it, from memory.
	Disk string `json:"disk,omitempty"`
}

// An Outbox holds messages until the broker has them. It is safe for concurrent
// use, by one Link at a time. The folder is for one Outbox at a time, which its
// owner has to see to.
//
// Numbers are reserved on disk in blocks, so that none is given out twice although
// not each is written down. After a crash a stream goes on at its next block: a gap
// of up to 256 may mean no more than that. Close leaves no gap.
type Outbox struct {
	wake chan struct{} // holds an entry when there may be something new to send

	mu      sync.Mutex // guards all below
	limits  Limits
	journal *journal // nil while it is read
	streams map[string]*counter
	waiting queue
	stats   Stats
	offLine bool        // no session
	spiller *time.Timer // calls spill
	closed  bool
}

// A counter numbers a stream. The journal covers the numbers below reserved.
type counter struct{ next, reserved uint64 }

// OpenOutbox opens the outbox in the folder dir, which it makes if there is none.
func OpenOutbox(dir string, lim Limits) (*Outbox, error) { return openOutbox(dir, lim, realDisk{}) }

func openOutbox(dir string, lim Limits, d disk) (*Outbox, error) {
	if lim.Bytes == 0 {
		lim.Bytes = defaultBytes
	}
	if lim.Messages == 0 {
		lim.Messages = defaultMessages
	}
	if lim.Bytes < leastBytes || lim.Messages < 1 {
		return nil, fmt.Errorf("cannot open the outbox: limits of %d bytes and %d messages are too small", lim.Bytes, lim.Messages)
	}
	o := &Outbox{
		wake:    make(chan struct{}, 1),
		limits:  lim,
		streams: map[string]*counter{stateTopic: {1, 1}}, // sessions are numbered, too
		offLine: true,
	}
	j, damaged, err := openJournal(dir, d, o.replay)
	if err != nil {
		return nil, fmt.Errorf("cannot open the outbox: %w", err)
	}
	o.journal, o.stats.Damaged = j, damaged
	o.mu.Lock() // spill wants spiller to be there
	defer o.mu.Unlock()
	o.spiller = time.AfterFunc(spillAfter, o.spill)
	return o, nil
}

// Put adds a message. A durable one is on disk when Put returns without an error.
// When Put fails, the message is not kept, though a power cut soon after may bring
// it back; the error of a full disk is that of the system, so errors.Is(err,
// syscall.ENOSPC) holds. A message that is not durable
// may have to make room at any later time, or at once.
func (o *Outbox) Put(m Message) error {
	if err := o.put(m); err != nil {
		return fmt.Errorf("cannot keep a message for %s: %w", m.Topic, err)
	}
	select {
	case o.wake <- struct{}{}:
	default:
	}
	return nil
}

func (o *Outbox) put(m Message) error {
	if err := m.check(); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return errors.New("the outbox is closed")
	}
	members, err := members(m.Payload)
	if err != nil {
		return err
	}
	c := o.counterLocked(stream(m.Topic))
	if c == nil {
		return fmt.Errorf("there are %d streams already", streamLimit)
	}
	it := &item{topic: m.Topic, qos: m.QoS, durable: m.Durable, seq: o.numberLocked(c)}
	it.payload = fmt.Appendf(nil, `{"seq":%d%s}`, it.seq, members)
	if !o.admitLocked(it) || !m.Durable {
		return nil
	}
	if err := o.saveLocked([]*item{it}); err != nil {
		o.waiting.remove(func(i *item) bool { return i == it })
		return err
	}
	return nil
}

// members returns the members of a JSON object, without spaces and each with a
// comma in front.
func members(object []byte) ([]byte, error) {
	var m map[string]json.RawMessage
	var compact bytes.Buffer
	if json.Unmarshal(object, &m) != nil || m == nil || !utf8.Valid(object) || json.Compact(&compact, object) != nil {
		return nil, errors.New("the payload is not a JSON object")
	}
	if _, ok := m["seq"]; ok {
		return nil, errors.New(`the payload has a member "seq"`)
	}
	if len(m) == 0 {
		return nil, nil
	}
	b := compact.Bytes()
	b[0] = ','
	return b[:len(b)-1], nil
}

// admitLocked adds an item, the oldest ones making room for it. It says whether
// there was room.
func (o *Outbox) admitLocked(it *item) bool {
	it.size = int64(len(it.record().line()))
	for o.waiting.bytes+it.size > o.room() || o.waiting.len() >= o.limits.Messages {
		gone := o.waiting.dropFor(it.durable)
		o.stats.Dropped++
		if gone == nil {
			return false // it is the oldest one that may go
		}
		if gone.durable {
			o.stats.DroppedDurable++
		}
		o.forgetLocked(gone)
	}
	o.waiting.add(it)
	return true
}

// room is what waiting messages may take, in bytes: the journal grows to twice as
// much, and as much again is needed while it is rewritten.
func (o *Outbox) room() int64 { return (o.limits.Bytes - rewriteLimit) / 3 }

// counterLocked finds a stream's counter, or makes one; nil when there are too many.
func (o *Outbox) counterLocked(name string) *counter {
	c := o.streams[name]
	if c == nil && len(o.streams) < streamLimit {
		c = &counter{1, 1}
		o.streams[name] = c
	}
	return c
}

// numberLocked gives out a number, having reserved it. When the disk refuses, the
// number is given out all the same: after a crash it might then come twice.
func (o *Outbox) numberLocked(c *counter) uint64 {
	if c.next >= c.reserved {
		c.reserved = c.next + reserve
		if o.appendLocked(true, o.reservedLocked()) != nil {
			c.reserved = c.next
		}
	}
	c.next++
	return c.next - 1
}

// Stats returns the counters.
func (o *Outbox) Stats() Stats {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.stats
	s.Waiting, s.Bytes = o.waiting.len(), o.waiting.bytes
	return s
}

// Close writes down what is only in memory. It may be called twice.
func (o *Outbox) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil
	}
	o.closed = true
	o.spiller.Stop()
	err := o.saveLocked(o.waiting.unsaved())
	if err == nil {
		err = o.releaseLocked()
	}
	if err = errors.Join(err, o.journal.close()); err != nil {
		return fmt.Errorf("cannot close the outbox: %w", err)
	}
	return nil
}

// The Link's side.

// sessionNumber is higher than that of any session before.
func (o *Outbox) sessionNumber() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.numberLocked(o.streams[stateTopic])
}

// online begins a session.
func (o *Outbox) online() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.offLine = false
	o.spiller.Stop()
}

// offline ends a session: what was on its way waits again.
func (o *Outbox) offline() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.waiting.rewind()
	o.offLine = true
	if !o.closed {
		o.spiller.Reset(spillAfter)
	}
}

// next takes the next message to be sent in this session; nil when there is none.
func (o *Outbox) next() *item {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.waiting.next()
}

// done takes out what the broker has acknowledged. it may be gone already.
func (o *Outbox) done(it *item) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.waiting.remove(func(i *item) bool { return i == it }) {
		o.forgetLocked(it)
	}
}

// The disk's side. Errors of the disk are noted in stats, since most callers go on
// without it.

// replay takes one record of the journal into memory.
func (o *Outbox) replay(r record) {
	switch {
	case r.Next != nil:
		for name, n := range r.Next {
			if c := o.counterLocked(name); c != nil {
				*c = counter{n, n}
			}
		}
	case r.Done != "":
		o.waiting.remove(func(it *item) bool { return it.seq == r.Seq && stream(it.topic) == r.Done })
	case r.Payload != nil:
		if c := o.counterLocked(stream(r.Topic)); c != nil && c.next <= r.Seq {
			*c = counter{r.Seq + 1, r.Seq + 1}
		}
		o.admitLocked(&item{topic: r.Topic, qos: r.QoS, durable: r.Durable, seq: r.Seq, payload: r.Payload, saved: true})
	}
}

// saveLocked has the items on disk when it returns without an error.
func (o *Outbox) saveLocked(items []*item) error {
	if len(items) == 0 {
		return nil
	}
	records := make([]record, len(items))
	for i, it := range items {
		records[i] = it.record()
	}
	if err := o.appendLocked(true, records...); err != nil {
		return err
	}
	for _, it := range items {
		o.waiting.markSaved(it)
	}
	return nil
}

// forgetLocked writes down that an item no longer waits. It is not synced: what is
// there again after a power cut is sent again.
func (o *Outbox) forgetLocked(it *item) {
	if it.saved && o.journal != nil {
		_ = o.appendLocked(false, record{Done: stream(it.topic), Seq: it.seq})
	}
}

// releaseLocked gives back reserved numbers.
func (o *Outbox) releaseLocked() error {
	reserved := false
	for _, c := range o.streams {
		reserved = reserved || c.reserved != c.next
		c.reserved = c.next
	}
	if !reserved {
		return nil
	}
	return o.appendLocked(true, o.reservedLocked())
}

// reservedLocked is the record of where the streams go on after a crash.
func (o *Outbox) reservedLocked() record {
	next := map[string]uint64{}
	for name, c := range o.streams {
		next[name] = max(c.reserved, c.next) // less if the disk refused before
	}
	return record{Next: next}
}

// appendLocked appends records. A journal that is suspect, or has become too long,
// is rewritten before.
func (o *Outbox) appendLocked(sync bool, records ...record) error {
	var size int64
	for _, r := range records {
		size += int64(len(r.line()))
	}
	var err error
	if o.journal.suspect || o.journal.size+size > max(rewriteLimit, 2*min(o.waiting.saved, o.room())) {
		err = o.journal.rewrite(o.saved())
	}
	if err == nil {
		err = o.journal.append(sync, records...)
	}
	o.stats.Disk = ""
	if err != nil {
		o.stats.Disk = err.Error()
	}
	return err
}

// saved is what a new journal has to say.
func (o *Outbox) saved() iter.Seq[record] {
	return func(yield func(record) bool) {
		if !yield(o.reservedLocked()) {
			return
		}
		for it := range o.waiting.all() {
			if it.saved && !yield(it.record()) {
				return
			}
		}
	}
}

// spill writes down what has gathered without a session, again and again until
// there is one.
func (o *Outbox) spill() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || !o.offLine {
		return
	}
	_ = o.saveLocked(o.waiting.unsaved()) // noted, and tried again
	o.spiller.Reset(spillAfter)
}
