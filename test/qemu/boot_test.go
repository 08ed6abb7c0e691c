package main

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"birthmark/test/qemu/image"
	"birthmark/test/qemu/machine"
)

// TestSecureBoot: firmware starts no release that the maker's key did not sign.
func TestSecureBoot(t *testing.T) {
	t.Parallel()
	unsigned, err := img.UKI(t.Context(), img.Verity)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := image.Sign(unsigned, img.Keys.Foreign)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		release []byte
	}{{"unsigned", unsigned}, {"signed by a stranger", foreign}} {
		t.Run(c.name, func(t *testing.T) {
			disk := copyDisk(t)
			if err := image.Put(t.Context(), disk, image.ReleaseName("1.0.0+sv1", image.Tries), c.release); err != nil {
				t.Fatal(err)
			}
			d := powerOn(t, machine.Config{Disk: disk})
			console := d.says("Access Denied", "Security Violation", "initrd: ")
			if strings.Contains(console, "initrd: ") {
				t.Error("it was started")
			}
		})
	}
}

// TestDamageFallsBack: a release whose root file system is not what was signed is not
// run, wherever the damage is; the device comes up in the other slot, by itself. What
// runs can be told by the TPM: the same release measures the same, another one does not,
// and the keys of Secure Boot do in both, so that what is sealed to them outlives updates.
func TestDamageFallsBack(t *testing.T) {
	t.Parallel()
	next := further(t, "2.0.0+sv1", nil)
	read, err := next.Offset(t.Context(), "/usr/lib/systemd/systemd")
	if err != nil {
		t.Fatal(err)
	}
	wrong := next.Verity
	wrong.Root[0] ^= 1
	measured := map[string]registers{} // by the release that ran
	for _, c := range []struct {
		name string
		root image.Verity // that the release says
		at   int64        // in slot B; 0 for none
		want string       // the release that runs
	}{
		{"nothing", next.Verity, 0, "2.0.0+sv1"},
		{"a byte of a file", next.Verity, read + 77, "1.0.0+sv1"},
		{"the top of the tree", next.Verity, next.Verity.TreeTop() + 5, "1.0.0+sv1"},
		{"a leaf of the tree", next.Verity, next.Verity.TreeLeaf(read) + 3, "1.0.0+sv1"},
		{"the root hash", wrong, 0, "1.0.0+sv1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := copyDisk(t)
			release, err := next.UKI(t.Context(), c.root)
			if err == nil {
				release, err = image.Sign(release, img.Keys.DB) // the device knows no other key
			}
			if err == nil {
				// One try: each one more costs a whole start.
				err = image.InstallB(t.Context(), disk, next.Root, image.ReleaseName(next.Version, 1), release)
			}
			if err == nil && c.at > 0 {
				err = image.Flip(disk, image.SlotB+c.at)
			}
			if err != nil {
				t.Fatal(err)
			}
			d := powerOn(t, machine.Config{Disk: disk})
			d.ready()
			if got := d.do(". /usr/lib/os-release && echo $IMAGE_VERSION"); got != c.want {
				t.Errorf("with %s damaged: %s is running, want %s", c.name, got, c.want)
			}
			now := d.registers()
			if before, ok := measured[c.want]; ok && now != before {
				t.Errorf("with %s damaged: %s measures %+v, and measured %+v before", c.name, c.want, now, before)
			}
			measured[c.want] = now
		})
	}
	if one, two := measured["1.0.0+sv1"], measured["2.0.0+sv1"]; len(measured) == 2 &&
		(one.keys != two.keys || one.programs == two.programs || one.release == two.release) {
		t.Errorf("1.0.0 measures %+v, 2.0.0 %+v; want the same keys, other programs and another release", one, two)
	}
}

// Registers are those of the TPM (PCRs) that tell what was started: 7 by which keys, 4
// which programs of the firmware's, 11 which parts of a release (UAPI group, "Linux TPM
// PCR Registry").
type registers struct{ keys, programs, release string }

func (d device) registers() registers {
	d.Helper()
	// systemd-pcrphase extends 11 at the start and again when the system is up, be it
	// with or without a unit that failed.
	d.within(bootPatience, "systemctl is-system-running --wait || true")
	read := strings.Fields(d.do("cd /sys/class/tpm/tpm0/pcr-sha256 && cat 7 4 11"))
	if len(read) != 3 {
		d.Fatalf("the TPM has the registers %q, want 3", read)
	}
	for _, register := range read {
		if strings.Trim(register, "0") == "" {
			d.Fatalf("nothing was measured into one of %q", read)
		}
	}
	return registers{read[0], read[1], read[2]}
}

// TestDamageAlone: where there is no other slot, a damaged release does not come up at
// all.
func TestDamageAlone(t *testing.T) {
	t.Parallel()
	disk := copyDisk(t)
	at, err := img.Offset(t.Context(), "/usr/lib/systemd/systemd")
	if err != nil {
		t.Fatal(err)
	}
	if err := image.Flip(disk, image.SlotA+at+77); err != nil {
		t.Fatal(err)
	}
	d := powerOn(t, machine.Config{Disk: disk})
	ctx, cancel := context.WithTimeout(t.Context(), 2*bootPatience)
	defer cancel()
	go func() {
		defer cancel()
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for strings.Count(d.Console(), "initrd: the root file system is") < 2 && ctx.Err() == nil {
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}()
	if err := d.Ready(ctx); err == nil {
		t.Error("it came up")
	}
	if console := d.Console(); !strings.Contains(console, "is corrupted") || strings.Count(console, "initrd: the root file system is") < 2 {
		t.Errorf("it did not find the damage and start anew; its console:\n%s", console)
	}
}

func copyDisk(t *testing.T) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk.raw")
	if err := image.Copy(t.Context(), img.Disk, disk); err != nil {
		t.Fatal(err)
	}
	return disk
}
