package installer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"birthmark/pkg/fota"
	"birthmark/pkg/rot"
)

// A fakeChip is what a TPM keeps for this package, in memory.
type fakeChip struct {
	ek, srk      string
	made         bool
	floor, epoch uint64
	err          error // of whoever opens it
	locked       error // of whoever makes counters
	opened       int   // and not closed
	do           func(effect string, f func())
}

func newChip(floor uint64) *fakeChip {
	return &fakeChip{ek: "ek 1", srk: "srk 1", made: true, floor: floor, epoch: 7, do: func(_ string, f func()) { f() }}
}

// bareChip has no counters.
func bareChip() *fakeChip {
	c := newChip(0)
	c.made, c.epoch = false, 0
	return c
}

func (c *fakeChip) open(_ context.Context, known rot.Identity) (Chip, error) {
	switch {
	case c.err != nil:
		return nil, c.err
	case known.EK != "" && known.EK != c.ek:
		return nil, fmt.Errorf("%w: %s", rot.ErrReplaced, c.ek)
	case known.EK != "" && known.SRKName != c.srk:
		return nil, fmt.Errorf("%w: %s", rot.ErrCleared, c.srk)
	}
	c.opened++
	return c, nil
}

// clear does as TPM2_Clear does.
func (c *fakeChip) clear() { c.made, c.srk = false, "srk 2" }

func (c *fakeChip) Identity() rot.Identity {
	return rot.Identity{Kind: "tpm", EK: c.ek, SRKName: c.srk, EKCertificate: []byte("not remembered")}
}

func (c *fakeChip) Close() error { c.opened--; return nil }

func (c *fakeChip) Count(_ context.Context, which rot.Counter) (uint64, error) {
	switch {
	case !c.made:
		return 0, rot.ErrCleared
	case which == rot.FirmwareFloor:
		return c.floor, nil
	}
	return c.epoch, nil
}

func (c *fakeChip) MakeCounters(_ context.Context, floor, epoch uint64) error {
	if c.locked != nil {
		return c.locked
	}
	if !c.made {
		c.do("chip: make", func() { c.made, c.floor, c.epoch = true, floor, epoch })
	}
	return nil
}

func (c *fakeChip) Raise(context.Context, rot.Counter) (uint64, error) {
	if !c.made {
		return 0, rot.ErrCleared
	}
	c.do("chip: raise", func() { c.floor++ })
	return c.floor, nil
}

// A trialLoader ends a trial with a bless.
type trialLoader struct{ *fakeLoader }

func (l trialLoader) Bless(ctx context.Context) error {
	err := l.fakeLoader.Bless(ctx)
	l.set(func() { l.status.Trial = l.status.Trial && err != nil })
	return err
}

// startWith starts a server with a chip, anew if there was one.
func (d *device) startWith(chip func(context.Context, rot.Identity) (Chip, error)) {
	d.Helper()
	d.stopped()
	ctx, stop := context.WithCancel(context.Background())
	d.server = d.newServer()
	d.server.Boot, d.server.Chip = trialLoader{d.loader}, chip
	var path string
	path, d.ended = serve(d.T, ctx, d.server)
	d.stop, d.Client = stop, Client{path}
	d.stands()
}

// stands is the status, which is told when the server has started.
func (d *device) stands() *Status {
	d.Helper()
	st, err := d.Status(d.Context())
	if err != nil || st.Device == nil {
		d.Fatalf("the status is %+v, %v", st, err)
	}
	return st
}

func TestTheFloor(t *testing.T) {
	for _, c := range []struct {
		name    string
		chip    *fakeChip
		runs    string
		trial   bool
		before  func(*fakeChip) // between an earlier server and this one
		floor   uint32          // that is told
		chips   uint64          // the chip's, then
		blessed uint64          // the chip's, after a bless
		lowest  uint32          // security version that is installed after it
		note    string
	}{
		{"equal", newChip(1), "1.0.0+sv1", false, nil, 1, 1, 1, 1, ""},
		{"behind is caught up with", newChip(1), "1.0.0+sv4", false, nil, 4, 4, 4, 4, ""},
		{"behind, and on trial, waits to be blessed", newChip(1), "1.0.0+sv4", true, nil, 1, 1, 4, 4, ""},
		{"ahead stays", newChip(5), "1.0.0+sv1", false, nil, 5, 5, 5, 5, "1.0.0+sv1 runs, which is below the floor, security version 5"},
		{"raised by somebody else", newChip(1), "1.0.0+sv1", false, func(c *fakeChip) { c.floor = 3 }, 3, 3, 3, 3, "1.0.0+sv1 runs, which is below the floor, security version 3"},
		{"never made", bareChip(), "1.0.0+sv3", false, nil, 3, 3, 3, 3, ""},
		{"never made, on trial", bareChip(), "1.0.0+sv3", true, nil, 0, 0, 3, 3, ""},
		{"never made, and nothing was ever closed", bareChip(), "1.0.0+sv0", false, nil, 0, 0, 0, 0, ""},
		{"lost to TPM2_Clear", newChip(5), "1.0.0+sv1", false, (*fakeChip).clear, 5, 5, 5, 5, "the TPM was cleared"},
		{"lost, and made anew lower by somebody", newChip(5), "1.0.0+sv1", false, func(c *fakeChip) { c.clear(); c.made, c.floor = true, 0 }, 5, 5, 5, 5, "the TPM was cleared, or set back"},
		{"set back by somebody", newChip(5), "1.0.0+sv1", false, func(c *fakeChip) { c.floor = 3 }, 5, 5, 5, 5, "the TPM was cleared, or set back"},
		{"far behind goes up by steps", newChip(1), "1.0.0+sv100", false, nil, 100, 65, 100, 100, ""},
		{"beyond what a version can say", newChip(1 << 40), "1.0.0+sv1", false, nil, 1<<32 - 1, 1 << 40, 1 << 40, 1<<32 - 1, "below the floor"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDevice(t)
			if c.before != nil {
				d.startWith(c.chip.open)
				d.stopped()
				c.before(c.chip)
			}
			d.stopped()
			d.loader.status.Running, d.loader.status.Trial = version(t, c.runs), c.trial
			d.startWith(c.chip.open)
			has := func() (floor uint64) { d.loader.set(func() { floor = c.chip.floor }); return floor } // between two calls
			st := d.stands()
			if got := has(); st.Device.Floor != c.floor || got != c.chips {
				t.Errorf("the floor is told as %d, the chip has %d; want %d, %d", st.Device.Floor, got, c.floor, c.chips)
			}
			if notes := strings.Join(st.Notes, "\n"); c.note == "" && notes != "" || !strings.Contains(notes, c.note) {
				t.Errorf("got notes %q, want %q", st.Notes, c.note)
			}
			if err := d.Bless(t.Context()); err != nil {
				t.Errorf("bless: %v", err)
			}
			if got := has(); got != c.blessed {
				t.Errorf("after a bless the chip has %d, want %d", got, c.blessed)
			}
			if c.lowest > 0 {
				_, err := d.try(d.release(fmt.Sprintf("1.1.0+sv%d", c.lowest-1)))
				wantRefusal(t, "a release below the floor", err, fota.StagePolicy, "floor")
			}
			if c.lowest < fota.LeapLimit || c.lowest == 100 {
				if _, err := d.try(d.release(fmt.Sprintf("1.1.0+sv%d", c.lowest))); err != nil {
					t.Errorf("a release at the floor: %v", err)
				}
			}
			if c.chip.opened != 0 {
				t.Errorf("the chip was left open %d times", c.chip.opened)
			}
		})
	}
}

// TestAClearedChipGetsBothCountersBack holds that the one that is not the installer's
// is not lost with the floor.
func TestAClearedChipGetsBothCountersBack(t *testing.T) {
	chip := newChip(2)
	d := newDevice(t)
	d.startWith(chip.open)
	d.stopped()
	chip.clear()
	d.startWith(chip.open)
	if chip.floor != 2 || chip.epoch != 7 {
		t.Errorf("got floor %d, epoch %d, want 2, 7", chip.floor, chip.epoch)
	}
	if st := d.stands(); len(st.Notes) != 2 { // and that it is ahead
		t.Errorf("got notes %q, want to be told that the chip was cleared", st.Notes)
	}
	d.stopped()
	d.loader.status.Running = version(t, "1.0.0+sv3")
	d.startWith(chip.open)
	if st := d.stands(); len(st.Notes) != 0 || chip.floor != 3 {
		t.Errorf("the next raise: got floor %d, notes %q; want 3, none", chip.floor, st.Notes)
	}
}

// TestWithoutTheChip holds that a device whose chip does not answer, or is another one,
// comes up again, and takes nothing new.
func TestWithoutTheChip(t *testing.T) {
	for _, trouble := range []error{rot.ErrUnavailable, rot.ErrFailure, rot.ErrBusy, rot.ErrLockout, rot.ErrUnsupported, rot.ErrReplaced, context.DeadlineExceeded} {
		t.Run(trouble.Error(), func(t *testing.T) {
			chip := newChip(3)
			d := newDevice(t)
			d.startWith(chip.open) // remembers 3
			d.mustInstall("1.1.0+sv4")
			d.stopped()
			chip.err = trouble
			if trouble == rot.ErrReplaced {
				chip.err, chip.ek = nil, "ek 2"
			}
			d.loader.status.Running = version(t, "1.0.0+sv5")
			d.loader.status.Trial = true
			d.startWith(chip.open)
			st := d.stands()
			if st.Device.Floor != 3 || !strings.Contains(strings.Join(st.Notes, "\n"), "cannot tell how high the floor is") {
				t.Errorf("got floor %d, notes %q; want what is remembered, 3, and why it is not known", st.Device.Floor, st.Notes)
			}
			if err := d.Bless(t.Context()); err != nil || d.loader.blessed == 0 {
				t.Errorf("bless: %v", err)
			}
			var r *fota.Refusal
			for what, err := range map[string]error{
				"install": func() error { _, err := d.try(d.release("1.1.0+sv9")); return err }(),
				"arm":     d.Arm(t.Context(), version(t, "1.1.0+sv4")),
			} {
				if err == nil || errors.As(err, &r) {
					t.Errorf("%s: got %v, want an error that is not for good", what, err)
				}
			}
			if chip.floor != 3 {
				t.Errorf("the chip has floor %d", chip.floor)
			}
			if trouble == rot.ErrReplaced {
				return
			}
			d.stopped()
			chip.err = nil
			if d.startWith(chip.open); chip.floor != 5 {
				t.Errorf("when it answers again it has floor %d, want 5", chip.floor)
			}
		})
	}
}

// TestCountersThatCannotBeMade: the chip's owner has a password. What is remembered is
// better than nothing, and that it is no more is told.
func TestCountersThatCannotBeMade(t *testing.T) {
	chip := bareChip()
	chip.locked = rot.ErrUnavailable
	d := newDevice(t)
	d.stopped()
	d.loader.status.Running = version(t, "1.0.0+sv3")
	d.startWith(chip.open)
	if st := d.stands(); st.Device.Floor != 3 || len(st.Notes) != 1 || !strings.Contains(st.Notes[0], "the TPM holds no floor") {
		t.Errorf("got floor %d, notes %q; want 3, and to be told where it is", st.Device.Floor, st.Notes)
	}
	if err := d.Bless(t.Context()); err != nil {
		t.Errorf("bless: %v", err)
	}
	d.stopped()
	d.loader.status.Running = version(t, "0.9.0+sv1") // an old image
	d.startWith(chip.open)
	_, err := d.try(d.release("1.0.0+sv2"))
	wantRefusal(t, "a release below the floor", err, fota.StagePolicy, "floor")
	d.mustInstall("1.0.0+sv3")
	d.stopped()
	chip.locked = nil
	if d.startWith(chip.open); chip.floor != 3 {
		t.Errorf("when they can be made the floor is %d, want 3", chip.floor)
	}
}

// TestAFloorThatRoseMeanwhile: somebody else raised it between install and arm.
func TestAFloorThatRoseMeanwhile(t *testing.T) {
	chip := newChip(1)
	d := newDevice(t)
	d.startWith(chip.open)
	r := d.mustInstall("1.1.0+sv2")
	d.loader.set(func() { chip.floor = 3 }) // between two calls
	wantRefusal(t, "arm", d.Arm(t.Context(), r.Version), fota.StagePolicy, "floor")
	if other, _, _ := d.loader.seen(); other.Mark != fota.Staged {
		t.Errorf("there is %+v, want it not to be armed", other)
	}
}

// TestAFallBackEndsTheClimb: the power was cut while the floor went up to what was blessed,
// and the boot loader fell back then. What was blessed was good; there is nothing to tell
// but that an older release runs.
func TestAFallBackEndsTheClimb(t *testing.T) {
	chip := newChip(2)
	d := newDevice(t)
	d.stopped()
	s := &Server{State: d.state, Log: quiet}
	forget := s.remember()
	if err := s.floor.save(holding{Chip: rot.Identity{EK: chip.ek, SRKName: chip.srk}, Floor: 4, Rising: true}); err != nil {
		t.Fatal(err)
	}
	forget()
	d.startWith(chip.open)
	st := d.stands()
	d.stopped()
	defer s.remember()()
	h := s.floor.load()
	if chip.floor != 4 || h.Rising || h.Lost || len(st.Notes) != 1 || !strings.Contains(st.Notes[0], "below the floor") {
		t.Errorf("the chip has %d, want 4; remembered is %+v; notes %q", chip.floor, h, st.Notes)
	}
}

// A cutLife is a device in which 2.0.0+sv4 was started for the first time. It is cut off
// at one point; then the same is done again.
type cutLife struct {
	t    *testing.T
	chip *fakeChip
	dir  string
	most uint64 // that the floor may be before what runs was blessed

	trial    bool // as the boot loader says
	onMedium bool // as it says after a loss of power

	power  bool // what is cut off
	cutAt  int  // which point
	n      int
	where  string
	server *Server
}

var quiet = slog.New(slog.DiscardHandler)

var errCut = errors.New("cut off")

// point is where it may be cut off.
func (l *cutLife) point(where string) {
	l.n++
	if limit := max(l.most, map[bool]uint64{false: 4}[l.onMedium]); l.chip.made && l.chip.floor > limit {
		l.t.Errorf("cut %q: %s the floor is %d, want %d at most", l.where, where, l.chip.floor, limit)
	}
	if l.n == l.cutAt {
		l.where = where
		panic(errCut)
	}
}

func (l *cutLife) do(effect string, f func()) {
	l.point("before " + effect)
	if h := l.server.memory.Get().Floor; strings.HasPrefix(effect, "chip") && (!h.Rising || h.Floor <= l.chip.floor && l.chip.made) {
		l.t.Errorf("cut %q: %s without its being remembered: %+v", l.where, effect, h)
	}
	f()
	l.point("after " + effect)
}

func (l *cutLife) Status(context.Context) (fota.Status, error) {
	return fota.Status{Running: fota.Version{Major: 2, Security: 4}, Trial: l.trial}, nil
}

// Bless is seen before it has reached the medium.
func (l *cutLife) Bless(context.Context) error {
	l.do("boot: bless", func() { l.trial = false })
	l.do("boot: sync", func() { l.onMedium = l.trial })
	return nil
}

func (l *cutLife) Install(context.Context, *fota.Manifest, fota.CopyImage, func(done, total int64)) error {
	return errors.ErrUnsupported
}
func (l *cutLife) Arm(context.Context, *fota.Manifest) error { return errors.ErrUnsupported }
func (l *cutLife) Cancel(context.Context) error              { return errors.ErrUnsupported }

// start is one process of the installer; the agent has what is on trial blessed.
func (l *cutLife) start() (whole bool) {
	s := &Server{Boot: l, State: l.dir, Chip: l.chip.open, Log: quiet}
	l.server = s
	defer s.remember()()
	s.memory.Cut = func(where string) { l.point(strings.Replace(where, " ", " store: ", 1)) }
	defer func() {
		if r := recover(); r != nil && r != errCut {
			panic(r)
		} else if r != nil && l.power {
			l.trial = l.onMedium
		}
	}()
	s.catchUp(l.t.Context())
	if l.trial {
		if err := s.bless(l.t.Context()); err != nil {
			l.t.Errorf("cut %q: bless: %v", l.where, err)
		}
	}
	return true
}

// TestTheFloorIsNeverAboveWhatRuns cuts off the first bless of a release at every write of
// what is remembered, and every effect on boot loader and chip: the installer, or the
// power. At every one of them the floor is not above what the device is sure to start
// again, the chip moves only when that is remembered, and in the end it has risen.
func TestTheFloorIsNeverAboveWhatRuns(t *testing.T) {
	for _, c := range []struct {
		name       string
		chip       func() *fakeChip
		remembered uint64
		want       uint64
		effects    []string
	}{
		{"one step", func() *fakeChip { return newChip(3) }, 3, 4, []string{"chip: raise", "boot: bless", "boot: sync", "store: write"}},
		{"three steps", func() *fakeChip { return newChip(1) }, 1, 4, []string{"chip: raise", "boot: bless", "boot: sync", "store: write"}},
		{"never made", bareChip, 0, 4, []string{"chip: make", "boot: bless", "store: write"}},
		{"lost", func() *fakeChip { c := newChip(3); c.clear(); return c }, 6, 6, []string{"chip: make", "boot: bless", "store: write"}},
		{"set back", func() *fakeChip { return newChip(4) }, 6, 6, []string{"chip: raise", "boot: bless", "store: write"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cuts := map[string]int{}
			for _, power := range []bool{false, true} {
				for n, done := 1, false; !done; n++ {
					l := &cutLife{t: t, chip: c.chip(), dir: filepath.Join(t.TempDir(), "state"), most: c.remembered, trial: true, onMedium: true, power: power}
					l.chip.do = l.do
					if c.remembered > 0 {
						s := &Server{State: l.dir, Log: quiet}
						forget := s.remember()
						if err := s.floor.save(holding{Chip: rot.Identity{EK: "ek 1", SRKName: "srk 1"}, Floor: c.remembered}); err != nil {
							t.Fatal(err)
						}
						forget()
					}
					l.cutAt = n
					for !l.start() {
					}
					h := l.server.memory.Get().Floor
					if l.chip.floor != c.want || h.Rising || h.Floor != c.want || l.trial || l.onMedium {
						t.Errorf("cut %q, power %t: in the end the chip has %d, want %d; trial %t; remembered is %+v", l.where, power, l.chip.floor, c.want, l.trial, h)
					}
					if lost := c.want > 4; h.Lost != lost {
						t.Errorf("cut %q, power %t: lost is %t, want %t", l.where, power, h.Lost, lost)
					}
					cuts[l.where]++
					done = l.where == ""
				}
			}
			for _, where := range slices.Sorted(maps.Keys(cuts)) {
				t.Logf("%4d × %s", cuts[where], where)
			}
			for _, effect := range c.effects {
				for _, side := range []string{"before ", "after "} {
					if cuts[side+effect] == 0 {
						t.Errorf("nothing was ever cut off %s%s", side, effect)
					}
				}
			}
		})
	}
}
