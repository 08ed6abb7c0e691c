package telemetry

import (
	"context"
	"crypto/tls"
	"net/url"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

func TestClonesLeaveEachOtherAlone(t *testing.T) {
	for _, window := range []time.Duration{time.Second, time.Minute, 10 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			b := &fakeBroker{kick: true}
			var mu sync.Mutex // guards what follows
			suspected := map[*Link]int{}
			var last *time.Time // when somebody connected
			links := []*Link{testLink(t, b), testLink(t, b)}
			for _, l := range links {
				var connected, known time.Time // of this device
				l.Window = window
				l.OnClone = func() {
					mu.Lock()
					defer mu.Unlock()
					known = time.Now()
					suspected[l]++
				}
				l.OnConnected = func() {
					mu.Lock()
					defer mu.Unlock()
					if since := time.Since(connected); !known.IsZero() && connected.After(known) && since < clonePause {
						t.Errorf("window %v: connected again after %v, want %v or more", window, since, clonePause)
					}
					connected = time.Now()
					last = &connected
				}
				running(t, l)
			}
			pass(24 * time.Hour)
			mu.Lock()
			defer mu.Unlock()
			// Whoever suspects first may leave the other in peace before it does.
			first, second := suspected[links[0]], suspected[links[1]]
			if first+second == 0 || first > 1 || second > 1 {
				t.Errorf("window %v: a clone was suspected %d times in a day by one and %d by the other, want once by one of them at least", window, first, second)
			}
			if last == nil || time.Since(*last) > 4*clonePause {
				t.Errorf("window %v: nobody came for a long time", window)
			}
		})
	}
}

func TestCloneIsSuspectedSoonAndOnce(t *testing.T) {
	const soon = 10 * time.Second
	hang := func(r *retry, up, pause time.Duration, hungUp bool) bool {
		time.Sleep(up + pause)
		return r.suspect(up, hungUp)
	}
	for name, do := range map[string]struct {
		steps func(*retry) []bool
		want  int // of the steps
	}{
		"three hang-ups": {func(r *retry) []bool {
			return []bool{hang(r, soon, soon, true), hang(r, soon, soon, true), hang(r, soon, soon, true)}
		}, 3},
		"the first of them after a day": {func(r *retry) []bool {
			return []bool{hang(r, 24*time.Hour, soon, true), hang(r, soon, soon, true), hang(r, soon, soon, true)}
		}, 3},
		"a lost network in between": {func(r *retry) []bool {
			return []bool{hang(r, soon, soon, true), hang(r, soon, soon, false), hang(r, soon, soon, true), hang(r, soon, soon, true)}
		}, 4},
		"a lost network only": {func(r *retry) []bool {
			return []bool{hang(r, soon, soon, false), hang(r, soon, soon, false), hang(r, soon, soon, false), hang(r, soon, soon, false)}
		}, 0},
		"seldom": {func(r *retry) []bool {
			return []bool{hang(r, soon, 3*time.Minute, true), hang(r, soon, 3*time.Minute, true), hang(r, soon, 3*time.Minute, true), hang(r, soon, 3*time.Minute, true)}
		}, 0},
		"a stable session in between": {func(r *retry) []bool {
			return []bool{hang(r, soon, soon, true), hang(r, soon, soon, true), hang(r, stableAfter, soon, true), hang(r, soon, soon, true)}
		}, 0},
		"not twice": {func(r *retry) []bool {
			return []bool{hang(r, soon, soon, true), hang(r, soon, soon, true), hang(r, soon, soon, true), hang(r, soon, soon, true), hang(r, soon, soon, true), hang(r, soon, soon, true)}
		}, 3},
		"again after an hour": {func(r *retry) []bool {
			for range cloneCount {
				hang(r, soon, soon, true)
			}
			return []bool{hang(r, cloneOver, soon, true), hang(r, soon, soon, true), hang(r, soon, soon, true)}
		}, 3},
	} {
		synctest.Test(t, func(t *testing.T) {
			for i, suspected := range do.steps(&retry{window: time.Minute}) {
				if suspected != (i+1 == do.want) {
					t.Errorf("%s: step %d: suspected %t, want it at step %d only", name, i+1, suspected, do.want)
				}
			}
		})
	}
}

func TestPausesWithACloneAreLong(t *testing.T) {
	for name, pause := range map[string]func(*retry) time.Duration{
		"after a failure": func(r *retry) time.Duration { return r.failed() },
		"after a loss":    func(r *retry) time.Duration { return r.lost(time.Second) },
		"after a day":     func(r *retry) time.Duration { return r.lost(24 * time.Hour) },
	} {
		least, mean, most := drawn(func() time.Duration { return pause(&retry{window: time.Second, clone: true}) })
		if least < clonePause || !near(mean, clonePause*3/2, clonePause) || !near(most, 2*clonePause, clonePause) {
			t.Errorf("%s: pauses from %v to %v, mean %v, want an even spread from %v to %v", name, least, most, mean, clonePause, 2*clonePause)
		}
	}
}

// TestMosquittoTellsOfAClone has a clone that comes back as soon as the device does.
func TestMosquittoTellsOfAClone(t *testing.T) {
	m := startMosquitto(t)
	conf, _ := clientConfig("localhost")
	conf.Certificates = []tls.Certificate{mustIdentity("dev-1")}
	suspected := make(chan struct{}, 2)
	l := &Link{
		Brokers: []string{"mqtts://" + m.addr}, ID: "dev-1", Outbox: testOutbox(t), Window: time.Nanosecond,
		TLS: func(string) (*tls.Config, error) { return conf, nil },
		OnConnected: func() {
			o := mqtt.NewClientOptions()
			o.Servers = []*url.URL{{Scheme: "ssl", Host: m.addr}}
			o.SetClientID("dev-1").SetProtocolVersion(4).SetAutoReconnect(false).SetTLSConfig(conf)
			clone := mqtt.NewClient(o)
			if token := clone.Connect(); !token.WaitTimeout(patience) || token.Error() != nil {
				t.Errorf("the clone cannot connect: %v", token.Error())
			}
			clone.Disconnect(0)
		},
		OnClone: func() { suspected <- struct{}{} },
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	soon(t, suspected, "the suspicion")
	stop()
	if err := soon(t, ended, "the end"); err != nil {
		t.Error(err)
	}
}
