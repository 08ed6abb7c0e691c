package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"birthmark/internal/crashdisk"
)

// changes is what the crash tests do to a store, one after another.
var changes = []func(*facts) error{
	set(1),
	func(f *facts) error { f.N, f.Name = 2, strings.Repeat("longer ", 4); return nil },
	func(f *facts) error { f.N, f.Name = 3, "shorter"; return nil },
	set(4),
}

// A crashDisk is a disk that knows what a power cut leaves of it.
type crashDisk struct{ *crashdisk.Disk }

func newCrashDisk(tb testing.TB, img crashdisk.Image) crashDisk {
	return crashDisk{crashdisk.New(tb, img)}
}

func (d crashDisk) mkdir(path string, mode fs.FileMode) error { return d.Mkdir(path, mode) }
func (d crashDisk) rename(from, to string) error              { return d.Rename(from, to) }
func (d crashDisk) remove(path string) error                  { return d.Remove(path) }
func (d crashDisk) syncFolder(path string) error              { return d.SyncFolder(path) }

func (d crashDisk) create(path string, mode fs.FileMode) (file, error) {
	return d.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
}

// A swiftDisk makes nothing durable: what is looked at once and thrown away.
type swiftDisk struct{ realDisk }

func (swiftDisk) syncFolder(path string) error { _, err := os.Stat(path); return err }

// A witness holds what a power cut may leave against what may be found.
type witness struct {
	crashdisk.Survey
	allowed []int // values of facts.N
	twice   bool  // cut again while Open repairs what was left
}

// look cuts the power now, in every way there is.
func (w *witness) look(tb testing.TB, d crashDisk) {
	w.Look(d.Disk, fmt.Sprint("one of ", w.allowed), func(img crashdisk.Image) string { return w.reopen(tb, img) })
}

// reopen opens a store on img and then, if twice, cuts the power again before every
// call of Open: whatever was found once must be found again.
func (w *witness) reopen(tb testing.TB, img crashdisk.Image) (fault string) {
	d := newCrashDisk(tb, img)
	defer d.Discard()
	found := reopened(d, swiftDisk{})
	if !slices.Contains(w.allowed, found.n) || found.err != nil || found.damaged != "" {
		return fmt.Sprintf("found %v, want one of %v", found, w.allowed)
	}
	if !w.twice {
		return ""
	}
	d = newCrashDisk(tb, img)
	defer d.Discard()
	d.Before = func(call string) error {
		for img := range d.Cut() {
			w.Cuts++
			again := newCrashDisk(tb, img)
			defer again.Discard()
			if f := reopened(again, swiftDisk{}); f != found && fault == "" {
				fault = fmt.Sprintf("found %v, and %v after another cut before %s, which left\n%s", found, f, call, img)
			}
		}
		return nil
	}
	reopened(d, d)
	return fault
}

// A finding is what a store says after it was opened.
type finding struct {
	n       int
	damaged string
	err     error
}

// reopened is what a store says that is opened now.
func reopened(at crashDisk, through disk) finding {
	s, err := open[facts](filepath.Join(at.Root, "state"), through)
	if err != nil {
		return finding{err: err}
	}
	defer s.Close()
	return finding{n: s.Get().N, damaged: s.Damaged()}
}

// powerCuts makes the changes on a disk that is set up by prepare, and looks before
// every call and after every change.
func powerCuts(t *testing.T, w *witness, prepare func(crashDisk) disk) {
	w.allowed = []int{0}
	d := newCrashDisk(t, nil)
	through := prepare(d)
	d.Before = func(string) error { w.look(t, d); return nil }
	s, err := open[facts](filepath.Join(d.Root, "state"), through)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for n, change := range changes {
		w.allowed = []int{n, n + 1}
		mustUpdate(t, s, change)
		w.allowed = []int{n + 1}
		w.look(t, d)
	}
}

func TestPowerCutLeavesTheOldOrTheNew(t *testing.T) {
	w := witness{twice: true}
	powerCuts(t, &w, func(d crashDisk) disk { return d })
	w.Report(t, 1000)
}

// inPlace makes a store write its file where it is.
type inPlace struct{ crashDisk }

func (d inPlace) create(path string, mode fs.FileMode) (file, error) {
	return d.OpenFile(strings.TrimSuffix(path, draftSuffix), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
}

func (d inPlace) rename(string, string) error { return nil }

func TestPowerCutFindsWhatIsLeftOut(t *testing.T) {
	for name, prepare := range map[string]func(crashDisk) disk{
		"the file is not synced":   func(d crashDisk) disk { d.Idle = crashdisk.Sync; return d },
		"the folder is not synced": func(d crashDisk) disk { d.Idle = crashdisk.SyncFolder; return d },
		"written in place":         func(d crashDisk) disk { return inPlace{d} },
	} {
		t.Run(name, func(t *testing.T) {
			var w witness
			powerCuts(t, &w, prepare)
			if len(w.Faults) == 0 {
				t.Errorf("no fault found after %d cuts", w.Cuts)
			}
		})
	}
}

// A failure is one way in which calls of a disk fail: the nth, and perhaps all that
// follow.
type failure struct {
	n     int
	err   error
	stays bool
}

func (f failure) String() string {
	return fmt.Sprintf("call %d: %v, stays %t", f.n, f.err, f.stays)
}

// inject lets calls fail and looks before each. It says which one failed first.
func (f failure) inject(t *testing.T, d crashDisk, w *witness) (first *string) {
	first = new(string)
	calls := 0
	d.Before = func(call string) error {
		w.look(t, d)
		calls++
		if calls == f.n || f.stays && calls > f.n {
			if *first == "" {
				*first = call
			}
			return &fs.PathError{Op: call, Path: "disk", Err: f.err}
		}
		return nil
	}
	return first
}

func TestFailedUpdateChangesNothing(t *testing.T) {
	failed := map[string]int{}
	for _, err := range []error{syscall.ENOSPC, syscall.EIO} {
		for _, stays := range []bool{false, true} {
			for n := 1; ; n++ {
				call := failedUpdate(t, failure{n, err, stays})
				if call == "" {
					break
				}
				failed[call]++
			}
		}
	}
	for _, call := range []string{crashdisk.Open, crashdisk.Write, crashdisk.Sync, crashdisk.Close, crashdisk.Rename, crashdisk.SyncFolder} {
		if failed[call] != 4 {
			t.Errorf("%s failed %d times, want 4", call, failed[call])
		}
	}
}

// failedUpdate lets a call of an Update fail, and says which one; "" if there are
// not that many.
func failedUpdate(t *testing.T, f failure) string {
	d := newCrashDisk(t, nil)
	s, err := open[facts](filepath.Join(d.Root, "state"), d)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	mustUpdate(t, s, changes[0])
	before, _ := os.ReadFile(s.path())

	w := &witness{allowed: []int{1, 2}}
	call := f.inject(t, d, w)
	err = s.Update(changes[1])
	d.Before = nil
	if *call == "" {
		if err != nil {
			t.Errorf("%v: Update returned %v though nothing failed", f, err)
		}
		return ""
	}
	if err == nil || !errors.Is(err, f.err) || errors.Is(err, ErrFull) != (f.err == syscall.ENOSPC) {
		t.Errorf("%v (%s): Update returned %v, want that error, and ErrFull only for ENOSPC", f, *call, err)
	}
	if got := s.Get().N; got != 1 {
		t.Errorf("%v (%s): memory holds %d, want 1", f, *call, got)
	}
	// A folder that can be synced no more is the one thing that cannot be undone.
	undone := !f.stays || *call != crashdisk.SyncFolder
	if undone {
		w.allowed = []int{1}
		if after, _ := os.ReadFile(s.path()); string(after) != string(before) {
			t.Errorf("%v (%s): the file holds %q, want %q", f, *call, after, before)
		}
		if got := names(t, s.dir); !f.stays && got != fileName {
			t.Errorf("%v (%s): the folder holds %q", f, *call, got)
		}
	} else if !strings.Contains(err.Error(), "may still be found") {
		t.Errorf("%v (%s): Update returned %v, which does not say what may be found", f, *call, err)
	}
	w.look(t, d)
	mustUpdate(t, s, changes[2]) // the disk is well again
	w.allowed = []int{3}
	w.look(t, d)
	for _, fault := range w.Faults {
		t.Errorf("%v (%s): %s", f, *call, fault)
	}
	return *call
}

func TestFailedOpenLosesNothing(t *testing.T) {
	for name, tc := range map[string]struct {
		img   crashdisk.Image
		n     int
		aside string
	}{
		"nothing there":  {crashdisk.Image{}, 0, ""},
		"a value":        {crashdisk.Image{"state": nil, "state/state.json": []byte(`{"n": 7}`)}, 7, ""},
		"a draft, too":   {crashdisk.Image{"state": nil, "state/state.json": []byte(`{"n": 7}`), "state/state.json.new": []byte(`{"n`)}, 7, ""},
		"a damaged file": {crashdisk.Image{"state": nil, "state/state.json": []byte(`{"n`)}, 0, `{"n`},
	} {
		for n, call := 1, "?"; call != ""; n++ {
			d := newCrashDisk(t, tc.img)
			call = ""
			calls := 0
			d.Before = func(c string) error {
				if calls++; calls != n {
					return nil
				}
				call = c
				return syscall.EIO
			}
			// A draft that cannot be removed is none of Open's business.
			if found := reopened(d, d); (found.err == nil) != (call == "" || call == crashdisk.Remove) {
				t.Errorf("%s, %s failed: Open found %v", name, call, found)
			}
			if found := reopened(d, swiftDisk{}); found.err != nil || found.n != tc.n {
				t.Errorf("%s, %s failed: the next Open found %v, want %d", name, call, found, tc.n)
			}
			aside, _ := os.ReadFile(filepath.Join(d.Root, "state", fileName+".damaged-1"))
			if string(aside) != tc.aside {
				t.Errorf("%s, %s failed: kept aside is %q, want %q", name, call, aside, tc.aside)
			}
		}
	}
}

func TestPowerCutKeepsDamagedContents(t *testing.T) {
	const damaged = `{"n": 1, "na`
	d := newCrashDisk(t, crashdisk.Image{"state": nil, "state/state.json": []byte(damaged)})
	states := 0
	d.Before = func(call string) error {
		for img := range d.Cut() {
			states++
			aside, ok := img["state/state.json.damaged-1"]
			if !ok {
				aside = img["state/state.json"]
			}
			if string(aside) != damaged {
				t.Fatalf("before %s a power cut leaves\n%s", call, img)
			}
		}
		return nil
	}
	s, err := open[facts](filepath.Join(d.Root, "state"), d)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	mustUpdate(t, s, changes[0])
	mustUpdate(t, s, changes[1])
	if states < 100 {
		t.Errorf("only %d states were looked at", states)
	}
}
