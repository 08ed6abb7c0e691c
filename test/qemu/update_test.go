package main

import (
	"encoding/json"
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
// the restart that runs, is found good and stays, with the same identity.
func TestUpdate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	next, err := build(t.Context(), t.TempDir(), "1.1.0+sv1")
	if err != nil {
		t.Fatal(err)
	}
	good, foreign := w.ship(next, img.Keys.DB), w.ship(next, img.Keys.Foreign)
	d := powerOn(t, machine.Config{Files: w.birth("device-1")})
	d.ready()
	w.hears("/d/device-1/tele/system")
	before := d.identity()

	d.fetch(foreign)
	if said := d.within(installPatience, "birthmark firmware install /var/cache/release.raucb 2>&1 && echo installed || true"); !strings.Contains(said, "boot: ") {
		t.Errorf("of a release that the firmware would not start it says:\n%s", said)
	}
	d.fetch(good)
	d.within(installPatience, "birthmark firmware install /var/cache/release.raucb")
	if u := d.update(); u.Phase != "armed" || u.Version != "1.1.0+sv1" {
		t.Errorf("installed, and the update is %+v", u)
	}
	d.restart()
	if got := d.do(". /usr/lib/os-release && echo $IMAGE_VERSION"); got != "1.1.0+sv1" {
		t.Fatalf("after the restart %s runs, want 1.1.0+sv1", got)
	}
	d.within(bootPatience, `until birthmark firmware status --json | grep -q '"phase": "settled"'; do sleep 1; done`)
	if u := d.update(); u.Outcome != "installed" {
		t.Errorf("after the trial the update is %+v", u)
	}
	if files := d.do("ls /efi/EFI/Linux"); !strings.Contains(files, "birthmark_1.1.0+sv1+3.efi") {
		t.Errorf("the new release was not blessed; there are:\n%s", files)
	}
	if after := d.identity(); after != before {
		t.Errorf("after the update: got %+v, want %+v", after, before)
	}
}

// ship has a release signed by the maker, with `rauc bundle`; what starts it is signed
// with a key for Secure Boot.
func (w *world) ship(next *image.Image, key image.Key) string {
	w.Helper()
	by, err := sign.Lab(w.Dir())
	if err != nil {
		w.Fatal(err)
	}
	v, err := fota.ParseVersion(next.Version)
	if err != nil {
		w.Fatal(err)
	}
	uki, err := next.UKI(w.Context(), next.Verity)
	if err == nil {
		uki, err = image.Sign(uki, key)
	}
	dir := w.TempDir()
	starts, out := filepath.Join(dir, "release.efi"), filepath.Join(dir, "release.raucb")
	if err == nil {
		err = os.WriteFile(starts, uki, 0o644)
	}
	if err != nil {
		w.Fatal(err)
	}
	release := sign.Release{Compatible: "birthmark", Version: v, Compression: sign.Gzip, Time: time.Now(),
		Images: []sign.Image{{Slot: fota.RootSlot, Path: next.Root}, {Slot: fota.UKISlot, Path: starts}}}
	if _, err := sign.Firmware(w.Context(), release, by, out, func(string) {}); err != nil {
		w.Fatal(err)
	}
	return out
}

// fetch brings a bundle into the device, to where its agent may read it.
func (d device) fetch(bundle string) {
	d.Helper()
	s := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(bundle))))
	defer s.Close()
	url := strings.Replace(s.URL, "127.0.0.1", machine.Host, 1) + "/" + filepath.Base(bundle)
	d.within(installPatience, "mkdir -p /var/cache && curl -sS --fail -o /var/cache/release.raucb "+url+" && chmod 644 /var/cache/release.raucb")
}

// An update is what a device says of one.
type update struct{ Phase, Version, Outcome string }

func (d device) update() update {
	d.Helper()
	var status struct{ Update update }
	text := d.do("birthmark firmware status --json")
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		d.Fatalf("birthmark firmware status --json: %v: %s", err, text)
	}
	return status.Update
}
