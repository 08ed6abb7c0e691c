package main

import (
	"encoding/json"
	"testing"

	"birthmark/test/qemu/machine"
)

// TestFirstBoot: a device out of the factory makes its keys in its TPM, is certified
// and speaks; after a restart it is the same one.
func TestFirstBoot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := powerOn(t, machine.Config{Files: w.birth("device-1")})
	d.ready()

	said := w.hears("/d/device-1/tele/system")
	if said.client != "device-1" {
		t.Errorf("device-1 is known to the broker as %s", said.client)
	}
	before := d.identity()
	d.asksNothingForbidden()
	// DHCP's client has a port for the answers; nobody else waits for anybody.
	if open := d.do("ss -Hlntu | grep -v ':68 ' || true"); open != "" {
		t.Errorf("the device listens on the network:\n%s", open)
	}

	d.restart()
	w.forget()
	w.hears("/d/device-1/tele/system")
	if after := d.identity(); after != before {
		t.Errorf("after a restart: got %+v, want %+v", after, before)
	}
}

// An identity is what a device says that it is: its name, the serial numbers of both
// certificates, and its TPM's endorsement key.
type identity struct{ device, idevid, ldevid, ek string }

func (d device) identity() identity {
	d.Helper()
	var status struct {
		ID             string
		Root           struct{ EK string }
		IDevID, LDevID struct{ Serial string }
	}
	text := d.do("birthmark status --json")
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		d.Fatalf("birthmark status --json: %v: %s", err, text)
	}
	id := identity{status.ID, status.IDevID.Serial, status.LDevID.Serial, status.Root.EK}
	if id.idevid == "" || id.ldevid == "" || id.ek == "" {
		d.Fatalf("the device has no whole identity: %s", text)
	}
	return id
}
