package telemetry

import (
	"iter"
	"slices"
)

// An item is a waiting message.
type item struct {
	topic   string
	qos     byte
	durable bool
	seq     uint64
	payload []byte // with seq in it
	size    int64  // bytes of its line in the journal
	saved   bool   // it is in the journal
}

// record is the item as the journal has it.
func (it *item) record() record {
	return record{Topic: it.topic, QoS: it.qos, Durable: it.durable, Seq: it.seq, Payload: it.payload}
}

// A queue is what waits in memory: durable messages are sent first, others after
// them, each kind in the order of Put. So the order of a stream is kept as long as
// its messages are of one kind.
type queue struct {
	durable, other lane
	bytes          int64 // of all items
	saved          int64 // of those in the journal
}

// A lane is in order. The first sent items of it are on their way.
type lane struct {
	items []*item
	sent  int
}

func (q *queue) lanes() [2]*lane { return [...]*lane{&q.durable, &q.other} }

func (q *queue) len() int { return len(q.durable.items) + len(q.other.items) }

// all yields the items in the order in which they would be sent.
func (q *queue) all() iter.Seq[*item] {
	return func(yield func(*item) bool) {
		for _, l := range q.lanes() {
			for _, it := range l.items {
				if !yield(it) {
					return
				}
			}
		}
	}
}

// unsaved is what only memory has.
func (q *queue) unsaved() (items []*item) {
	for it := range q.all() {
		if !it.saved {
			items = append(items, it)
		}
	}
	return items
}

func (q *queue) add(it *item) {
	l := &q.other
	if it.durable {
		l = &q.durable
	}
	l.items = append(l.items, it)
	q.bytes += it.size
	if it.saved {
		q.saved += it.size
	}
}

// markSaved notes that the journal has the item.
func (q *queue) markSaved(it *item) {
	if !it.saved {
		it.saved = true
		q.saved += it.size
	}
}

// next takes the next item that is not on its way; nil when there is none.
func (q *queue) next() *item {
	for _, l := range q.lanes() {
		if l.sent < len(l.items) {
			l.sent++
			return l.items[l.sent-1]
		}
	}
	return nil
}

// rewind forgets that items are on their way.
func (q *queue) rewind() {
	q.durable.sent, q.other.sent = 0, 0
}

// remove takes out the item that is says, and tells whether there was one.
func (q *queue) remove(is func(*item) bool) bool {
	for _, l := range q.lanes() {
		if i := slices.IndexFunc(l.items, is); i >= 0 {
			q.removeAt(l, i)
			return true
		}
	}
	return false
}

func (q *queue) removeAt(l *lane, i int) *item {
	it := l.items[i]
	l.items = slices.Delete(l.items, i, i+1)
	if i < l.sent {
		l.sent--
	}
	q.bytes -= it.size
	if it.saved {
		q.saved -= it.size
	}
	return it
}

// dropFor takes out the item that goes first when there is no room: the oldest one
// that is not durable or, for a durable message only, the oldest durable one.
// Items on their way may be there already, so they go last of their kind. nil
// means that nothing may go.
func (q *queue) dropFor(durable bool) *item {
	for _, l := range []*lane{&q.other, &q.durable} {
		if len(l.items) == 0 || l == &q.durable && !durable {
			continue
		}
		i := l.sent
		if i == len(l.items) {
			i = 0
		}
		return q.removeAt(l, i)
	}
	return nil
}
