package tpm_test

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"testing"

	"birthmark/internal/swtpm"
	"birthmark/pkg/rot"
	"birthmark/pkg/rot/rottest"
	"birthmark/pkg/rot/tpm"
)

// Limits of docs/numbers.md. A command takes a discrete TPM up to a second, so
// their number is what a device's start and its handshakes cost.
const (
	bootLimit      = 12
	handshakeLimit = 1
	enrolmentLimit = 15
)

// A born device has what it saves: its root's identity and a key.
type born struct {
	identity []byte // JSON
	key      rot.Blob
}

func bear(tb testing.TB, s *swtpm.TPM) born {
	tb.Helper()
	r := open(tb, tpm.Config{Address: s.Address()})
	k := create(tb, r, rot.P256)
	identity, err := json.Marshal(r.Identity())
	if err != nil {
		tb.Fatal(err)
	}
	if err := r.Close(); err != nil {
		tb.Fatal(err)
	}
	return born{identity, k.Blob()}
}

// boot opens the TPM that a device remembers.
func (b born) boot(tb testing.TB, s *swtpm.TPM) *tpm.Root {
	tb.Helper()
	var known rot.Identity
	if err := json.Unmarshal(b.identity, &known); err != nil {
		tb.Fatal(err)
	}
	return open(tb, tpm.Config{Address: s.Address(), Known: known})
}

// signFirst loads the saved key and signs with it.
func (b born) signFirst(tb testing.TB, r *tpm.Root) {
	tb.Helper()
	k, err := r.Open(tb.Context(), b.key)
	if err != nil {
		tb.Fatal(err)
	}
	if err := rottest.Verify(k, "message", crypto.SHA256); err != nil {
		tb.Error(err)
	}
}

// handshake returns how many commands one TLS handshake takes.
func handshake(tb testing.TB, r *tpm.Root, k rot.Key, version uint16) uint64 {
	tb.Helper()
	shake, err := rottest.Handshake(k, version)
	if err != nil {
		tb.Fatal(err)
	}
	before := r.Stats().Commands
	if err := shake(); err != nil {
		tb.Errorf("%s: %v", tls.VersionName(version), err)
	}
	return r.Stats().Commands - before
}

// enrol does what a device does to get its certificate: the IDevID authenticates
// to the authority, a new key signs the request and is attested, and the first
// handshake with it shows that it works. It returns how many commands that takes.
func enrol(tb testing.TB, r *tpm.Root) uint64 {
	tb.Helper()
	before := r.Stats().Commands
	birth := idevid(tb, r)
	handshake(tb, r, birth, tls.VersionTLS13)
	k := create(tb, r, rot.P256)
	if _, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k); err != nil {
		tb.Fatal(err)
	}
	if _, err := r.Certify(tb.Context(), k, nil); err != nil {
		tb.Fatal(err)
	}
	handshake(tb, r, k, tls.VersionTLS13)
	n := r.Stats().Commands - before
	for _, k := range []rot.Key{birth, k} {
		if err := k.Close(); err != nil {
			tb.Error(err)
		}
	}
	return n
}

func TestNumberOfCommands(t *testing.T) {
	s := tpm.Start(t)
	device := bear(t, s)
	r := device.boot(t, s)
	if id := r.Identity(); len(id.EKCertificate) == 0 {
		t.Error("the EK certificate was not read again: it does not count")
	}
	device.signFirst(t, r)
	boot := r.Stats().Commands
	if boot > bootLimit {
		t.Errorf("boot: got %d commands from open to the first signature, want at most %d", boot, bootLimit)
	}
	if r.Stats().Last <= 0 {
		t.Error("the last command took no time")
	}
	for _, a := range rottest.Algorithms {
		k := create(t, r, a)
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			if n := handshake(t, r, k, version); n != handshakeLimit {
				t.Errorf("%s, %s: got %d commands, want %d", a, tls.VersionName(version), n, handshakeLimit)
			}
		}
		k.Close()
	}
	enrolment := enrol(t, r)
	if enrolment > enrolmentLimit {
		t.Errorf("enrolment: got %d commands, want at most %d", enrolment, enrolmentLimit)
	}
	t.Logf("TPM commands: boot %d, enrolment %d", boot, enrolment)
}

func BenchmarkBoot(b *testing.B) {
	s := tpm.Start(b)
	device := bear(b, s)
	var commands uint64
	for b.Loop() {
		r := device.boot(b, s)
		device.signFirst(b, r)
		commands += r.Stats().Commands
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(commands)/float64(b.N), "tpm-commands-boot")
}

func BenchmarkHandshake(b *testing.B) {
	r := open(b, tpm.Config{Address: tpm.Start(b).Address()})
	k := create(b, r, rot.P256)
	var commands uint64
	for b.Loop() {
		commands += handshake(b, r, k, tls.VersionTLS13)
	}
	b.ReportMetric(float64(commands)/float64(b.N), "tpm-commands-handshake")
}

func BenchmarkEnrolment(b *testing.B) {
	r := open(b, tpm.Config{Address: tpm.Start(b).Address()})
	var commands uint64
	for b.Loop() {
		commands += enrol(b, r)
	}
	b.ReportMetric(float64(commands)/float64(b.N), "tpm-commands-enrolment")
}
