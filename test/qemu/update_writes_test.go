package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"birthmark/internal/agent"
	"birthmark/pkg/fota"
	"birthmark/test/qemu/boot"
	"birthmark/test/qemu/image"
	"birthmark/test/qemu/writelog"
)

// updateLosses is what losses is, for an update.
const updateLosses = 4

// A recording is of all that was written to a disk while its device went from one release
// to the next. The times are numbers of entries in the log.
type recording struct {
	offline
	*testing.T
	log         string // file
	first, next release
	ordered     int // the device was told to
	armed       int // and said that the next start tries it
	settled     int // and that it runs for good
	before      *writelog.Disk
	esp, data   part
	slots       []part
	starts      map[uint64]start // by what the EFI system partition holds
	phases      map[uint64]phase // by what the data partition holds
	whole       map[uint64]error // slots, by what is in them
}

// A part is one of a disk.
type part struct{ at, size int64 }

func (p part) of(d io.ReaderAt) io.ReaderAt { return io.NewSectionReader(d, p.at, p.size) }

func (p part) has(e writelog.Entry) bool {
	return e.Size > 0 && e.At < p.at+p.size && e.At+e.Size > p.at
}

func newRecording(t *testing.T, first, next release) *recording {
	t.Helper()
	r := &recording{T: t, offline: newOffline(t), first: first, next: next, before: writelog.NewDisk(),
		starts: map[uint64]start{}, phases: map[uint64]phase{}, whole: map[uint64]error{}}
	r.log = filepath.Join(r.dir, "log")
	if err := os.WriteFile(r.log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return r
}

// now is how much there is in the log. Each flush is counted there before the device goes on.
func (r *recording) now() int {
	r.Helper()
	n, err := writelog.Count(r.log)
	if err != nil {
		r.Fatal(err)
	}
	return int(n)
}

// cutEverywhere cuts the power behind each write that is of the EFI system partition or,
// since the update was ordered, flushes the data partition; and at each flush before which
// one of these was written, it has the disk lose some of what it was not told to flush.
// Whatever that leaves, there is something to start, all of which was signed; what the
// device had said is true; and nothing is started that it does not remember to have armed.
func (r *recording) cutEverywhere(t *testing.T) {
	t.Helper()
	random, start := seeded(t), time.Now()
	writes := r.load()
	behind, lossy, faulty := 0, 0, 0
	try := func(d *writelog.Disk, n int, how string) {
		if err := r.judge(d, n); err != nil {
			t.Errorf("power cut %s write %d of %d (ordered at %d, armed at %d, settled at %d): %v", how, n, len(writes), r.ordered, r.armed, r.settled, err)
			if faulty++; faulty == faultsTold {
				t.FailNow()
			}
		}
	}
	replay := writelog.NewReplay(writes, r.before)
	losses := 0 // of what was written since the last flush
	for n, e := range writes {
		flushed := e.Flags&writelog.Flush != 0 && losses > 0
		if flushed {
			for range losses {
				lossy++
				try(replay.Some(random), n, "with writes lost before")
			}
			losses = 0
		}
		replay.Step()
		esp := r.esp.has(e)
		switch {
		case esp:
			losses = fromEnvironment("LOSSES", updateLosses)
		case n >= r.ordered && r.data.has(e):
			losses = max(losses, 1) // more is the business of TestEveryWriteOfAFirstBoot
		}
		if esp || flushed || n+1 == r.armed || n+1 == r.settled {
			behind++
			try(replay.All(), n+1, "behind")
		}
	}
	t.Logf("%d entries in the log; %d power cuts behind a write, %d with writes lost; different EFI system partitions %d, data partitions %d; %.1f s",
		len(writes), behind, lossy, len(r.starts), len(r.phases), time.Since(start).Seconds())
	r.wouldShow(t, writes, random)
}

// wouldShow has a disk lose what it was told to flush, to see that it would show.
func (r *recording) wouldShow(t *testing.T, writes []writelog.Entry, random *rand.Rand) {
	t.Helper()
	idle := slices.Clone(writes)
	for i := r.ordered; i < len(idle); i++ {
		idle[i].Flags &^= writelog.Flush
	}
	replay, faults := writelog.NewReplay(idle, r.before), 0
	for range idle {
		replay.Step()
	}
	const tries = 4
	for range tries {
		if r.judge(replay.Some(random), len(idle)) != nil {
			faults++
		}
	}
	if faults == 0 {
		t.Errorf("without flushes in the update a power cut at its end does not show in %d tries", tries)
	}
}

// load reads what was on the disk, and what was written to it.
func (r *recording) load() []writelog.Entry {
	r.Helper()
	text, err := os.ReadFile(r.log)
	if err != nil {
		r.Fatal(err)
	}
	writes, err := writelog.Parse(text)
	if err != nil {
		r.Fatal(err)
	}
	if err := load(r.before, img.Disk, 0, r.size); err != nil {
		r.Fatal(err)
	}
	tables := writelog.NewReplay(slices.DeleteFunc(slices.Clone(writes), func(e writelog.Entry) bool {
		return !part{0, tableSize}.has(e) && !part{r.size - tableSize, tableSize}.has(e)
	}), r.before)
	for _, more := tables.Next(); more; _, more = tables.Next() {
		tables.Step()
	}
	find := func(d *writelog.Disk, name string) part {
		r.Helper()
		start, size, err := partition(d, r.size, name)
		if err != nil || size == 0 {
			r.Fatalf("there is no partition %s (%v)", name, err)
		}
		return part{start, size}
	}
	r.esp, r.data = find(r.before, "esp"), find(tables.All(), "data")
	r.slots = []part{find(r.before, "root-a"), find(r.before, "root-b")}
	for n, e := range writes {
		if r.slots[0].has(e) {
			r.Fatalf("write %d is to root-a, which runs or is what can be fallen back to", n+1)
		}
	}
	return writes
}

// A start is what happens when the device is powered on.
type start struct {
	release  fota.Version // that is started
	counter  boot.Entry   // its own, without contents
	offered  bool         // the next release is one of those that are started, sooner or later
	repaired fota.Version // that is started once the system has repaired the partition
	err      error
}

// A phase is that of the update, as the agent finds it remembered.
type phase struct {
	update string
	done   bool
	err    error
}

// judge holds what a power cut leaves, when so many writes were in the log, against what
// must be.
func (r *recording) judge(d *writelog.Disk, n int) error {
	sum := d.Sum(r.esp.at, r.esp.size)
	s, ok := r.starts[sum]
	if !ok {
		s = r.powerOn(d)
		r.starts[sum] = s
	}
	if s.err != nil {
		return s.err
	}
	if s.offered {
		if err := r.verify(d, r.slots[1], r.next.verity); err != nil {
			return fmt.Errorf("%v is started, and root-b does not verify: %w", r.next.version, err)
		}
	}
	if n < r.ordered {
		if s.release != r.first.version || s.offered {
			return fmt.Errorf("before the update %v is started", s.release)
		}
		return nil
	}
	sum = d.Sum(r.data.at, r.data.size)
	p, ok := r.phases[sum]
	if !ok {
		p = r.remembered(d)
		r.phases[sum] = p
	}
	next := s.release == r.next.version && s.repaired == r.next.version
	late := p.update == "armed" || p.update == "trial" || p.update == "settled"
	switch {
	case p.err != nil:
		return p.err
	case s.offered && !late:
		return fmt.Errorf("%v is started, and the update is remembered to be %q", r.next.version, p.update)
	case n >= r.settled && (!p.done || !next || s.counter.Left != image.Tries || s.counter.Done != 0):
		return fmt.Errorf("it was found good, and %s is started, the update %q and done: %t", s.counter.Name, p.update, p.done)
	case n >= r.armed && (!late || !next):
		return fmt.Errorf("it was armed, and %v is started, or %v, the update %q", s.release, s.repaired, p.update)
	case p.done && !next:
		return fmt.Errorf("it is remembered to be found good, and %v is started", s.release)
	}
	return nil
}

// powerOn looks at the EFI system partition as the boot loader does and, since the system
// then repairs it, as it does at the start after that.
func (r *recording) powerOn(d *writelog.Disk) start {
	path := filepath.Join(r.dir, "esp.img")
	if err := d.Save(path, r.esp.at, r.esp.size); err != nil {
		return start{err: err}
	}
	raw, err := r.look(path)
	if err != nil {
		return start{err: err}
	}
	// systemd goes on when it ends with 0 or 1: all is well now.
	out, err := exec.Command("/usr/sbin/fsck.fat", "-a", path).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		return start{err: fmt.Errorf("the EFI system partition is damaged: fsck.fat: %w: %s", err, out)}
	}
	after, err := r.look(path)
	if err != nil {
		return start{err: fmt.Errorf("after its repair: %w: %s", err, out)}
	}
	raw.repaired = after.release
	raw.offered = raw.offered || after.offered
	return raw
}

// look tells what is started from an EFI system partition: each release in there is whole.
func (r *recording) look(path string) (start, error) {
	f, err := os.Open(path)
	if err != nil {
		return start{}, err
	}
	defer f.Close()
	entries, err := boot.Entries(f)
	if err != nil {
		return start{}, err
	}
	if err := whole(entries, r.first, r.next); err != nil {
		return start{}, err
	}
	s := start{release: entries[0].Version, counter: entries[0]}
	s.counter.Program = nil
	for _, e := range entries {
		s.offered = s.offered || e.Version == r.next.version
	}
	return s, nil
}

// whole holds what the boot loader finds against what was signed: there is something, and
// all of it is one of some releases.
func whole(entries []boot.Entry, signed ...release) error {
	if len(entries) == 0 {
		return errors.New("there is nothing to start")
	}
	for _, e := range entries {
		if !slices.ContainsFunc(signed, func(r release) bool { return r.version == e.Version && string(r.program) == string(e.Program) }) {
			return fmt.Errorf("%s, %d bytes, is no release that was signed", e.Name, len(e.Program))
		}
	}
	return nil
}

// verify verifies a slot, once for what is in it.
func (r *recording) verify(d *writelog.Disk, slot part, v image.Verity) error {
	sum := d.Sum(slot.at, slot.size)
	err, ok := r.whole[sum]
	if !ok {
		err = v.Check(slot.of(d))
		r.whole[sum] = err
	}
	return err
}

// remembered reads what the agent remembers of the update.
func (r *recording) remembered(d *writelog.Disk) phase {
	found, err := r.offline.look(d)
	if err != nil {
		return phase{err: err}
	}
	if found.state == nil {
		return phase{err: errors.New("the agent has no state")}
	}
	return phaseOf(found.device)
}

func phaseOf(d agent.Device) phase {
	return phase{update: string(d.Update.Phase), done: d.Update.Outcome == "installed"}
}
