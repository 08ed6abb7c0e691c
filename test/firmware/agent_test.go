package firmware

import (
	"context"
	"crypto/tls"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"birthmark/internal/agent/firmware"
	"birthmark/internal/agent/update"
	"birthmark/internal/installer"
	"birthmark/pkg/clock"
	"birthmark/pkg/fota"
	"birthmark/pkg/fota/bundle"
	"birthmark/pkg/fota/source"
)

// An agent is the one of a device, in a bubble of time.
type agent struct {
	*testing.T
	d    *device
	tls  *tls.Config
	dial func(ctx context.Context, network, address string) (net.Conn, error)
	// opened, if there is one, may change what was opened for the nth time.
	opened func(n int, r *update.Release)

	updater *update.Updater
	over    chan struct{} // has room; an update came to its end, or wants a restart

	mu    sync.Mutex
	state update.State
	told  []update.State // to the owner
	opens int
	began time.Time
}

// inBubble gives a device an agent, at a time that is today.
func (d *device) inBubble(do func(*agent)) {
	d.Helper()
	now := time.Now()
	folders := firmware.Folders
	firmware.Folders = []string{d.path("trust")}
	defer func() { firmware.Folders = folders }()
	synctest.Test(d.T, func(t *testing.T) {
		time.Sleep(time.Until(now))
		a := &agent{T: t, d: d, over: make(chan struct{}, 1)}
		a.updater = update.New(a.host())
		do(a)
	})
}

func (a *agent) host() update.Host {
	done := func() {
		select {
		case a.over <- struct{}{}:
		default:
		}
	}
	up := time.Now()
	return update.Host{
		Load: a.load,
		Save: func(change func(*update.State) error) error {
			a.mu.Lock()
			defer a.mu.Unlock()
			return change(&a.state)
		},
		Installer: rootSide{installer.Client{Path: a.d.socket}},
		Open:      a.open,
		Running:   func() (fota.Version, error) { return fota.Running(os.DirFS(a.d.root)) },
		Boot:      func() (string, time.Duration, error) { return "boot", time.Since(up), nil },
		Restart:   func(context.Context) error { done(); return nil },
		Ready:     func() error { return nil },
		Reached:   func() bool { return true },
		Lately:    func() bool { return true },
		Tell:      func(s update.State) { a.mu.Lock(); defer a.mu.Unlock(); a.told = append(a.told, s) },
		Record: func(s update.State) {
			if s.Phase == update.Settled {
				done()
			}
		},
		Progress: func(update.Progress) {},
		Do:       func(_ string, f func() error) error { return f() },
		Beat:     func(time.Duration) {}, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	}
}

func (a *agent) load() update.State {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state
}

// open opens a bundle as the agent does.
func (a *agent) open(ctx context.Context, from update.From) (*update.Release, error) {
	trust, err := firmware.Trust(clock.Host())
	if err != nil {
		return nil, err
	}
	var src source.Source
	options := source.Options{TLS: a.tls, Dial: a.dial}
	switch {
	case from.Path != "":
		src, err = source.File(from.Path)
	case from.Pin.Size == 0:
		var r *source.Remote
		if r, err = source.HTTP(ctx, from.Pin.URL, options); err == nil {
			src, from.Pin = r, r.Pin()
		}
	default:
		src, err = source.Resume(ctx, from.Pin, options)
	}
	if err != nil {
		return nil, err
	}
	b, err := bundle.Open(src, src.Size(), trust)
	if err != nil {
		src.Close()
		return nil, err
	}
	r := &update.Release{Manifest: b.Manifest, Source: src, From: from}
	a.mu.Lock()
	a.opens++
	n := a.opens
	a.mu.Unlock()
	if a.opened != nil {
		a.opened(n, r)
	}
	return r, nil
}

// update orders a bundle and lives the update to its end, or to the restart that it wants.
// The error is why the order was not taken.
func (a *agent) update(from string) error {
	a.Helper()
	f, err := update.ParseFrom(from)
	if err != nil {
		a.Fatal(err)
	}
	a.began = time.Now()
	ctx, cancel := context.WithCancel(a.Context())
	if _, err := a.updater.Order(ctx, f, true); err != nil {
		cancel()
		return err
	}
	var running sync.WaitGroup
	running.Go(func() { a.updater.Run(ctx) })
	select {
	case <-a.over:
	case <-time.After(48 * time.Hour):
		a.Errorf("no end after two days: %+v", a.load())
	}
	cancel()
	running.Wait()
	return nil
}

// A reason is why there was no update.
type reason struct {
	stage fota.Stage // of a refusal
	code  string
	says  string
}

// wantFailed holds that an update ended for a reason, that device and owner say the same
// of it, and that the device is what it was.
func (a *agent) wantFailed(err error, want reason) {
	a.Helper()
	var got reason
	var no *fota.Refusal
	switch s := a.load(); {
	case errors.As(err, &no):
		got = reason{no.Stage, no.Code, no.Err.Error()}
	case err != nil:
		got.says = err.Error()
	case s.Phase != update.Settled || s.Outcome != update.Failed || s.Why == nil:
		a.Errorf("the update is %+v, want it to have failed", s)
	default:
		got = reason{s.Why.Stage, s.Why.Code, s.Why.Reason}
		if last := a.told[len(a.told)-1]; !reflect.DeepEqual(last.Why, s.Why) || last.Outcome != s.Outcome {
			a.Errorf("the owner was told %+v, and remembered is %+v", last, s)
		}
	}
	if got.stage != want.stage || got.code != want.code || !strings.Contains(got.says, want.says) {
		a.Errorf("the reason is %+v, want %+v", got, want)
	}
	a.d.wantUntouched()
}

// wantTaken holds that a device that has got over its fault takes the release.
func (a *agent) wantTaken(from string) {
	a.Helper()
	a.opened = nil
	if err := a.update(from); err != nil {
		a.Errorf("without the fault the order was not taken: %v", err)
		return
	}
	if s := a.load(); s.Phase != update.Armed {
		a.Errorf("without the fault the update is %+v, because of %+v; want it armed", s, s.Why)
	}
	a.d.wantArmed(next)
}

// file puts a bundle on the device, in place of the one that is there.
func (d *device) file(b []byte) string {
	d.Helper()
	path := d.path("bundle.raucb")
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.Fatal(err)
	}
	d.put("bundle.raucb", b)
	return path
}

func TestAGoodBundle(t *testing.T) {
	d := newDevice(t).serve()
	d.inBubble(func(a *agent) { a.wantTaken(d.file(d.bundles[next])) })
}

func asRefusal(err error, no **fota.Refusal) bool { return errors.As(err, no) }
