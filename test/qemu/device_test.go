package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"birthmark/internal/lab"
	"birthmark/test/qemu/image"
	"birthmark/test/qemu/machine"
)

// How long a test waits, four times of what is usual on a quiet machine without KVM.
const (
	bootPatience = 4 * time.Minute  // from power on to the control channel: 25 s, or 60 s where another slot has to be tried
	patience     = 1 * time.Minute  // for what takes seconds
	lookPatience = 20 * time.Second // at the wreck of a failed test
)

// img is the image that all scenarios start from.
var img *image.Image

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "bm-image")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	start := time.Now()
	if img, err = build(context.Background(), dir, "1.0.0+sv1"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Printf("image built in %.1f s, KVM %v\n", time.Since(start).Seconds(), machine.Accelerated())
	return m.Run()
}

// A device under test. What fails at it ends the test.
type device struct {
	*testing.T
	*machine.Machine
}

// powerOn makes a device of the image, or of what a scenario made of it.
func powerOn(t *testing.T, conf machine.Config) device {
	t.Helper()
	dir, err := os.MkdirTemp("", "bm-device") // a test's own folder has too long a path for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	conf.Dir, conf.Firmware = dir, image.Firmware
	if conf.Vars == "" {
		conf.Vars = img.Vars
	}
	if conf.Disk == "" {
		conf.Disk = img.Disk
	}
	m, err := machine.Start(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	d := device{t, m}
	t.Cleanup(func() {
		if t.Failed() {
			d.wreck()
		}
		if err := m.Cut(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// wreck tells what a failed test leaves to look at.
func (d device) wreck() {
	const end = 4000
	console := d.Console()
	d.Logf("the end of the console:\n%s", console[max(0, len(console)-end):])
	ctx, cancel := context.WithTimeout(context.Background(), lookPatience)
	defer cancel()
	journal, err := d.Sh(ctx, "systemctl status --no-pager --lines=0 birthmark-agent; "+
		"journalctl -u birthmark-agent -o short-monotonic --no-pager | tail -n 60; "+
		"journalctl -p warning -o short-monotonic --no-pager | tail -n 20")
	d.Logf("the agent, its journal, and warnings of all (%v):\n%s", err, journal)
}

// ready waits until the device is up.
func (d device) ready() {
	d.Helper()
	start := time.Now()
	ctx, cancel := context.WithTimeout(d.Context(), bootPatience)
	defer cancel()
	if err := d.Ready(ctx); err != nil {
		d.Fatal(err)
	}
	d.Logf("up after %.1f s", time.Since(start).Seconds())
}

// do runs a script in the device, which has to succeed.
func (d device) do(script string) string {
	d.Helper()
	return d.within(patience, script)
}

// within is do, for what takes longer.
func (d device) within(limit time.Duration, script string) string {
	d.Helper()
	ctx, cancel := context.WithTimeout(d.Context(), limit)
	defer cancel()
	out, err := d.Sh(ctx, script)
	if err != nil {
		d.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// restart is a reboot as a user does it.
func (d device) restart() {
	d.Helper()
	d.do("systemctl reboot")
	d.ready()
}

// says waits until the console shows one of some texts, and returns what it shows.
func (d device) says(texts ...string) string {
	d.Helper()
	late := time.After(bootPatience)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		console := d.Console()
		for _, text := range texts {
			if strings.Contains(console, text) {
				return console
			}
		}
		select {
		case <-tick.C:
		case <-late:
			d.Fatalf("the console does not say any of %q within %v", texts, bootPatience)
		}
	}
}

// A world is a lab, and what was heard in it.
type world struct {
	*testing.T
	*lab.Lab
	mu    sync.Mutex
	heard []message
	news  chan struct{} // of one more message
}

type message struct{ client, topic, payload string }

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{T: t, news: make(chan struct{}, 1)}
	w.up(filepath.Join(t.TempDir(), "lab"))
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// up brings the lab up, or up again, from its folder.
func (w *world) up(dir string) {
	w.Helper()
	l, err := upLab(w.Context(), dir, nil, w.hear)
	if err != nil {
		w.Fatal(err)
	}
	w.Lab = l
}

// hear takes what the broker was told.
func (w *world) hear(client, topic string, payload []byte) {
	w.mu.Lock()
	w.heard = append(w.heard, message{client, topic, string(payload)})
	w.mu.Unlock()
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// birth is that of this lab.
func (w *world) birth(id string) map[string][]byte {
	w.Helper()
	files, err := birth(w.Lab, id)
	if err != nil {
		w.Fatal(err)
	}
	return files
}

// forget forgets what was heard.
func (w *world) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard = nil
}

// hears waits for a message on a topic that ends like this.
func (w *world) hears(topic string) message {
	w.Helper()
	return w.hearsOf(topic, "")
}

// hearsOf waits for one with some text in it.
func (w *world) hearsOf(topic, text string) message {
	w.Helper()
	late := time.After(patience)
	for {
		w.mu.Lock()
		for _, m := range w.heard {
			if strings.HasSuffix(m.topic, topic) && strings.Contains(m.payload, text) {
				w.mu.Unlock()
				return m
			}
		}
		n := len(w.heard)
		w.mu.Unlock()
		select {
		case <-w.news:
		case <-late:
			w.Fatalf("nothing heard on %s of %q within %v; other messages: %d", topic, text, patience, n)
		}
	}
}
