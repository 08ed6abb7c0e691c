package update_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"birthmark/internal/agent/update"
	"birthmark/pkg/fota"
	"birthmark/pkg/fota/source"
)

// TestUpdatesEnd takes one update through all that may happen to it.
func TestUpdatesEnd(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(*machine)
		want  update.Outcome
		why   string        // is in the reason
		least time.Duration // that it takes
	}{
		{"a source that is away for a while is waited for", func(m *machine) { m.away = 5 }, update.Installed, "", 5 * time.Second},
		{"one that is away for a day is given up", func(m *machine) { m.away = 1 << 30 }, update.Failed, "connection refused", 24 * time.Hour},
		{"a server that asks to be left alone for an hour is", func(m *machine) { m.away, m.later = 3, time.Hour }, update.Installed, "", 3 * time.Hour},
		{"and for a year until it is given up", func(m *machine) { m.away, m.later = 1<<30, 365*24*time.Hour }, update.Failed, "connection refused", 24 * time.Hour},
		{"an installer that fails twice gets a third try", func(m *machine) { m.fails["install"] = 2 }, update.Installed, "", 0},
		{"and no fourth", func(m *machine) { m.fails["install"] = 3 }, update.Failed, "given up after 3 tries; the last: input/output error", 0},
		{"arming and blessing are tried again", func(m *machine) { m.fails["arm"], m.fails["bless"] = 4, 4 }, update.Installed, "", 0},
		{"a slow health check has five minutes", func(m *machine) {
			m.ready = errors.New("the TPM does not answer")
			time.AfterFunc(4*time.Minute, func() { m.mu.Lock(); m.ready = nil; m.mu.Unlock() })
		}, update.Installed, "", 4 * time.Minute},
		{"and not more", func(m *machine) { m.unready = v2 }, update.RolledBack, "not well after 5m0s: the TPM does not answer", 15 * time.Minute},
		{"silence of the health checks is no health", func(m *machine) { m.health = func(fota.Version) string { return "silent" } }, update.RolledBack, "nothing was heard of the health checks", 15 * time.Minute},
		{"the reason of a bad check is told", func(m *machine) { m.health = func(fota.Version) string { return "check 10-net: exit status 1" } }, update.RolledBack, "check 10-net: exit status 1", 0},
		{"a broker that the device had not reached is not awaited", func(m *machine) { m.network = nil }, update.Installed, "", 0},
		{"a release without a network is tried three times, as often as it is started", func(m *machine) { m.network[v2] = false }, update.RolledBack, "the broker was not reached within 30m0s", 9 * 30 * time.Minute},
		{"a network that comes back in time is enough", func(m *machine) {
			m.network[v2] = false
			time.AfterFunc(20*time.Minute, func() { m.mu.Lock(); m.network[v2] = true; m.mu.Unlock() })
		}, update.Installed, "", 20 * time.Minute},
		{"one that comes back late lets the release have its next try", func(m *machine) {
			m.network[v2] = false
			time.AfterFunc(100*time.Minute, func() { m.mu.Lock(); m.network[v2] = true; m.mu.Unlock() })
		}, update.Installed, "", 100 * time.Minute},
		{"a broker that is down for the old release too is awaited before", func(m *machine) {
			m.network[v2] = false
			time.AfterFunc(20*time.Minute, func() { m.mu.Lock(); m.network[v1] = false; m.mu.Unlock() })
			time.AfterFunc(40*time.Hour, func() { m.mu.Lock(); m.network[v1], m.network[v2] = true, true; m.mu.Unlock() })
		}, update.Installed, "", 40 * time.Hour},

		{"an installer that lies about having written", func(m *machine) { m.lies["install"] = true }, update.Failed, "says that he has written", 0},
		{"that lies about having armed", func(m *machine) { m.lies["arm"] = true }, update.Failed, "says that he has armed", 0},
		{"that lies about having blessed", func(m *machine) { m.lies["bless"] = true }, update.RolledBack, "says that he has blessed", 0},
		{"that hangs while he writes", func(m *machine) { m.hangs["install"] = true }, update.Failed, "not got on for 15m0s", 45 * time.Minute},
		{"that hangs while he arms", func(m *machine) { m.hangs["arm"] = true }, update.Failed, "not answered within 2m0s", 0},
		{"that hangs while he blesses", func(m *machine) { m.hangs["bless"] = true }, update.RolledBack, "not answered within 2m0s", 0},
		{"that hangs while he takes back", func(m *machine) { m.hangs["cancel"] = true }, update.Failed, "not answered within 2m0s", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &life{machine: newMachine(t), path: "/2", cutAt: -1}
				c.spoil(l.machine)
				began := time.Now()
				s := l.live()
				runs := v1
				if c.want == update.Installed {
					runs = v2
				}
				if s.Outcome != c.want || l.running != runs {
					t.Errorf("it ended %s, and %v runs: %+v, %+v; want %s, %v", s.Outcome, l.running, s, s.Why, c.want, runs)
				}
				if s.Why != nil && (c.why == "" || !strings.Contains(s.Why.Reason, c.why)) || s.Why == nil && c.why != "" {
					t.Errorf("the reason is %+v, want %q", s.Why, c.why)
				}
				if took := time.Since(began); took < c.least {
					t.Errorf("it took %v, want %v at least", took, c.least)
				}
				if last := l.told[len(l.told)-1]; last.Outcome != s.Outcome || c.why != "" && last.Why == nil {
					t.Errorf("told was %+v in the end, want what is remembered, %+v", last, s)
				}
			})
		})
	}
}

// during orders /2 without a restart, lets f see the agent at work, and returns what is
// remembered then.
func during(t *testing.T, m *machine, f func(context.Context, *update.Updater)) (s update.State) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	m.agent(ctx, func(u *update.Updater) {
		if _, err := u.Order(ctx, update.From{Path: "/2"}, false); err != nil {
			t.Error(err)
		}
		go func() {
			defer cancel()
			f(ctx, u)
			synctest.Wait()
			s = m.state()
		}()
	})
	return s
}

func TestOrders(t *testing.T) {
	for _, c := range []struct {
		name    string
		run     func(*testing.T, context.Context, *machine, *update.Updater)
		phase   update.Phase
		version fota.Version
		mark    fota.Mark // of what does not run
	}{
		{"nothing is started anew unasked", func(t *testing.T, ctx context.Context, m *machine, u *update.Updater) {
			time.Sleep(time.Hour)
			if len(m.restart) != 0 {
				t.Error("the system was started anew")
			}
		}, update.Armed, v2, fota.Armed},
		{"the same release once more is no new order, and a restart may be asked for late", func(t *testing.T, ctx context.Context, m *machine, u *update.Updater) {
			time.Sleep(time.Minute)
			if _, err := u.Order(ctx, update.From{Path: "/2"}, true); err != nil {
				t.Error(err)
			}
			synctest.Wait()
			if len(m.restart) != 1 || m.calls["install"] != 1 {
				t.Errorf("%d restarts, %d installs, want 1 and 1", len(m.restart), m.calls["install"])
			}
		}, update.Armed, v2, fota.Armed},
		{"another release takes the place of one that is armed", func(t *testing.T, ctx context.Context, m *machine, u *update.Updater) {
			synctest.Wait()
			if _, err := u.Order(ctx, update.From{Path: "/3"}, false); err != nil {
				t.Error(err)
			}
		}, update.Armed, v3, fota.Armed},
		{"and of one that is being written", func(t *testing.T, ctx context.Context, m *machine, u *update.Updater) {
			m.mu.Lock()
			m.away = 1 << 30
			m.mu.Unlock()
			time.Sleep(time.Hour)
			m.mu.Lock()
			m.away = 0
			m.mu.Unlock()
			if _, err := u.Order(ctx, update.From{Path: "/3"}, false); err != nil {
				t.Error(err)
			}
		}, update.Armed, v3, fota.Armed},
		{"a bundle that is refused changes nothing", func(t *testing.T, ctx context.Context, m *machine, u *update.Updater) {
			synctest.Wait()
			for path, code := range map[string]string{"/forged": "signature", "/old": "downgrade"} {
				var refusal *fota.Refusal
				if _, err := u.Order(ctx, update.From{Path: path}, true); !errors.As(err, &refusal) || refusal.Code != code {
					t.Errorf("%s: %v, want a refusal for %s", path, err, code)
				}
			}
		}, update.Armed, v2, fota.Armed},
		{"one that is armed can be taken back", func(t *testing.T, ctx context.Context, m *machine, u *update.Updater) {
			synctest.Wait()
			if err := u.Cancel(ctx); err != nil {
				t.Error(err)
			}
		}, update.Settled, v2, ""},
		{"an installer who lies about what runs gets nothing to do", func(t *testing.T, ctx context.Context, m *machine, u *update.Updater) {
			synctest.Wait()
			m.mu.Lock()
			m.lies["status"] = true
			m.mu.Unlock()
			if _, err := u.Order(ctx, update.From{Path: "/3"}, false); err == nil {
				t.Error("the order was taken")
			}
			if m.calls["install"] != 1 {
				t.Errorf("%d installs, want the first", m.calls["install"])
			}
		}, update.Armed, v2, fota.Armed},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t)
				s := during(t, m, func(ctx context.Context, u *update.Updater) { c.run(t, ctx, m, u) })
				if s.Phase != c.phase || s.Version != c.version || m.other.Mark != c.mark {
					t.Errorf("remembered is %+v, the installer holds %+v; want %s of %v, %q", s, m.other, c.phase, c.version, c.mark)
				}
			})
		})
	}
}

// TestATrialTakesNoOrders: neither another release nor a change of mind.
func TestATrialTakesNoOrders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		during(t, m, func(context.Context, *update.Updater) { synctest.Wait() })
		m.start()
		ctx, cancel := context.WithCancel(t.Context())
		m.agent(ctx, func(u *update.Updater) {
			go func() {
				defer cancel()
				synctest.Wait()
				if !u.Looked() || m.state().Phase != update.Trial {
					t.Errorf("looked %t, %+v, want a trial", u.Looked(), m.state())
				}
				if _, err := u.Order(ctx, update.From{Path: "/3"}, false); !errors.Is(err, update.ErrBusy) {
					t.Errorf("an order: %v, want %v", err, update.ErrBusy)
				}
				if err := u.Cancel(ctx); !errors.Is(err, update.ErrBusy) {
					t.Errorf("cancel: %v, want %v", err, update.ErrBusy)
				}
				if err := u.Judge("the first word"); err != nil {
					t.Error(err)
				}
				if err := u.Judge(""); err != nil {
					t.Error(err)
				}
				synctest.Wait()
				if s := m.state(); s.Healthy || !s.Leave || s.Why.Reason != "the first word" || len(m.restart) != 1 || m.calls["bless"] != 0 {
					t.Errorf("after a verdict and its opposite: %+v, %d restarts, %d times blessed", s, len(m.restart), m.calls["bless"])
				}
			}()
		})
	})
}

// TestAVerdictOutlivesTheAgent: the checks run once in a start of the system, and the
// agent may be started again in it.
func TestAVerdictOutlivesTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		during(t, m, func(context.Context, *update.Updater) { synctest.Wait() })
		m.start()
		m.network[v2] = false
		for _, reached := range []bool{false, true} {
			m.network[v2] = reached
			ctx, cancel := context.WithCancel(t.Context())
			m.agent(ctx, func(u *update.Updater) {
				go func() {
					defer cancel()
					synctest.Wait()
					if !reached {
						if err := u.Judge(""); err != nil {
							t.Error(err)
						}
					}
					time.Sleep(10 * time.Minute)
				}()
			})
		}
		if s := m.state(); s.Outcome != update.Installed || m.trial {
			t.Errorf("%+v, on trial %t; want it blessed", s, m.trial)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		m.agent(ctx, func(u *update.Updater) {
			if err := u.Judge(""); !errors.Is(err, update.ErrNoTrial) {
				t.Errorf("a verdict without a trial: %v, want %v", err, update.ErrNoTrial)
			}
			cancel()
		})
	})
}

// TestAFileThatChangedIsNotInstalled: what was looked at is what is written.
func TestAFileThatChangedIsNotInstalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.bundles["/2"], m.bundles["/3"] = m.bundles["/3"], m.bundles["/2"]
		other := *m.bundles["/3"]
		s := during(t, m, func(context.Context, *update.Updater) {})
		if s.Version != v3 {
			t.Fatalf("ordered was %v, want %v", s.Version, v3)
		}
		m = newMachine(t)
		m.effect = func(where string) any {
			if where == "after store: write" {
				m.mu.Lock()
				m.bundles["/2"] = &other
				m.bundles["/2"].Version = v3
				m.mu.Unlock()
			}
			return nil
		}
		s = during(t, m, func(context.Context, *update.Updater) { time.Sleep(time.Minute) })
		if s.Outcome != update.Failed || !strings.Contains(s.Why.Reason, source.ErrChanged.Error()) || m.calls["install"] != 0 {
			t.Errorf("%+v, %+v, %d installs; want it failed, and none", s, s.Why, m.calls["install"])
		}
	})
}

func TestParseFrom(t *testing.T) {
	for text, want := range map[string]string{
		"/var/cache/a.raucb": "/var/cache/a.raucb",
		"https://user:secret@updates.example.com:8443/gw/1.raucb?token=secret": "https://updates.example.com:8443/gw/1.raucb",
		"a.raucb": "", "http://example.com/a": "", "https://": "", "": "", "file:///a": "", "https://a b/%zz": "",
	} {
		from, err := update.ParseFrom(text)
		if got := from.String(); err == nil && got != want || (err == nil) != (want != "") {
			t.Errorf("%q is %q, %v; want %q", text, got, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error shows what may be secret: %v", text, err)
		}
	}
}

// TestWhatRunsIsBlessedFirst: after a start in which a try was counted the installer does not
// write. To wait for that is no try of the release.
func TestWhatRunsIsBlessedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.trial, m.ready = true, errors.New("the agent has just been started")
		s := during(t, m, func(context.Context, *update.Updater) {
			time.Sleep(time.Minute)
			m.mu.Lock()
			m.ready = nil
			m.mu.Unlock()
			time.Sleep(time.Minute)
		})
		if s.Phase != update.Armed || s.Tries != 1 || m.trial {
			t.Errorf("%+v, on trial %t; want it armed after one try", s, m.trial)
		}
	})
}

// One that cannot be blessed is not waited for without end: the installer says why he does
// not write, and that ends the update.
func TestWhatCannotBeBlessedEndsAnUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		m.trial = true
		m.fails["bless"] = 1000
		s := during(t, m, func(context.Context, *update.Updater) { time.Sleep(24 * time.Hour) })
		if s.Phase != update.Settled || s.Outcome != update.Failed || s.Why == nil || !strings.Contains(s.Why.Reason, "what runs is on trial") {
			t.Errorf("%+v, %+v; want it failed, since what runs is on trial", s, s.Why)
		}
	})
}
