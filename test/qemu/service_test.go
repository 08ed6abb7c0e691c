package main

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"birthmark/internal/lab"
	"birthmark/test/qemu/machine"
)

// TestInService: a device that is in service loses its agent, its servers and the room
// on its disk, one after the other, and comes back each time, as the same one.
func TestInService(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := powerOn(t, machine.Config{Files: w.birth("device-1")})
	d.ready()
	const spoke = "/d/device-1/tele/system"
	w.hears(spoke)
	before := d.identity()
	same := func(after string) {
		t.Helper()
		if got := d.identity(); got != before {
			t.Errorf("after %s: got %+v, want %+v", after, got, before)
		}
	}
	d.measure()
	d.lendsItsTPM(w)
	d.isConfined()

	// The boot was measured, and the agent can read how.
	if size := d.number("setpriv --reuid=birthmark --regid=birthmark --clear-groups cat /run/birthmark/binary_bios_measurements | wc -c"); size < 1000 {
		t.Errorf("the agent reads %g bytes of the log of the measured boot, want some thousand", size)
	}

	d.do("systemctl kill --signal=KILL birthmark-agent")
	w.forget()
	w.hears(spoke)
	same("kill -9")
	if n := d.number("systemctl show -P NRestarts birthmark-agent"); n != 1 {
		t.Errorf("systemd has started it again %g times, want once", n)
	}

	// The owner's servers go, and come back.
	dir := w.Dir()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w.up(dir)
	w.forget()
	w.hears(spoke)
	same("a restart of all servers")

	// A part hangs: the file of its metrics is a pipe that nobody reads.
	d.do("mkfifo /run/birthmark/m.prom.new && chown birthmark: /run/birthmark/m.prom.new && mkdir -p /run/systemd/system/birthmark-agent.service.d && " +
		"printf '[Service]\\nWatchdogSec=5\\nEnvironment=BIRTHMARK_METRICS__TEXTFILE=/run/birthmark/m.prom\\n' >/run/systemd/system/birthmark-agent.service.d/stuck.conf && " +
		"systemctl daemon-reload && systemctl restart birthmark-agent")
	stuck := d.within(4*time.Minute, `for i in $(seq 100); do
	[ "$(systemctl show -P NRestarts birthmark-agent)" = 0 ] || break
	sleep 2
done
systemctl show -P NRestarts birthmark-agent
journalctl -u birthmark-agent --no-pager | grep -e 'is stuck' -e 'Watchdog timeout' | head -n 3`)
	if strings.HasPrefix(stuck, "0") || !strings.Contains(stuck, "is stuck") || !strings.Contains(stuck, "Watchdog timeout") {
		t.Errorf("restarts, and what the journal says of a stuck part: %s", stuck)
	}
	d.do("rm /run/systemd/system/birthmark-agent.service.d/stuck.conf /run/birthmark/m.prom.new; systemctl daemon-reload; systemctl reset-failed birthmark-agent; systemctl restart birthmark-agent")
	w.forget()
	w.hears(spoke)
	same("a part that was stuck")

	// No room: nothing that is promised is lost, and nothing that is known.
	d.do("dd if=/dev/zero of=/var/full bs=64k 2>/dev/null || true; sync; systemctl restart birthmark-agent")
	d.do("systemctl is-active birthmark-agent")
	d.do("rm /var/full")
	w.forget()
	w.hears(spoke)
	same("a full disk")
	d.asksNothingForbidden()
}

// lendsItsTPM lets curl and mosquitto_pub of the device use a key that only its TPM can
// use, with the resource manager that docs/openssl.md tells of.
func (d device) lendsItsTPM(w *world) {
	d.Helper()
	password, err := w.NewPassword(lab.Owner, "device-2")
	if err != nil {
		d.Fatal(err)
	}
	inside := func(url string) string { return strings.Replace(url, "127.0.0.1", machine.Host, 1) }
	_, port, _ := strings.Cut(strings.TrimPrefix(w.BrokerURL(), "mqtts://"), ":")
	d.do(fmt.Sprintf(`set -e
mkdir /run/two && cd /run/two && echo %s >password
birthmark enroll --est-url %s --anchors /run/lab/owner-root.pem --username device-2 --password-file password --subject CN=device-2 --out keys
birthmark config openssl --key keys/key.pem >openssl.cnf
export OPENSSL_CONF=/run/two/openssl.cnf TPM2OPENSSL_TCTI=tabrmd
openssl req -new -key keys/key.pem -subj /CN=device-2 -outform DER | openssl base64 -out request
curl --cacert /run/lab/owner-root.pem --cert keys/cert.pem --key keys/key.pem -H 'Content-Type: application/pkcs10' --data-binary @request -sS --fail -o answer %s/.well-known/est/simplereenroll
mosquitto_pub -h %s -p %s -i device-2 --cafile /run/lab/owner-root.pem --cert keys/cert.pem --key keys/key.pem -q 1 -t birthmark/v1/d/device-2/tele/by-hand -m hello`,
		password, inside(w.OwnerURL()), inside(w.OwnerURL()), machine.Host, port))
	if m := w.hears("/d/device-2/tele/by-hand"); m.client != "device-2" || m.payload != "hello" {
		d.Errorf("the broker heard %q of %s", m.payload, m.client)
	}
}

// idle is how long a device is watched for what it writes while nothing happens.
const idle = 60 * time.Second

// measure tells what the agent costs a device in service, and holds what does not
// depend on how fast the machine is against docs/numbers.md.
func (d device) measure() {
	d.Helper()
	const show = "systemctl show -P %s birthmark-agent"
	start := d.number(fmt.Sprintf(show, "ExecMainStartTimestampMonotonic"))
	ready := d.number(fmt.Sprintf(show, "ActiveEnterTimestampMonotonic"))
	pid := d.do(fmt.Sprintf(show, "MainPID"))
	written := func() float64 { return d.number("awk '/^write_bytes/ { print $2 }' /proc/" + pid + "/io") }
	before := written()
	d.within(idle+patience, fmt.Sprintf("sleep %g", idle.Seconds()))
	perDay := (written() - before) / 1024 * 24 * float64(time.Hour/idle)
	rss := d.number("awk '/^VmRSS/ { print $2 }' /proc/"+pid+"/status") / 1024
	state := d.number("du -sk /var/lib/birthmark | cut -f 1") / 1024
	d.Logf("in the guest: %.2f s from start to READY (translated: %v), %.1f MiB resident, %.0f KiB written a day while idle, %.2f MiB of state",
		(ready-start)/1e6, !machine.Accelerated(), rss, perDay, state)
	const memoryLimit, writeLimit, stateLimit = 16, 64, 8 // agent-memory-idle, disk-written-idle, disk-state
	if rss > memoryLimit || perDay > writeLimit || state > stateLimit {
		d.Errorf("want %d MiB resident, %d KiB written and %d MiB of state at most", memoryLimit, writeLimit, stateLimit)
	}
	if s := (ready - start) / 1e6; machine.Accelerated() && s > 1 {
		d.Errorf("%.2f s from start to READY, want 1 at most", s) // start-to-ready
	}
}

// isConfined holds what the agent could write to, were it somebody else's: its state and
// what it says at run time. /proc and /sys are the kernel's business.
func (d device) isConfined() {
	d.Helper()
	got := d.do("nsenter --mount --target $(systemctl show -P MainPID birthmark-agent) -- " +
		"setpriv --reuid=birthmark --regid=birthmark --init-groups " +
		`find / -path /proc -prune -o -path /sys -prune -o \( -type d -o -type f \) -writable -print 2>/dev/null || true`)
	for path := range strings.Lines(got) {
		path = strings.TrimSpace(path)
		if path != "/var/lib/birthmark" && path != "/run/birthmark" &&
			!strings.HasPrefix(path, "/var/lib/birthmark/") && !strings.HasPrefix(path, "/run/birthmark/") {
			d.Errorf("the agent can write to %s", path)
		}
	}
	if !strings.Contains(got, "/var/lib/birthmark/state.json") {
		d.Errorf("the agent cannot write its state; it can write to:\n%s", got)
	}
}

// asksNothingForbidden holds that the agent has not made a system call since the start
// that its unit refuses. In the device under test such a call ends it.
func (d device) asksNothingForbidden() {
	d.Helper()
	if killed := d.do("journalctl -u birthmark-agent --no-pager | grep 'status=31/SYS' || true"); killed != "" {
		d.Errorf("the agent was ended for a system call:\n%s", killed)
	}
}

// number is a number that a script in the device prints.
func (d device) number(script string) float64 {
	d.Helper()
	text := d.do(script)
	n, err := strconv.ParseFloat(text, 64)
	if err != nil {
		d.Fatalf("%s: %v", script, err)
	}
	return n
}
