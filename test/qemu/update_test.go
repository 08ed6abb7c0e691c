package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"birthmark/internal/lab/sign"
	"birthmark/pkg/fota"
	"birthmark/test/qemu/image"
	"birthmark/test/qemu/machine"
)

// installPatience is for the verification and the writing of a slot, without KVM.
const installPatience = 8 * time.Minute

// TestUpdate: a device that speaks installs the next release, signed by its maker; after
// the restart that runs. That the broker is away then is no reason to leave it: it stays
// on trial, and when the broker is back it is found good and stays, with the same
// identity. What the firmware would not start is refused before anything is written.
//
// All that is written to the disk meanwhile is logged, and the power cut behind each write.
func TestUpdate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	next := further(t, "1.1.0+sv2", nil)
	good, foreign := signed(t, next, img.Keys.DB), signed(t, next, img.Keys.Foreign)
	foreign.root = filepath.Join(t.TempDir(), "root.img")
	if err := os.WriteFile(foreign.root, bytes.Repeat([]byte{0xff}, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRecording(t, theFirst(t), good)
	d := powerOn(t, machine.Config{Files: w.birth("device-1"), Log: r.log})
	d.ready()
	w.hears("/d/device-1/tele/system")
	before := d.identity()

	d.fetch(w.ship(foreign), volatile)
	if said := d.within(installPatience, "birthmark firmware install "+volatile+" 2>&1 && echo installed || true"); !strings.Contains(said, "boot: ") {
		t.Errorf("of a release that the firmware would not start it says:\n%s", said)
	}
	d.do("cmp -n 1048576 /dev/zero /dev/disk/by-partlabel/root-b")

	d.fetch(w.ship(good), volatile)
	r.ordered = r.now()
	d.install(volatile)
	if f := d.firmware(); f.Update.Phase != "armed" || f.Update.Version != good.version || f.Device.Floor != 1 {
		t.Errorf("installed, and the firmware is %+v", f)
	}
	r.armed = r.now()
	lab := w.Dir()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	d.restart()
	d.runs(next.Version)
	d.awaits("the verdict of birthmark-health", "systemctl is-active --quiet birthmark-health")
	d.awaits("a word of the broker", `birthmark status --json | grep --quiet "connection refused"`)
	if f := d.firmware(); f.Update.Phase != "trial" || !f.Device.Trial || f.Device.Floor != 1 {
		t.Errorf("while the broker is away the firmware is %+v", f)
	}
	w.up(lab)
	d.settles()
	if f := d.firmware(); f.Update.Outcome != "installed" || f.Device.Trial || f.Device.Floor != 2 {
		t.Errorf("after the trial the firmware is %+v", f)
	}
	d.awaits("a higher floor", `journalctl -u birthmark-installer | grep --quiet "the floor was raised floor=2"`)
	r.settled = r.now()
	if files := d.do("ls /efi/EFI/Linux"); !strings.Contains(files, image.ReleaseName(next.Version, image.Tries)) {
		t.Errorf("the new release was not blessed; there are:\n%s", files)
	}
	if after := d.identity(); after != before {
		t.Errorf("after the update: got %+v, want %+v", after, before)
	}
	if err := d.Cut(); err != nil {
		t.Fatal(err)
	}
	r.cutEverywhere(t)
}

// TestBadReleases: a device leaves by itself a release that is not healthy, and one whose
// kernel panics. The one before is back, says so and why, and the floor is as it was.
func TestBadReleases(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sick := further(t, "1.1.0+sv2", map[string]string{"/etc/birthmark/health.d/50-pulse": "#!/bin/sh\necho no pulse\nexit 1\n"})
	panics := *sick // its root file system is not reached
	panics.Version = "1.2.0+sv2"
	d := powerOn(t, machine.Config{Files: w.birth("device-1")})
	d.ready()
	w.hears("/d/device-1/tele/system")
	before := d.identity()
	leaves := func(bad release, starts int, why string) {
		t.Helper()
		d.fetch(w.ship(bad), durable)
		d.install(durable)
		// One try: each one more costs a whole start.
		name := func(tries int) string { return "/efi/EFI/Linux/" + image.ReleaseName(bad.version.String(), tries) }
		d.do("mv " + name(image.Tries) + " " + name(1))
		w.forget()
		d.do("systemctl reboot")
		for range starts {
			d.ready()
		}
		d.runs(img.Version)
		d.settles()
		f := d.firmware()
		if u := f.Update; u.Outcome != "rolled-back" || u.Version != bad.version || u.Why == nil || !strings.Contains(u.Why.Reason, why) {
			t.Errorf("back from %v the update is %+v (%+v), want the reason %q", bad.version, u, u.Why, why)
		}
		if f.Device.Floor != 1 || f.Device.Other.Mark != "" {
			t.Errorf("back from %v there is %+v, want the floor 1 and nothing else to start", bad.version, f.Device)
		}
		if said := w.hearsOf("/d/device-1/evt/firmware", `"outcome":"rolled-back"`); !strings.Contains(said.payload, why) {
			t.Errorf("back from %v it says %s, want the reason %q", bad.version, said.payload, why)
		}
		if after := d.identity(); after != before {
			t.Errorf("back from %v: got %+v, want %+v", bad.version, after, before)
		}
	}
	leaves(signed(t, sick, img.Keys.DB), 2, "check 50-pulse: exit status 1: no pulse")
	// Without an init in the initrd the kernel looks for a root file system of its own.
	leaves(signed(t, &panics, img.Keys.DB, "rdinit=/gone"), 1, "it did not come up")
	if !strings.Contains(d.Console(), "Kernel panic - not syncing") {
		t.Error("no kernel has panicked")
	}
}

// further makes the next release of the one that devices leave the factory with.
func further(t *testing.T, version string, programs map[string]string) *image.Image {
	t.Helper()
	next, err := img.Next(t.Context(), t.TempDir(), version, programs)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// A release is a root file system and what starts it, signed for Secure Boot.
type release struct {
	version fota.Version
	root    string // file
	verity  image.Verity
	program []byte
}

// theFirst is the one that a device leaves the factory with.
func theFirst(t *testing.T) release {
	t.Helper()
	program, err := os.ReadFile(img.Release)
	if err != nil {
		t.Fatal(err)
	}
	return release{parseVersion(t, img.Version), img.Root, img.Verity, program}
}

// signed signs a release. What is in more is for its kernel.
func signed(t *testing.T, r *image.Image, key image.Key, more ...string) release {
	t.Helper()
	uki, err := r.UKI(t.Context(), r.Verity, more...)
	if err == nil {
		uki, err = image.Sign(uki, key)
	}
	if err != nil {
		t.Fatal(err)
	}
	return release{parseVersion(t, r.Version), r.Root, r.Verity, uki}
}

func parseVersion(t *testing.T, s string) fota.Version {
	t.Helper()
	v, err := fota.ParseVersion(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// ship has a release signed by its maker, with `rauc bundle`.
func (w *world) ship(r release) string {
	w.Helper()
	by, err := sign.Lab(w.Dir())
	if err != nil {
		w.Fatal(err)
	}
	dir := w.TempDir()
	uki, out := filepath.Join(dir, "release.efi"), filepath.Join(dir, "release.raucb")
	if err := os.WriteFile(uki, r.program, 0o644); err != nil {
		w.Fatal(err)
	}
	release := sign.Release{Compatible: "birthmark", Version: r.version, Compression: sign.Fast, Time: time.Now(),
		Images: []sign.Image{{Slot: fota.RootSlot, Path: r.root}, {Slot: fota.UKISlot, Path: uki}}}
	if _, err := sign.Firmware(w.Context(), release, by, out, func(string) {}); err != nil {
		w.Fatal(err)
	}
	return out
}

// Where bundles lie in a device: what is on the disk outlives the power.
const (
	volatile = "/run/release.raucb"
	durable  = "/var/cache/release.raucb"
)

// fetch brings a bundle into the device, to where its agent may read it.
func (d device) fetch(bundle, to string) {
	d.Helper()
	s := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(bundle))))
	defer s.Close()
	url := strings.Replace(s.URL, "127.0.0.1", machine.Host, 1) + "/" + filepath.Base(bundle)
	d.within(installPatience, "mkdir -p /var/cache && curl -sS --fail -o "+to+" "+url+" && chmod 644 "+to+" && sync "+to)
}

// install has a bundle installed, up to where the next start tries it.
func (d device) install(bundle string) {
	d.Helper()
	start := time.Now()
	d.within(installPatience, "birthmark firmware install "+bundle)
	d.awaits("a release that is armed", `birthmark firmware status --json | grep --quiet '"mark": "armed"'`)
	d.Logf("installed after %.1f s", time.Since(start).Seconds())
}

// settles waits until the update is over, one way or the other.
func (d device) settles() {
	d.Helper()
	d.awaits("the end of the update", `birthmark firmware status --json | grep --quiet '"phase": "settled"'`)
}

// awaits waits until a script succeeds.
func (d device) awaits(what, script string) {
	d.Helper()
	const seconds = int(bootPatience / time.Second)
	d.within(bootPatience+patience, fmt.Sprintf("timeout %d sh -c %s || { echo waited in vain for %s; exit 1; }",
		seconds, quoted("until "+script+"; do sleep 0.5; done"), quoted(what)))
}

// quoted is one word for a shell.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// runs holds the version that runs against the one that should.
func (d device) runs(version string) {
	d.Helper()
	if got := d.do(". /usr/lib/os-release && echo $IMAGE_VERSION"); got != version {
		d.Fatalf("%s runs, want %s", got, version)
	}
}

// A firmware is what a device says of its own: what runs, how its last update is going,
// and what the installer finds.
type firmware struct {
	Running fota.Version
	Update  struct {
		Phase, Outcome string
		Version        fota.Version
		Why            *struct{ Stage, Code, Reason string }
	}
	Device struct {
		Floor uint32
		Trial bool
		Other struct {
			Version fota.Version
			Mark    fota.Mark
		}
		Notes []string
	}
}

// firmware asks for it. Whenever that is, the floor is not above what runs.
func (d device) firmware() (f firmware) {
	d.Helper()
	text := d.do("birthmark firmware status --json")
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		d.Fatalf("birthmark firmware status --json: %v: %s", err, text)
	}
	if f.Device.Floor > f.Running.Security {
		d.Errorf("%v runs, and the floor is %d: %s", f.Running, f.Device.Floor, text)
	}
	return f
}
