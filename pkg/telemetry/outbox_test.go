package telemetry

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// mustOutbox opens the outbox in dir. Who wants it to be closed does so: without,
// it is a process that was killed.
func mustOutbox(t testing.TB, dir string, lim Limits) *Outbox {
	t.Helper()
	o, err := OpenOutbox(dir, lim)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	return o
}

// event puts a durable message with a payload of n bytes.
func event(t testing.TB, o *Outbox, n int) {
	t.Helper()
	m := Message{Topic: "evt/test", QoS: 1, Durable: true, Payload: fmt.Appendf(nil, `{"a":"%s"}`, strings.Repeat("x", max(0, n-8)))}
	if err := o.Put(m); err != nil {
		t.Fatal(err)
	}
}

// numbers are the sequence numbers that wait on a topic.
func numbers(o *Outbox, topic string) (all []uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for it := range o.waiting.all() {
		if it.topic == topic {
			all = append(all, it.seq)
		}
	}
	return all
}

// kill stands for kill -9 or a power cut: what is only in memory is gone.
func kill(o *Outbox) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.spiller.Stop()
	o.journal.close()
}

func TestNumbersGoOnAfterARestart(t *testing.T) {
	dir := t.TempDir()
	o := mustOutbox(t, dir, Limits{})
	put(t, o, 3)
	event(t, o, 0)
	if n := o.sessionNumber(); n != 1 {
		t.Errorf("first session has number %d, want 1", n)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	o = mustOutbox(t, dir, Limits{})
	put(t, o, 1)
	event(t, o, 0)
	if got := numbers(o, "tele/system"); !slices.Equal(got, []uint64{1, 2, 3, 4}) {
		t.Errorf("telemetry after Close: %v, want 1 2 3 4: no gap", got)
	}
	if got := numbers(o, "evt/test"); !slices.Equal(got, []uint64{1, 2}) {
		t.Errorf("events after Close: %v, want 1 2", got)
	}
	if n := o.sessionNumber(); n != 2 {
		t.Errorf("second session has number %d, want 2", n)
	}
	kill(o)
	o = mustOutbox(t, dir, Limits{})
	put(t, o, 1)
	got := numbers(o, "tele/system")
	if n := got[len(got)-1]; n <= 4 || n > 4+reserve {
		t.Errorf("telemetry after a kill goes on at %d, want more than 4 and %d at most", n, 4+reserve)
	}
	if n := o.sessionNumber(); n <= 2 || n > 2+reserve {
		t.Errorf("the session after a kill has number %d, want more than 2 and %d at most", n, 2+reserve)
	}
}

func TestBoundByCount(t *testing.T) {
	dir := t.TempDir()
	o := mustOutbox(t, dir, Limits{Messages: 10})
	put(t, o, 25)
	if got := numbers(o, "tele/system"); len(got) != 10 || got[0] != 16 || got[9] != 25 {
		t.Errorf("%v wait, want 16 to 25: the oldest go first", got)
	}
	if s := o.Stats(); s.Waiting != 10 || s.Dropped != 15 || s.DroppedDurable != 0 {
		t.Errorf("stats %+v, want 10 waiting, 15 dropped", s)
	}
	for range 12 {
		event(t, o, 0)
	}
	if s := o.Stats(); s.Waiting != 10 || s.Dropped != 27 || s.DroppedDurable != 2 {
		t.Errorf("stats %+v, want 10 waiting, 27 dropped, 2 of them durable", s)
	}
	put(t, o, 1)
	if got := numbers(o, "evt/test"); len(got) != 10 || got[0] != 3 {
		t.Errorf("events %v wait, want 3 to 12: telemetry takes no event's place", got)
	}
	if s := o.Stats(); s.Dropped != 28 {
		t.Errorf("stats %+v, want 28 dropped", s)
	}
	kill(o)
	o = mustOutbox(t, dir, Limits{Messages: 10})
	if got := numbers(o, "evt/test"); len(got) != 10 || got[0] != 3 {
		t.Errorf("after a kill events %v wait, want 3 to 12", got)
	}
}

func TestBoundByBytes(t *testing.T) {
	dir := t.TempDir()
	lim := Limits{Bytes: leastBytes}
	o := mustOutbox(t, dir, lim)
	var most int64
	for n := range 300 {
		switch n % 3 {
		case 0:
			event(t, o, 20_000)
		case 1:
			event(t, o, 100)
		case 2:
			put(t, o, 50)
			o.spill()
		}
		var disk int64
		for _, name := range []string{journalName, spareName} {
			if info, err := os.Stat(filepath.Join(dir, name)); err == nil {
				disk += info.Size()
			}
		}
		most = max(most, disk)
		if s := o.Stats(); s.Bytes > o.room() {
			t.Fatalf("%d bytes wait in memory, limit %d", s.Bytes, o.room())
		}
	}
	// While it is rewritten, at most as much again as may wait is there.
	if most+o.room() > lim.Bytes {
		t.Errorf("the journal had %d bytes, and %d to be rewritten: limit %d", most, o.room(), lim.Bytes)
	}
	if s := o.Stats(); s.Dropped == 0 || s.DroppedDurable == 0 {
		t.Errorf("stats %+v: nothing was dropped", s)
	}
	want := numbers(o, "evt/test")
	kill(o)
	if got := numbers(mustOutbox(t, dir, lim), "evt/test"); !slices.Equal(got, want) {
		t.Errorf("after a kill %v wait, want %v", got, want)
	}
}

func TestDurableIsOnDiskWhenPutReturns(t *testing.T) {
	dir := t.TempDir()
	for n := range uint64(5) {
		o := mustOutbox(t, dir, Limits{})
		event(t, o, 0)
		put(t, o, 1)
		kill(o)
		o = mustOutbox(t, dir, Limits{})
		if got := numbers(o, "evt/test"); uint64(len(got)) != n+1 {
			t.Errorf("%d events after %d kills, want all", len(got), n+1)
		}
		if got := numbers(o, "tele/system"); len(got) != 0 {
			t.Errorf("telemetry %v was written to disk at once", got)
		}
		kill(o)
	}
}

func TestAtMostOneIntervalIsLost(t *testing.T) {
	for _, after := range []time.Duration{time.Second, 29 * time.Second, 31 * time.Second, 10*time.Minute + 5*time.Second} {
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			o := mustOutbox(t, dir, Limits{})
			var said []time.Time
			for start := time.Now(); time.Since(start) < after; pass(time.Second) {
				put(t, o, 1)
				said = append(said, time.Now())
			}
			kill(o)
			kept := len(numbers(mustOutbox(t, dir, Limits{}), "tele/system"))
			if kept < len(said) && time.Since(said[kept]) > spillAfter {
				t.Errorf("killed after %v: %d of %d kept, one lost was %v old, want %v at most",
					after, kept, len(said), time.Since(said[kept]), spillAfter)
			}
		})
	}
}

func TestNothingIsSpilledOnline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		o := mustOutbox(t, dir, Limits{})
		put(t, o, 1)
		o.online()
		size := func() int64 {
			info, err := os.Stat(filepath.Join(dir, journalName))
			if err != nil {
				t.Fatal(err)
			}
			return info.Size()
		}
		before := size()
		for range 200 {
			put(t, o, 1)
			o.done(o.next())
			pass(time.Minute)
		}
		if got := size(); got != before {
			t.Errorf("%d bytes were written in 200 minutes online, want none", got-before)
		}
		o.offline()
		pass(spillAfter + time.Second)
		if got := size(); got == before {
			t.Errorf("nothing was spilled %v after the session", spillAfter)
		}
	})
}

func TestCloseLosesNothing(t *testing.T) {
	dir := t.TempDir()
	o := mustOutbox(t, dir, Limits{})
	o.online()
	put(t, o, 5)
	o.next() // is on its way, and not acknowledged
	for range 2 {
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.Put(Message{Topic: "tele/a", Payload: []byte("{}")}); err == nil {
		t.Error("Put after Close was accepted")
	}
	o = mustOutbox(t, dir, Limits{})
	if got := numbers(o, "tele/system"); len(got) != 5 {
		t.Errorf("%v wait after Close, want 1 to 5", got)
	}
}

func TestPutSaysWhatIsWrong(t *testing.T) {
	o := testOutbox(t)
	good := Message{Topic: "tele/a", QoS: 1, Payload: []byte(`{"a": 1}`)}
	for name, spoil := range map[string]func(*Message){
		"no topic":            func(m *Message) { m.Topic = "" },
		"state":               func(m *Message) { m.Topic = "state" },
		"a command":           func(m *Message) { m.Topic = "cmd/a/b" },
		"a wildcard":          func(m *Message) { m.Topic = "tele/+" },
		"a level too many":    func(m *Message) { m.Topic = "tele/a/b" },
		"a result without id": func(m *Message) { m.Topic = "res/a" },
		"QoS 2":               func(m *Message) { m.QoS = 2 },
		"durable with QoS 0":  func(m *Message) { m.QoS, m.Durable = 0, true },
		"no JSON":             func(m *Message) { m.Payload = []byte("a") },
		"null":                func(m *Message) { m.Payload = []byte("null") },
		"an array":            func(m *Message) { m.Payload = []byte("[1]") },
		"two objects":         func(m *Message) { m.Payload = []byte("{}{}") },
		"seq":                 func(m *Message) { m.Payload = []byte(`{"s\u0065q": 1}`) },
		"not UTF-8":           func(m *Message) { m.Payload = []byte("{\"a\": \"\xff\"}") },
		"too long":            func(m *Message) { m.Payload = fmt.Appendf(nil, `{"a":%q}`, strings.Repeat("x", PayloadLimit)) },
	} {
		m := good
		spoil(&m)
		if err := o.Put(m); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := o.Put(good); err != nil {
		t.Error(err)
	}
	for n := 0; ; n++ {
		err := o.Put(Message{Topic: fmt.Sprintf("tele/%d", n), Payload: []byte("{}")})
		if err != nil {
			break
		}
		if n > streamLimit {
			t.Fatalf("%d streams were made, limit %d", n, streamLimit)
		}
	}
	if err := o.Put(good); err != nil {
		t.Errorf("an old stream after too many new ones: %v", err)
	}
	for _, lim := range []Limits{{Bytes: 1}, {Messages: -1}} {
		if _, err := OpenOutbox(t.TempDir(), lim); err == nil {
			t.Errorf("limits %+v were accepted", lim)
		}
	}
}
