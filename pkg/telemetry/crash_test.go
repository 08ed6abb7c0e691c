package telemetry

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"birthmark/internal/crashdisk"
)

// A crashDisk is a disk that knows what a power cut leaves of it.
type crashDisk struct{ *crashdisk.Disk }

func newCrashDisk(tb testing.TB, img crashdisk.Image) crashDisk {
	return crashDisk{crashdisk.New(tb, img)}
}

func (d crashDisk) rename(from, to string) error { return d.Rename(from, to) }
func (d crashDisk) remove(path string) error     { return d.Remove(path) }
func (d crashDisk) syncFolder(path string) error { return d.SyncFolder(path) }

func (d crashDisk) open(path string) (file, error) {
	return d.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
}

func (d crashDisk) create(path string) (file, error) {
	return d.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_TRUNC, 0o600)
}

// A promise is what an outbox has told its callers, and what may be found of it
// after a power cut.
type promise struct {
	must   map[string]uint64 // durable messages on disk, with their numbers
	may    map[string]uint64 // those that are allowed to be there
	next   map[string]uint64 // numbers that must not be given out again, by stream
	clean  bool              // nothing is half written
	survey crashdisk.Survey
}

func newPromise() *promise {
	return &promise{must: map[string]uint64{}, may: map[string]uint64{}, next: map[string]uint64{}, clean: true}
}

// look cuts the power now, in every way there is.
func (p *promise) look(tb testing.TB, d crashDisk) {
	p.survey.Look(d.Disk, fmt.Sprint(p.must, p.may, p.next, p.clean), func(img crashdisk.Image) string { return p.reopen(tb, img) })
}

// reopen holds what is found against what was promised.
func (p *promise) reopen(tb testing.TB, img crashdisk.Image) string {
	d := newCrashDisk(tb, img)
	defer d.Discard()
	o, err := openOutbox(filepath.Join(d.Root, "outbox"), Limits{}, d)
	if err != nil {
		return err.Error()
	}
	defer o.Close()
	found := map[string]uint64{}
	for it := range o.waiting.all() {
		if _, twice := found[it.topic]; twice {
			return it.topic + " came twice"
		}
		found[it.topic] = it.seq
		if p.may[it.topic] != it.seq {
			return fmt.Sprintf("%s came with number %d, want %d", it.topic, it.seq, p.may[it.topic])
		}
		if want := fmt.Sprintf(`{"seq":%d,"is":%q}`, it.seq, it.topic); string(it.payload) != want {
			return fmt.Sprintf("%s came as %s, want %s", it.topic, it.payload, want)
		}
	}
	for topic, seq := range p.must {
		if found[topic] != seq {
			return topic + " is lost"
		}
	}
	next := map[string]uint64{}
	for stream, least := range p.next {
		n := o.numberLocked(o.counterLocked(stream))
		if n < least {
			return fmt.Sprintf("%s goes on at %d, want %d or more", stream, n, least)
		}
		next[stream] = n + 1
	}
	if o.stats.Damaged > 0 && p.clean {
		return "a line is damaged"
	}
	return goOn(d, next)
}

// goOn restarts without a goodbye, says one more thing and restarts again. next are
// the numbers that were not given out before.
func goOn(d crashDisk, next map[string]uint64) string {
	o, err := openOutbox(filepath.Join(d.Root, "outbox"), Limits{}, d)
	if err != nil {
		return err.Error()
	}
	defer o.Close()
	for stream, least := range next {
		if n := o.numberLocked(o.counterLocked(stream)); n < least {
			return fmt.Sprintf("%s goes on at %d after the next restart, want %d or more,", stream, n, least)
		}
	}
	if err := o.Put(Message{Topic: "evt/later", QoS: 1, Durable: true, Payload: []byte("{}")}); err != nil {
		return err.Error()
	}
	last, err := openOutbox(filepath.Join(d.Root, "outbox"), Limits{}, d)
	if err != nil {
		return err.Error()
	}
	defer last.Close()
	if got, want := last.waiting.len(), o.waiting.len(); got != want {
		return fmt.Sprintf("%d messages came with the last restart, want %d,", got, want)
	}
	return ""
}

// say puts a message that says what it is; what was promised follows.
func (p *promise) say(o *Outbox, topic string, durable bool) error {
	name := stream(topic)
	o.mu.Lock()
	seq := uint64(1)
	if c := o.streams[name]; c != nil {
		seq = c.next
	}
	o.mu.Unlock()
	p.may[topic] = seq
	err := o.Put(Message{Topic: topic, QoS: 1, Durable: durable, Payload: fmt.Appendf(nil, `{"is": %q}`, topic)})
	if err == nil && durable {
		p.must[topic] = seq
	}
	p.next[name] = seq + 1
	return err
}

// story is what happens to an outbox in the crash tests, step by step.
var story = []struct {
	name string
	do   func(*Outbox, *promise) error
}{
	{"an event", func(o *Outbox, p *promise) error { return p.say(o, "evt/a", true) }},
	{"telemetry", func(o *Outbox, p *promise) error { return p.say(o, "tele/b", false) }},
	{"a session", func(o *Outbox, p *promise) error { p.next[stateTopic] = o.sessionNumber() + 1; return nil }},
	{"a spill", func(o *Outbox, p *promise) error {
		o.spill()
		if o.Stats().Disk == "" {
			p.must["tele/b"] = p.may["tele/b"]
		}
		return nil
	}},
	{"a PUBACK", func(o *Outbox, p *promise) error {
		delete(p.must, "evt/a") // it may be sent again
		for it := range o.waiting.all() {
			if it.topic == "evt/a" {
				o.done(it)
				break
			}
		}
		return nil
	}},
	{"a result", func(o *Outbox, p *promise) error { return p.say(o, "res/ping/c", true) }},
	{"a rewrite", func(o *Outbox, p *promise) error {
		o.mu.Lock()
		o.journal.suspect = true
		o.mu.Unlock()
		return p.say(o, "res/ping/d", true)
	}},
	{"more telemetry", func(o *Outbox, p *promise) error { return p.say(o, "tele/e", false) }},
	{"the end", func(o *Outbox, p *promise) error {
		err := o.Close()
		if err == nil {
			for _, topic := range []string{"tele/b", "tele/e"} {
				p.must[topic] = p.may[topic]
			}
		}
		return err
	}},
}

func TestPowerCutLosesNoPromise(t *testing.T) {
	p := newPromise()
	d := newCrashDisk(t, crashdisk.Image{"outbox": nil})
	d.Before = func(string) error { p.look(t, d); return nil }
	tellStory(t, p, d)
	p.survey.Report(t, 1000)
}

func tellStory(t *testing.T, p *promise, d crashDisk) {
	o, err := openOutbox(filepath.Join(d.Root, "outbox"), Limits{}, d)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range story {
		p.clean = false
		if err := step.do(o, p); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		// What is not synced is torn at most: a PUBACK is not.
		p.clean = step.name != "a PUBACK"
		p.look(t, d)
	}
}

func TestPowerCutFindsWhatIsNotSynced(t *testing.T) {
	for _, idle := range []string{crashdisk.Sync, crashdisk.SyncFolder} {
		p := newPromise()
		d := newCrashDisk(t, crashdisk.Image{"outbox": nil})
		d.Idle = idle
		tellStory(t, p, d)
		if len(p.survey.Faults) == 0 {
			t.Errorf("no fault found after %d cuts without %s", p.survey.Cuts, idle)
		}
	}
}

func TestFailingDiskLosesNoPromise(t *testing.T) {
	failed := map[string]int{}
	for _, errno := range []error{syscall.ENOSPC, syscall.EIO} {
		for _, stays := range []bool{false, true} {
			for n := 1; ; n++ {
				call := failingStory(t, n, errno, stays)
				if call == "" {
					break
				}
				failed[call]++
			}
		}
	}
	want := []string{crashdisk.Close, crashdisk.Open, crashdisk.Rename, crashdisk.Sync, crashdisk.SyncFolder, crashdisk.Write}
	if got := slices.Sorted(maps.Keys(failed)); !slices.Equal(got, want) {
		t.Errorf("calls that failed: %q, want %q", got, want)
	}
}

// failingStory lets the nth call after opening fail, or all from there until the
// last step, and says which one it was.
func failingStory(t *testing.T, n int, errno error, stays bool) (call string) {
	p := newPromise()
	d := newCrashDisk(t, crashdisk.Image{"outbox": nil})
	o, err := openOutbox(filepath.Join(d.Root, "outbox"), Limits{}, d)
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	d.Before = func(c string) error {
		if calls++; calls < n || calls > n && !stays {
			return nil
		}
		if call == "" {
			call = c
		}
		return &fs.PathError{Op: c, Path: "disk", Err: errno}
	}
	for i, step := range story {
		if i == len(story)-1 {
			d.Before = nil // well again, and in time to say goodbye
		}
		before := o.Stats().Waiting
		err := step.do(o, p)
		if err != nil && (!errors.Is(err, errno) || o.Stats().Waiting != before) {
			t.Errorf("%s failed at call %d: %v, %d wait, want %v and %d", call, n, err, o.Stats().Waiting, errno, before)
		}
		if err != nil && i == len(story)-1 {
			t.Errorf("%s failed at call %d: %s on a disk that is well again: %v", call, n, step.name, err)
		}
	}
	p.clean = call == ""
	clear(p.next) // what could not be reserved may come twice
	p.look(t, d)
	for _, fault := range p.survey.Faults {
		t.Errorf("%s failed at call %d, %v, stays %t: %s", call, n, errno, stays, fault)
	}
	return call
}
