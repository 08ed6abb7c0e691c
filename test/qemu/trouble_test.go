package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"birthmark/internal/swtpm"
	"birthmark/test/qemu/machine"
)

// TestNoNetwork: without a network, and with a clock that says 1970, the agent is up
// all the same, with keys; when the cable is plugged in while no server is there, it goes
// on trying; when the servers are up, the device enrols and speaks.
func TestNoNetwork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := powerOn(t, machine.Config{
		Files: w.birth("device-1"), Unplug: true, Clock: time.Date(1970, 1, 1, 0, 0, 10, 0, time.UTC),
	})
	d.ready()
	d.do("timeout 60 sh -c 'until systemctl is-active --quiet birthmark-agent; do sleep 0.2; done'")
	if state := d.do("birthmark status --json | grep -m 1 -o '\"state\": \"[a-z]*\"'"); state != `"state": "blank"` {
		t.Errorf("without a network: got %s, want the state blank", state)
	}
	if failed := d.do("systemctl --failed --no-legend --plain"); failed != "" {
		t.Errorf("units failed without a network: %s", failed)
	}
	// systemd does not believe 1970 and takes the time of its own build.
	d.do("systemctl stop birthmark-agent && date -u -s 1970-01-02 && systemctl start birthmark-agent")
	lab := w.Dir()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Plug(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.do("timeout 50 sh -c 'until birthmark status --json | grep \"connection refused\"; do sleep 0.5; done'")
	w.up(lab)
	w.hears("/d/device-1/tele/system")
	if year := d.do("date -u +%Y"); year != "1970" {
		t.Errorf("the clock moved: it is %s", year)
	}
	d.identity()
	d.asksNothingForbidden()
}

// TestAnotherTPM: a disk that was put into another device is of no use there.
func TestAnotherTPM(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	files := w.birth("device-1")
	first := powerOn(t, machine.Config{Files: files})
	first.ready()
	w.hears("/d/device-1/tele/system")
	first.shutDown()

	w.forget()
	other := t.TempDir()
	if err := swtpm.Manufacture(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	second := powerOn(t, machine.Config{Disk: first.Disk(), TPM: other, Files: files})
	second.ready()
	// Exit code 1 is not worth another start, see the unit.
	out := second.do("timeout 60 sh -c 'until systemctl is-failed --quiet birthmark-agent; do sleep 0.2; done'; " +
		"systemctl show -P ExecMainStatus birthmark-agent; birthmark doctor || true")
	if !strings.HasPrefix(out, "1\n") || !strings.Contains(out, "TPM") {
		t.Errorf("in another device the agent does not end with 1, and the doctor does not speak of the TPM:\n%s", out)
	}
	if n := w.count(); n != 0 {
		t.Errorf("the disk in another device was heard %d times", n)
	}
}

// shutDown switches the device off in the orderly way.
func (d device) shutDown() {
	d.Helper()
	d.do("systemctl poweroff")
	ctx, cancel := context.WithTimeout(d.Context(), patience)
	defer cancel()
	if err := d.Off(ctx); err != nil {
		d.Fatal(err)
	}
}

// count is how many messages were heard.
func (w *world) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.heard)
}
