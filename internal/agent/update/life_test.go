package update_test

import (
	"context"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"birthmark/internal/agent/update"
	"birthmark/pkg/fota"
)

// patience is for a life, in the time of its bubble.
const patience = 100 * time.Hour

// A life is one update, from its order until it is settled, with one cut in it.
type life struct {
	*machine
	path  string
	cutAt int  // which effect is the last one of the agent
	power bool // and of the system
	n     int
	dead  bool
	where string
}

// live runs the agent again and again, as the system starts it, until nothing is under
// way any more.
func (l *life) live() update.State {
	l.effect = func(where string) any {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.n++; l.n-1 == l.cutAt && l.where == "" {
			l.where, l.dead = where, true
		}
		if l.dead { // in every one of its goroutines
			return cut(l.where)
		}
		return nil
	}
	ordered := false
	for began := time.Now(); ; {
		if time.Since(began) > patience {
			l.t.Fatalf("cut %q: not settled after %v, in %+v; the installer holds %+v", l.where, patience, l.state(), l.other)
		}
		if ordered && l.atRest() {
			break
		}
		ctx, cancel := context.WithTimeout(l.t.Context(), patience/2)
		select {
		case <-l.restart: // that was asked for twice
		default:
		}
		// Ended by a restart of the system, or once there is nothing left to do.
		stop := make(chan struct{})
		restarted := false
		go func() {
			look := time.NewTicker(time.Minute)
			defer look.Stop()
			for {
				select {
				case <-l.restart:
					restarted = true
					cancel()
					return
				case <-look.C:
					if l.atRest() {
						cancel()
						return
					}
				case <-stop:
					return
				}
			}
		}()
		l.dead = false
		l.agent(ctx, func(u *update.Updater) {
			if l.state().Phase == update.None {
				ordered = true
				if _, err := u.Order(ctx, update.From{Path: l.path}, true); err != nil {
					l.t.Errorf("cut %q: %v", l.where, err)
				}
			}
			go func() {
				defer func() {
					if recover() != nil {
						cancel()
					}
				}()
				l.healthVerb(ctx, u)
			}()
		})
		ordered = ordered && (!l.dead || l.state().Phase != update.None)
		close(stop)
		cancel()
		synctest.Wait()
		if restarted || l.dead && l.power {
			l.start()
		}
	}
	return l.state()
}

// atRest reports whether an update is over, and what runs was blessed.
func (l *life) atRest() bool {
	s := l.state()
	l.mu.Lock()
	defer l.mu.Unlock()
	return s.Phase == update.Settled && (!l.trial || l.lies["bless"] || l.hangs["bless"])
}

// healthVerb does as `birthmark health` does.
func (l *life) healthVerb(ctx context.Context, u *update.Updater) {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		if s := l.state(); u.Looked() {
			if s.Phase != update.Trial {
				return
			}
			l.mu.Lock()
			unwell := l.health(l.running)
			l.mu.Unlock()
			if unwell != "silent" {
				_ = u.Judge(unwell)
			}
			return
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
	}
}

// TestEveryCutEndsSettled orders an update once for every write of the state file and
// every effect on installer and system, and cuts off there: the agent, or the power. A
// good release runs for good at the end, or the old one does; a bad one never does.
func TestEveryCutEndsSettled(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(*machine)
		want  update.Outcome
		runs  fota.Version
	}{
		{"a good release", func(*machine) {}, update.Installed, v2},
		{"a release that fails its health checks", func(m *machine) {
			m.health = func(fota.Version) string { return "check 10-net: exit status 1" }
		}, update.RolledBack, v1},
		{"a release that does not come up", func(m *machine) { m.panics[v2] = true }, update.RolledBack, v1},
	} {
		t.Run(c.name, func(t *testing.T) {
			cuts := map[string]int{}
			for _, power := range []bool{false, true} {
				for n, done := 0, false; !done; n++ {
					synctest.Test(t, func(t *testing.T) {
						l := &life{machine: newMachine(t), path: "/2", cutAt: n, power: power}
						c.spoil(l.machine)
						s := l.live()
						if s.Outcome != c.want || l.running != c.runs || l.trial {
							t.Errorf("cut %q, power %t: %s, runs %v (trial %t): %+v; want %s, %v", l.where, power, s.Outcome, l.running, l.trial, s, c.want, c.runs)
						}
						l.straight()
						cuts[l.where]++
						done = l.where == ""
					})
				}
			}
			for _, where := range slices.Sorted(maps.Keys(cuts)) {
				t.Logf("%4d × %s", cuts[where], where)
			}
			for _, effect := range []string{"store: write", "installer: install", "installer: arm", "installer: cancel", "installer: bless", "system: restart"} {
				if effect == "installer: bless" && c.want != update.Installed {
					continue
				}
				for _, side := range []string{"before ", "after "} {
					if cuts[side+effect] == 0 {
						t.Errorf("nothing was ever cut off %s%s", side, effect)
					}
				}
			}
		})
	}
}

// straight asserts that the phases were remembered in their order, none left out but by
// what ends all.
func (l *life) straight() {
	l.t.Helper()
	line := []update.Phase{update.None, update.Writing, update.Written, update.Armed, update.Trial, update.Settled}
	before := 0
	for _, p := range l.phases {
		at := slices.Index(line, p)
		if at != before && at != before+1 && p != update.Settled {
			l.t.Errorf("cut %q: the phases %q are no straight line", l.where, l.phases)
		}
		before = at
	}
}
