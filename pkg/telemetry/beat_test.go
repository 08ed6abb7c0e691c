package telemetry

import (
	"crypto/tls"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// A pulse notes when it should have heard of a link, and did not.
type pulse struct {
	mu   sync.Mutex
	due  time.Time
	late time.Duration // the most that it was
}

func (p *pulse) beat(within time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.due.IsZero() {
		p.late = max(p.late, time.Since(p.due))
	}
	p.due = time.Now().Add(within)
}

// TestALinkIsNeverLate lets brokers do their worst for hours: no wait for one makes a
// link late, and only what it has no limit for does.
func TestALinkIsNeverLate(t *testing.T) {
	for name, spoil := range map[string]func(*fakeBroker){
		"connected": func(*fakeBroker) {},
		"no PUBACK": func(b *fakeBroker) { b.set(func() { b.mute = func(*packets.PublishPacket) bool { return true } }) },
		"deaf":      func(b *fakeBroker) { b.set(func() { b.deaf = true }) },
		"down":      func(b *fakeBroker) { b.set(func() { b.down = true }); b.cut() },
		"cut":       func(b *fakeBroker) { b.cut() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &fakeBroker{}
				l := testLink(t, b)
				var p pulse
				l.Beat = p.beat
				stop := running(t, l)
				spoil(b)
				put(t, l.Outbox, 1)
				pass(3 * time.Hour)
				p.beat(0)
				if p.late > 0 {
					t.Errorf("the link was late by %v, want never", p.late)
				}
				stop()
				pass(writeLimit) // paho may still be waiting for its turn to write
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		l := testLink(t, &fakeBroker{})
		var p pulse
		l.Beat = p.beat
		release := make(chan struct{})
		l.TLS = func(server string) (*tls.Config, error) { <-release; return clientConfig(server) }
		stop := running(t, l)
		pass(10 * time.Minute)
		p.beat(0)
		if p.late < 8*time.Minute {
			t.Errorf("a link that is stuck for 10m is late by %v, want 8m at least", p.late)
		}
		close(release)
		stop()
	})
}
