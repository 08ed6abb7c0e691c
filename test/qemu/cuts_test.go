//go:build soak

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"birthmark/test/qemu/boot"
	"birthmark/test/qemu/machine"
)

// phases are those of an update, one after another.
var phases = []string{"writing", "written", "armed", "trial", "settled"}

// An updateMoment is one of an update at which the power fails.
type updateMoment struct {
	moment
	checked bool // the device is looked at before; if it is not writing a release, it is told to
}

// updateMoments are those of two updates. A release is written three times at most, and
// started three times before it is found good.
var updateMoments = []updateMoment{
	{moment{"when it begins to write", reached("writing"), 3 * time.Second}, true},
	{moment{"half written", (*victim).halfWritten, 5 * time.Second}, true},
	{moment{"when it is armed", reached("armed"), time.Second}, false},
	{moment{"in the start after that", (*victim).started, 10 * time.Second}, false},
	{moment{"on trial", started("trial"), 3 * time.Second}, false},
	{moment{"when it is found good", started("settled"), time.Second}, false},

	{moment{"half written", (*victim).halfWritten, 10 * time.Second}, true},
	{moment{"when it is written", reached("written"), time.Second}, false},
	{moment{"on the way to the restart", reached("armed"), 8 * time.Second}, false},
	{moment{"while the boot loader runs", func(*victim) bool { return true }, 9 * time.Second}, false},
	{moment{"on trial", started("trial"), 3 * time.Second}, false},
	{moment{"in service", started("settled"), 5 * time.Second}, false},
}

// TestUpdatePowerCuts pulls the mains of a device at random moments of its updates.
// Whenever that is, what is on the disk can be started, all of it, and is true of the TPM.
// The device comes up again in one release or the other, is who it was, has a floor that
// is not above what runs, and goes on with the update by itself.
func TestUpdatePowerCuts(t *testing.T) {
	t.Parallel()
	random, cuts := seeded(t), fromEnvironment("CUTS", powerCuts)
	u := &updates{victim: newVictim(newWatchedWorld(t, nil), "device-1"), releases: []release{theFirst(t)}, outcomes: map[string]int{}}
	u.ready()
	u.await((*victim).spoke)
	u.is = u.identity()
	for n := range cuts {
		m := updateMoments[n%len(updateMoments)]
		if m.checked {
			u.goOn(n > 0)
		}
		u.await(m.seen)
		chance := random.Float64()
		wait := time.Duration(chance * chance * float64(m.later)) // rather soon than late
		if machine.Accelerated() {
			wait /= 8
		}
		<-time.After(wait)
		u.cut()
		t.Logf("cut %d, %s + %v", n+1, m.name, wait.Round(time.Millisecond))
		u.powerOn()
	}
	u.ready()
	u.settles()
	u.over(u.check())
	t.Logf("%d cuts; the updates ended %v", cuts, u.outcomes)
	if u.outcomes["installed"] == 0 {
		t.Error("no update came to a good end")
	}
}

// Updates are those of a device whose power fails.
type updates struct {
	*victim
	is       identity
	releases []release // what may be found on its disk
	ordered  bool      // the last of them
	outcomes map[string]int
}

// goOn has a device write a release that, since its power is on, may be at it by itself.
func (u *updates) goOn(again bool) {
	u.Helper()
	if again {
		u.ready()
	}
	f := u.check()
	if u.ordered && f.Update.Version == u.last().version && f.Update.Phase != "settled" {
		if f.Update.Phase == "writing" {
			return
		}
		u.settles()
		f = u.check()
	}
	u.over(f)
	n := len(u.releases)
	next := signed(u.T, further(u.T, fmt.Sprintf("1.%d.0+sv%d", n, n+1), nil), img.Keys.DB)
	u.releases = append(u.releases, next)
	u.fetch(u.w.ship(next), durable)
	u.w.forget()
	u.do("setsid birthmark firmware install --reboot " + durable + " >/run/order 2>&1 &")
	u.ordered = true
}

// over notes how an update has ended. One that is not remembered never began.
func (u *updates) over(f firmware) {
	u.Helper()
	switch {
	case !u.ordered:
	case f.Update.Version != u.last().version:
		u.outcomes["before they began"]++
	case f.Update.Outcome == "installed" && f.Running == u.last().version, f.Update.Outcome == "rolled-back" && f.Running != u.last().version:
		u.outcomes[f.Update.Outcome]++
	default:
		u.Errorf("%v runs, and the update has ended: %+v (%+v)", f.Running, f.Update, f.Update.Why)
	}
	u.ordered = false
}

func (u *updates) last() release { return u.releases[len(u.releases)-1] }

// settles waits until the update is over. The device may restart for it meanwhile.
func (u *updates) settles() {
	u.Helper()
	ctx, cancel := context.WithTimeout(u.Context(), installPatience)
	defer cancel()
	err := machine.ErrRestarted
	for errors.Is(err, machine.ErrRestarted) {
		_, err = u.Sh(ctx, `until birthmark firmware status --json | grep --quiet '"phase": "settled"'; do sleep 0.5; done`)
	}
	if err != nil {
		u.Fatal(err)
	}
}

// check looks at a device that is up: it is who it was.
func (u *updates) check() firmware {
	u.Helper()
	u.awaits("the agent", `birthmark firmware status --json | grep --quiet '"floor"'`)
	if is := u.identity(); is != u.is {
		u.Errorf("after a cut: got %+v, want %+v", is, u.is)
	}
	f := u.firmware()
	u.Logf("%v runs, floor %d, the update to %v is %s %s; beside it %v %s", f.Running, f.Device.Floor,
		f.Update.Version, f.Update.Phase, f.Update.Outcome, f.Device.Other.Version, f.Device.Other.Mark)
	return f
}

// cut pulls the mains, and looks at the disk.
func (u *updates) cut() {
	u.Helper()
	if err := u.Cut(); err != nil {
		u.Fatal(err)
	}
	u.look()
	if err := u.startable(); err != nil {
		u.Fatalf("after a power cut: %v", err)
	}
}

// startable: whatever the boot loader finds was signed, and verifies with a slot.
func (u *updates) startable() error {
	disk, err := os.Open(u.Disk())
	if err != nil {
		return err
	}
	defer disk.Close()
	table, err := u.offline.read(u.Disk())
	if err != nil {
		return err
	}
	parts := map[string]part{}
	for _, name := range []string{"esp", "root-a", "root-b"} {
		start, size, err := partition(table, u.offline.size, name)
		if err != nil {
			return err
		}
		parts[name] = part{start, size}
	}
	entries, err := boot.Entries(parts["esp"].of(disk))
	if err == nil {
		err = whole(entries, u.releases...)
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		for _, r := range u.releases {
			if r.version != e.Version {
				continue
			}
			errA, errB := r.verity.Check(parts["root-a"].of(disk)), r.verity.Check(parts["root-b"].of(disk))
			if errA != nil && errB != nil {
				return fmt.Errorf("%s starts no slot: root-a: %w; root-b: %w", e.Name, errA, errB)
			}
		}
	}
	return nil
}

// reached: the device has said that its update is in a phase, or further.
func reached(phase string) func(*victim) bool {
	return func(v *victim) bool {
		return v.said("/evt/firmware", func(e event) bool { return rank(e.Data.Phase) >= rank(phase) })
	}
}

// started is reached, of a device that may have said so before the power was cut; then it
// speaks for a while, and has no more to tell.
func started(phase string) func(*victim) bool {
	return func(v *victim) bool {
		return reached(phase)(v) || v.count("/tele/system", func(event) bool { return true }) > 3
	}
}

func rank(phase string) int {
	for n, p := range phases {
		if p == phase {
			return n
		}
	}
	return -1
}

// halfWritten: or further.
func (v *victim) halfWritten() bool {
	return reached("written")(v) || v.said("/evt/firmware-progress", func(e event) bool { return e.Data.Done >= e.Data.Total/2 })
}

// An event is what a device tells of its update.
type event struct {
	Data struct {
		Phase       string
		Done, Total int64
	}
}

// said reports whether there was a message since the power is on.
func (v *victim) said(topic string, wanted func(event) bool) bool {
	return v.count(topic, wanted) > 0
}

// count counts messages since the power is on.
func (v *victim) count(topic string, wanted func(event) bool) (n int) {
	v.w.world.mu.Lock()
	defer v.w.world.mu.Unlock()
	for _, m := range v.w.heard {
		var e event
		if strings.HasSuffix(m.topic, "/d/"+v.id+topic) && json.Unmarshal([]byte(m.payload), &e) == nil && wanted(e) {
			n++
		}
	}
	return n
}
