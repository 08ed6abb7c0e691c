package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"birthmark/internal/crashdisk"
)

// A crashDisk is a disk that knows what a power cut leaves of it.
type crashDisk struct{ *crashdisk.Disk }

func newCrashDisk(tb testing.TB, img crashdisk.Image) crashDisk {
	return crashDisk{crashdisk.New(tb, img)}
}

func (d crashDisk) dir() string                  { return filepath.Join(d.Root, "log") }
func (d crashDisk) rename(from, to string) error { return d.Rename(from, to) }
func (d crashDisk) syncFolder(path string) error { return d.SyncFolder(path) }

func (d crashDisk) mkdir(path string) error { return d.Mkdir(path, 0o700) }

func (d crashDisk) open(path string) (file, error) {
	return d.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
}

// smallLimit lets a log rotate after two or three lines.
const smallLimit = 450

// A found is what is in a log's folder: the events of the chain, and whether a damaged
// log was kept aside.
type found struct {
	events  []string
	damaged bool
}

func (f found) String() string { return fmt.Sprintf("%q, damaged log kept %t", f.events, f.damaged) }

// read follows the chain from the first line that is kept to the last.
func read(dir string) (f found, err error) {
	prev := ""
	for _, name := range []string{fileName + ".1", fileName} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return f, err
		}
		if prev, _, err = Verify(bytes.NewReader(text), prev); err != nil {
			return f, fmt.Errorf("%s: %w", name, err)
		}
		s, err := eventsOf(text)
		if err != nil {
			return f, err
		}
		f.events = append(f.events, s...)
	}
	f.damaged = exists(filepath.Join(dir, fileName+".damaged-1"))
	return f, nil
}

func exists(path string) bool { _, err := os.Lstat(path); return err == nil }

// reopened is what a log holds that is opened through a disk now, and closed again.
func reopened(at crashDisk, through disk) (f found, err error) {
	l, err := open(at.dir(), through, smallLimit)
	if err != nil {
		return f, err
	}
	defer l.Close()
	return read(at.dir())
}

// A notary holds what a power cut may leave against what was acknowledged.
type notary struct {
	crashdisk.Survey
	from, done int  // lines from..done are there, done of them acknowledged
	begun      bool // and one more may be
}

// name is the event of the nth line.
func name(n int) string { return fmt.Sprint("event-", n) }

// look cuts the power now, in every way there is.
func (n *notary) look(tb testing.TB, d crashDisk) {
	// What is in the files now, as programs see them, is the least that stays.
	n.from = n.done + 1
	for _, part := range []string{fileName, fileName + ".1"} {
		text, _ := os.ReadFile(filepath.Join(d.dir(), part))
		if s := scan(text, ""); s.n > 0 {
			n.from = min(n.from, int(s.seq)-s.n+1)
		}
	}
	n.Look(d.Disk, fmt.Sprintf("lines %d to %d, and one more %t", n.from, n.done, n.begun), func(img crashdisk.Image) string { return n.reopen(tb, img) })
}

// reopen opens the log that a power cut left, holds it against the promise, cuts the
// power again before every call of that Open, and appends to what it found.
func (n *notary) reopen(tb testing.TB, img crashdisk.Image) (fault string) {
	d := newCrashDisk(tb, img)
	defer d.Discard()
	first, err := reopened(d, swiftDisk{})
	if err != nil {
		return err.Error()
	}
	if fault := n.hold(first); fault != "" {
		return fault
	}
	d = newCrashDisk(tb, img)
	defer d.Discard()
	d.Before = func(call string) error {
		for img := range d.Cut() {
			n.Cuts++
			again := newCrashDisk(tb, img)
			defer again.Discard()
			f, err := reopened(again, swiftDisk{})
			if fault == "" && (err != nil || f.String() != first.String()) {
				fault = fmt.Sprintf("found %v, and %v (%v) after another cut before %s, which left\n%s", first, f, err, call, img)
			}
		}
		return nil
	}
	l, err := open(d.dir(), d, smallLimit)
	if err != nil {
		return err.Error()
	}
	defer l.Close()
	d.Before = nil
	if err := l.Append("later"); err != nil {
		return err.Error()
	}
	after, err := read(d.dir())
	if err != nil {
		return "after the next Append: " + err.Error()
	}
	if want := append(first.events, "later"); !ends(want, after.events) {
		return fmt.Sprintf("after the next Append there is %v, want an end of %q", after, want)
	}
	return fault
}

// hold says what is wrong with f.
func (n *notary) hold(f found) string {
	if f.damaged {
		return "a log was taken for damaged"
	}
	var all []string
	for i := range n.done {
		all = append(all, name(i+1))
	}
	kept := n.done - n.from + 1
	if len(f.events) >= kept && ends(all, f.events) {
		return ""
	}
	if n.begun && len(f.events) >= kept+1 && ends(append(all, name(n.done+1)), f.events) {
		return ""
	}
	return fmt.Sprintf("found %v, want lines %d to %d, and one more %t", f, n.from, n.done, n.begun)
}

// ends reports whether some lines are the last of all: a rotation drops old ones.
func ends(all, some []string) bool {
	return len(some) <= len(all) && slices.Equal(all[len(all)-len(some):], some)
}

// appendAll opens a log, lets it rotate twice, so that a part is replaced, and looks
// before every call and after every Append.
func (n *notary) appendAll(t *testing.T, d crashDisk) {
	d.Before = func(string) error { n.look(t, d); return nil }
	l, err := open(d.dir(), d, smallLimit)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for rotations := 0; rotations < 2 && !n.Done(); {
		before := l.size
		n.begun = true
		if err := l.Append(name(n.done + 1)); err != nil {
			t.Fatal(err)
		}
		n.done++
		n.begun = false
		n.look(t, d)
		if l.size < before {
			rotations++
		}
	}
}

func TestPowerCutKeepsWhatWasAcknowledged(t *testing.T) {
	var n notary
	n.appendAll(t, newCrashDisk(t, nil))
	n.Report(t, 1000)
}

func TestPowerCutFindsWhatIsNotSynced(t *testing.T) {
	for _, idle := range []string{crashdisk.Sync, crashdisk.SyncFolder} {
		var n notary
		d := newCrashDisk(t, nil)
		d.Idle = idle
		n.appendAll(t, d)
		if len(n.Faults) == 0 {
			t.Errorf("no fault found after %d cuts without %s", n.Cuts, idle)
		}
	}
}

// TestPowerCutKeepsADamagedLog cuts the power at every call of an Open that puts a
// damaged log aside, and again at every call of the next, once for each set of names:
// in the end the log is kept, and the new one begins with a line about it.
func TestPowerCutKeepsADamagedLog(t *testing.T) {
	const damaged = "no log at all\n\n\n"
	var s crashdisk.Survey
	check := func(img crashdisk.Image) string {
		d := newCrashDisk(t, img)
		defer d.Discard()
		f, err := reopened(d, swiftDisk{})
		if err != nil {
			return err.Error()
		}
		if !slices.Equal(f.events, []string{"audit-damaged"}) {
			return fmt.Sprintf("found %v, want one line", f)
		}
		if aside, _ := os.ReadFile(filepath.Join(d.dir(), fileName+".damaged-1")); string(aside) != damaged {
			return fmt.Sprintf("kept aside is %q, want %q", aside, damaged)
		}
		if entries, _ := os.ReadDir(d.dir()); len(entries) != 2 {
			return fmt.Sprintf("%d files, want 2", len(entries))
		}
		return ""
	}
	d := newCrashDisk(t, crashdisk.Image{"log": nil, "log/" + fileName: []byte(damaged)})
	again := map[string]bool{}
	d.Before = func(string) error {
		s.Look(d.Disk, "", func(img crashdisk.Image) string {
			fault := check(img)
			names := fmt.Sprint(slices.Sorted(maps.Keys(img)))
			if again[names] {
				return fault
			}
			again[names] = true
			again := newCrashDisk(t, img)
			defer again.Discard()
			again.Before = func(string) error {
				s.Look(again.Disk, "again", check)
				return nil
			}
			if _, err := reopened(again, again); err != nil {
				return err.Error()
			}
			return fault
		})
		return nil
	}
	if _, err := reopened(d, d); err != nil {
		t.Fatal(err)
	}
	s.Look(d.Disk, "", check)
	s.Report(t, 500)
}
