package installer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"testing"
	"time"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/bundle/bundletest"
)

func TestAGoodBundleIsInstalledAndArmed(t *testing.T) {
	for _, how := range []string{"read out", "as a file"} {
		t.Run(how, func(t *testing.T) {
			d := newDevice(t)
			b := d.release("1.1.0+sv2")
			var done, total int64
			progress := func(d, t int64) { done, total = d, t }
			var r *Release
			var err error
			if how == "read out" {
				r, err = d.Install(t.Context(), bytes.NewReader(b), int64(len(b)), progress)
			} else {
				f, errOpen := os.Open(d.file(b))
				if errOpen != nil {
					t.Fatal(errOpen)
				}
				defer f.Close()
				r, err = d.InstallFile(t.Context(), f, progress)
			}
			if err != nil {
				t.Fatal(err)
			}
			want := bundletest.NewRelease("acme-gw", "1.1.0+sv2")
			_, slots, _ := d.loader.seen()
			for slot, file := range want.Slots {
				if !bytes.Equal(slots[slot], want.Files[file]) {
					t.Errorf("slot %s has %d other bytes than %s", slot, len(slots[slot]), file)
				}
			}
			if done != 2 || total != 2 {
				t.Errorf("the last progress was %d of %d, want 2 of 2", done, total)
			}
			st, err := d.Status(t.Context())
			if err != nil || st.Staged == nil || *st.Staged != *r || r.Version != version(t, "1.1.0+sv2") || st.Device.Other.Mark != fota.Staged {
				t.Errorf("after the install of %+v the status is %+v, %v", r, st, err)
			}
			wantRefusal(t, "another release", d.Arm(t.Context(), version(t, "1.1.0+sv3")), fota.StageBoot, "staged")
			for range 2 { // it may be asked for again
				err := d.Arm(t.Context(), r.Version)
				if other, _, _ := d.loader.seen(); err != nil || other.Mark != fota.Armed {
					t.Errorf("arm: %v, and there is %+v", err, other)
				}
			}
			if err := d.Cancel(t.Context()); err != nil {
				t.Errorf("cancel: %v", err)
			}
			d.wantNothing("cancel", "1.1.0+sv2")
		})
	}
}

// TestBless needs nothing but a boot loader: not even a folder to remember in.
func TestBless(t *testing.T) {
	d := newDevice(t)
	if err := os.RemoveAll(d.state); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.state, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d.start()
	err := d.Bless(t.Context())
	if _, _, blessed := d.loader.seen(); err != nil || blessed != 1 {
		t.Errorf("bless: %v, and the boot loader was told %d times", err, blessed)
	}
	_, err = d.try(d.release("1.1.0+sv2"))
	if _, slots, _ := d.loader.seen(); err == nil || slots != nil {
		t.Errorf("an install that cannot be remembered: %v, and %d slots were written", err, len(slots))
	}
	if st, err := d.Status(t.Context()); err != nil || len(st.Notes) != 1 {
		t.Errorf("the status is %+v, %v; want a note", st, err)
	}
}

func TestRefusalsArriveWithStageAndCode(t *testing.T) {
	d := newDevice(t)
	stranger := bundletest.NewPKI(t, "P-384", "P-384")
	good := bundletest.NewRelease("acme-gw", "1.1.0+sv2")
	with := func(change func(*bundletest.Release)) []byte {
		r := good
		r.Files, r.Slots = maps.Clone(r.Files), maps.Clone(r.Slots)
		change(&r)
		return r.Parts(t, d.pki.Signer).Bytes()
	}
	spoilt := func(change func(*bundletest.Parts)) []byte {
		p := good.Parts(t, d.pki.Signer)
		change(&p)
		return p.Bytes()
	}
	for _, c := range []struct {
		stage fota.Stage
		code  string
		b     []byte
	}{
		{fota.StageContainer, "trailer", []byte("short")},
		{fota.StageContainer, "unsigned", make([]byte, 4096)},
		{fota.StageCMS, "signature", spoilt(func(p *bundletest.Parts) { p.Signature[len(p.Signature)-1] ^= 1 })},
		{fota.StageChain, "issuer", good.Parts(t, stranger.Signer).Bytes()},
		{fota.StageManifest, "unknown", with(func(r *bundletest.Release) { r.Update = "mandatory=yes" })},
		{fota.StagePolicy, "plain", with(func(r *bundletest.Release) { r.Format = "plain" })},
		{fota.StagePolicy, "compatible", with(func(r *bundletest.Release) { r.Compatible = "acme-tv" })},
		{fota.StagePolicy, "floor", with(func(r *bundletest.Release) { r.Version = "1.1.0+sv0" })},
		{fota.StagePolicy, "same", with(func(r *bundletest.Release) { r.Version = "1.0.0+sv1" })},
		{fota.StagePolicy, "downgrade", with(func(r *bundletest.Release) { r.Version = "0.9.0+sv1" })},
		{fota.StagePolicy, "slot", with(func(r *bundletest.Release) { r.Slots["bootfs"] = "appfs.img" })},
		{fota.StagePolicy, "size", with(func(r *bundletest.Release) { r.Files["appfs.img"] = make([]byte, 2<<20) })},
		{fota.StagePayload, "block", spoilt(func(p *bundletest.Parts) { p.Data[4096] ^= 1 })},
		{fota.StageSquashfs, "magic", bundletest.Build(t, make([]byte, 8192), good.Manifest(), "verity", bundletest.Message{By: d.pki.Signer}).Bytes()},
		{fota.StageImage, "missing", bundletest.Build(t, bundletest.Squashfs(t, map[string][]byte{"rootfs.img": good.Files["rootfs.img"]}, "-comp", "gzip"),
			good.Manifest(), "verity", bundletest.Message{By: d.pki.Signer}).Bytes()},
	} {
		what := string(c.stage) + " " + c.code
		_, err := d.try(c.b)
		wantRefusal(t, what, err, c.stage, c.code)
		d.wantNothing(what, "1.1.0+sv2")
	}
	for _, stage := range []fota.Stage{fota.StageSlot, fota.StageBoot} {
		d.loader.set(func() { d.loader.err = fota.Refuse(stage, "full", "there is \x1b[31m no room on %q", "\n") })
		_, err := d.try(d.release("1.1.0+sv2"))
		wantRefusal(t, string(stage), err, stage, "full")
		if want := string(stage) + ": there is \ufffd[31m no room on \"\\n\""; !bytes.Contains([]byte(err.Error()), []byte(want)) {
			t.Errorf("got %q, want %q in it", err, want)
		}
		d.wantNothing(string(stage), "1.1.0+sv2")
	}
}

// TestWhatIsWrittenAfterwardsIsNotArmed installs a good bundle, and then one that is
// damaged: what was staged first is gone, and nothing is armed.
func TestWhatIsWrittenAfterwardsIsNotArmed(t *testing.T) {
	d := newDevice(t)
	d.mustInstall("1.1.0+sv2")
	bad := d.release("1.1.0+sv2")
	bad[4096] ^= 1
	if _, err := d.try(bad); err == nil {
		t.Error("a damaged bundle was installed")
	}
	d.wantNothing("a damaged bundle", "1.1.0+sv2")

	// A boot loader that does not notice is not what the promise stands on.
	old := fota.Other{Version: version(t, "1.1.0+sv2"), Mark: fota.Staged}
	d.mustInstall("1.1.0+sv2")
	d.loader.set(func() { d.loader.during = func(context.Context) { d.loader.status.Other = old } })
	if _, err := d.try(bad); err == nil {
		t.Error("a damaged bundle was installed")
	}
	wantRefusal(t, "what the boot loader still has", d.Arm(t.Context(), old.Version), fota.StageBoot, "staged")
	d.loader.set(func() { d.loader.during = nil })

	d.mustInstall("1.1.0+sv2")
	other := fota.Other{Version: version(t, "1.2.0+sv2"), Mark: fota.Staged}
	d.loader.set(func() { d.loader.status.Other = other })
	wantRefusal(t, "what somebody else has staged", d.Arm(t.Context(), other.Version), fota.StageBoot, "staged")

	d.mustInstall("1.1.0+sv2")
	d.loader.set(func() { d.loader.status.Other = fota.Other{Version: version(t, "1.1.0+sv2"), Mark: fota.Failed} })
	wantRefusal(t, "a release that failed", d.Arm(t.Context(), version(t, "1.1.0+sv2")), fota.StageBoot, "staged")
}

// TestTheFallbackIsNotOverwritten: while new firmware is on trial, the other slot has
// what the device goes back to.
func TestTheFallbackIsNotOverwritten(t *testing.T) {
	d := newDevice(t)
	d.loader.set(func() { d.loader.status.Trial = true })
	var r *fota.Refusal
	if _, err := d.try(d.release("1.1.0+sv2")); err == nil || errors.As(err, &r) {
		t.Errorf("got %v, want an error that is not for good", err)
	}
	if _, slots, _ := d.loader.seen(); slots != nil {
		t.Error("a slot was written")
	}
}

func TestOneInstallAtATimeAndStatusMeanwhile(t *testing.T) {
	d := newDevice(t)
	began, finish := make(chan struct{}), make(chan struct{})
	d.loader.set(func() { d.loader.during = func(context.Context) { began <- struct{}{}; <-finish } })
	first := make(chan error)
	go func() {
		_, err := d.try(d.release("1.1.0+sv2"))
		first <- err
	}()
	<-began
	if _, err := d.try(d.release("1.2.0+sv2")); !errors.Is(err, ErrBusy) {
		t.Errorf("a second install: got %v, want ErrBusy", err)
	}
	for verb, err := range map[string]error{
		"arm": d.Arm(t.Context(), version(t, "1.1.0+sv2")), "bless": d.Bless(t.Context()), "cancel": d.Cancel(t.Context()),
	} {
		if !errors.Is(err, ErrBusy) {
			t.Errorf("%s: got %v, want ErrBusy", verb, err)
		}
	}
	st, err := d.Status(t.Context())
	if err != nil || st.Doing == nil || st.Doing.Verb != "install" || st.Staged != nil || st.Device.Running != version(t, "1.0.0+sv1") {
		t.Errorf("meanwhile the status is %+v, %v", st, err)
	}
	finish <- struct{}{}
	<-began
	finish <- struct{}{}
	if err := <-first; err != nil {
		t.Errorf("the first install: %v", err)
	}
	if st, err := d.Status(t.Context()); err != nil || st.Doing != nil {
		t.Errorf("afterwards the status is %+v, %v", st, err)
	}
}

// TestWhoGoesAwayEndsTheInstall cancels a client while the boot loader is at work, and
// needs nothing of it.
func TestWhoGoesAwayEndsTheInstall(t *testing.T) {
	for _, how := range []string{"read out", "as a file"} {
		t.Run(how, func(t *testing.T) {
			d := newDevice(t)
			ctx, cancel := context.WithCancel(t.Context())
			d.loader.set(func() { d.loader.during = func(ctx context.Context) { cancel(); <-ctx.Done() } })
			b := d.release("1.1.0+sv2")
			var err error
			if how == "read out" {
				_, err = d.Install(ctx, bytes.NewReader(b), int64(len(b)), nil)
			} else {
				f, errOpen := os.Open(d.file(b))
				if errOpen != nil {
					t.Fatal(errOpen)
				}
				defer f.Close()
				_, err = d.InstallFile(ctx, f, nil)
			}
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want context.Canceled", err)
			}
			d.start() // waits for the end of what is done
			d.wantNothing("a client that went away", "1.1.0+sv2")
		})
	}
}

// A failing reader has its own error.
type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

func TestErrorsOfTheClient(t *testing.T) {
	d := newDevice(t)
	lost := errors.New("the connection to the server was lost")
	if _, err := d.Install(t.Context(), failing{lost}, 4096, nil); !errors.Is(err, lost) {
		t.Errorf("a reader that fails: got %v, want its error", err)
	}
	if _, err := d.Install(t.Context(), failing{io.EOF}, 4096, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a reader that ends: got %v, want io.ErrUnexpectedEOF", err)
	}
	nowhere := Client{d.Path + "-not"}
	if _, err := nowhere.Status(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a socket: got %v, want os.ErrNotExist", err)
	}
	d.loader.set(func() { d.loader.err = errors.New("the medium is broken") })
	for verb, err := range map[string]error{"bless": d.Bless(t.Context()), "cancel": d.Cancel(t.Context())} {
		var r *fota.Refusal
		if err == nil || errors.As(err, &r) || !bytes.Contains([]byte(err.Error()), []byte("the medium is broken")) {
			t.Errorf("%s: got %v, want trouble with the medium", verb, err)
		}
	}
}

// TestItDoesNotEndWhileItInstalls waits for twice as long as it would be idle.
func TestItDoesNotEndWhileItInstalls(t *testing.T) {
	d := newDevice(t)
	d.idle = 200 * time.Millisecond
	d.loader.during = func(context.Context) {
		select {
		case err := <-d.ended:
			t.Errorf("it ended with %v", err)
		case <-time.After(2 * d.idle):
		}
	}
	d.start()
	d.mustInstall("1.1.0+sv2")
	if err := <-d.ended; err != nil {
		t.Errorf("it ended with %v, want nil", err)
	}
	d.stop = nil
}

// TestASilentPeerDoesNotHoldUpAnEnd stops a server that waits for a peer's reply.
func TestASilentPeerDoesNotHoldUpAnEnd(t *testing.T) {
	d := newDevice(t)
	c := d.dial()
	c.say([]byte(`{"verb":"install","size":4096}` + "\n"))
	if a := c.next(); a.Read == nil {
		t.Fatalf("got %+v, want to be asked", a)
	}
	start := time.Now()
	d.stopped()
	if took := time.Since(start); took > peerLimit {
		t.Errorf("it ended after %v", took)
	}
}
