package tpm_test

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"birthmark/pkg/rot"
	"birthmark/pkg/rot/rottest"
	"birthmark/pkg/rot/tpm"
)

const (
	operations      = 10_000
	looks           = 10                     // at the TPM and the memory, evenly spread
	endureSeed      = 20261125               // of what is done, and of what goes wrong
	endureDeadline  = 100 * time.Millisecond // of a command: some are not answered
	failuresPerMill = 40                     // of all commands
	heldLimit       = 6                      // keys in use; the TPM has room for three
	blobLimit       = 32                     // keys that are opened again

	heapGrowth      = 2 << 20 // bytes in use at the end, more than after a tenth
	goroutineGrowth = 2       // likewise: one may be about to end
)

// TestTenThousandOperations makes, opens, uses and closes keys while answers are
// refused, cut short, changed, replayed and kept back. Whatever succeeds is true,
// whatever fails says how; at the end nothing is loaded in the TPM, and the agent
// has not grown.
func TestTenThousandOperations(t *testing.T) {
	n := operations
	if raceDetector {
		n /= raceShare
	}
	t.Logf("%d operations, seed %d", n, endureSeed)
	d := newTrial(t)
	begin := time.Now()
	var heap, goroutines int // after the first look
	for look := range looks {
		stop := d.makeTrouble()
		for range n / looks {
			d.step()
		}
		stop()
		d.wantInOrder()
		h, g := inUse()
		if look == 0 {
			heap, goroutines = h, g
		}
		if h > heap+heapGrowth || g > goroutines+goroutineGrowth {
			t.Errorf("look %d: %d KiB and %d goroutines in use, at the first look %d KiB and %d", look, h>>10, g, heap>>10, goroutines)
		}
		t.Logf("after %d operations: %d KiB, %d goroutines", (look+1)*n/looks, h>>10, g)
	}
	d.closeKeys()
	if err := d.root.Close(); err != nil {
		t.Error(err)
	}
	for what, first := range map[string]uint32{"transient objects": firstObject, "loaded sessions": firstSession, "saved sessions": firstSaved} {
		if left := handlesOf(t, d.p, first); len(left) > 0 {
			t.Errorf("left %s: %#x", what, left)
		}
	}
	t.Logf("took %v; done %v, of which failed %v", time.Since(begin).Round(time.Millisecond), d.done, d.failed)
	t.Logf("what went wrong: %v", d.trouble)
	for _, f := range failures {
		if d.trouble[f.name] == 0 {
			t.Errorf("nothing was %s", f.name)
		}
	}
}

// inUse is the heap, in bytes, and the number of goroutines in use.
func inUse() (heap, goroutines int) {
	runtime.GC()
	runtime.GC() // what the first one only found to be unused
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc), runtime.NumGoroutine()
}

// A trial is a device that works its TPM hard, on a bus where things go wrong.
type trial struct {
	t        *testing.T
	random   *rand.Rand
	p        *interposer
	config   tpm.Config
	truth    believed
	stranger rot.Blob // of another TPM

	root  *tpm.Root // nil when it could not be opened
	held  []rot.Key
	known []saved

	done, failed, trouble map[string]int // by name
}

// saved is what a device remembers of a key.
type saved struct {
	blob   rot.Blob
	public crypto.PublicKey
}

func newTrial(t *testing.T) *trial {
	t.Helper()
	other := open(t, tpm.Config{Address: tpm.StartOther(t).Address()})
	stranger := create(t, other, rot.P256).Blob()
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	p := interpose(t, tpm.Start(t))
	truth, _ := record(t, p, tpm.Config{Address: p.address})
	known := truth.identity
	known.EKCertificate = nil // as it is saved
	return &trial{
		t: t, random: rand.New(rand.NewPCG(endureSeed, 0)), p: p, truth: truth, stranger: stranger,
		config: tpm.Config{Address: p.address, Known: known, Deadline: endureDeadline},
		done:   map[string]int{}, failed: map[string]int{}, trouble: map[string]int{},
	}
}

// step does one thing that a device does.
func (d *trial) step() {
	steps := []struct {
		weight int
		name   string
		do     func() error
	}{
		{40, "sign", d.sign}, {12, "create", d.create}, {12, "open", d.open}, {10, "close", d.close}, {8, "certify", d.certify},
		{8, "IDevID", d.idevid}, {5, "open a stranger's", d.openStranger}, {3, "give up", d.giveUp}, {2, "restart", d.restart},
	}
	at, n := 0, d.random.IntN(100)
	for ; n >= steps[at].weight; at++ {
		n -= steps[at].weight
	}
	s := steps[at]
	if d.root == nil {
		s = steps[len(steps)-1]
	}
	d.done[s.name]++
	if err := s.do(); err != nil {
		d.failed[s.name]++
		if !hasType(err) && !errors.Is(err, context.DeadlineExceeded) {
			d.t.Errorf("%s: nobody can decide by %v", s.name, err)
		}
	}
}

func (d *trial) restart() (err error) {
	if d.root != nil {
		if d.random.IntN(2) == 0 {
			d.closeKeys()
		}
		err = d.root.Close()
		d.root = nil
		d.closeKeys()
	}
	root, openErr := tpm.Open(d.t.Context(), d.config)
	if openErr == nil {
		d.root = root
	}
	return errors.Join(err, openErr)
}

func (d *trial) closeKeys() {
	for len(d.held) > 0 {
		d.close()
	}
}

// close closes a key; those of a root that is closed are, already.
func (d *trial) close() error {
	if len(d.held) == 0 {
		return nil
	}
	at := d.random.IntN(len(d.held))
	k := d.held[at]
	d.held = slices.Delete(d.held, at, at+1)
	return k.Close()
}

func (d *trial) hold(k rot.Key) (err error) {
	if len(d.held) == heldLimit {
		err = d.close()
	}
	d.held = append(d.held, k)
	return err
}

func (d *trial) create() error {
	kind := rot.P256
	if d.random.IntN(8) == 0 {
		kind = rot.P384
	}
	k, err := d.root.Create(d.t.Context(), kind)
	if err != nil {
		return err
	}
	if len(d.known) == blobLimit {
		at := d.random.IntN(blobLimit)
		d.known = slices.Delete(d.known, at, at+1)
	}
	d.known = append(d.known, saved{k.Blob(), k.Public()})
	return d.hold(k)
}

func (d *trial) open() error {
	if len(d.known) == 0 {
		return d.create()
	}
	s := d.known[d.random.IntN(len(d.known))]
	k, err := d.root.Open(d.t.Context(), s.blob)
	if err != nil {
		return err
	}
	if !same(k.Public(), s.public) {
		d.t.Error("another key came back from a blob")
	}
	return d.hold(k)
}

func (d *trial) sign() error {
	if len(d.held) == 0 {
		return d.create()
	}
	return rottest.Verify(d.held[d.random.IntN(len(d.held))], "message", crypto.SHA256)
}

func (d *trial) certify() error {
	if len(d.held) == 0 {
		return d.create()
	}
	k := d.held[d.random.IntN(len(d.held))]
	evidence, err := d.root.Certify(d.t.Context(), k, []byte("nonce"))
	if err != nil {
		return err
	}
	if !bytes.Equal(evidence.AK, d.truth.evidence.AK) {
		d.t.Error("got evidence of another attestation key")
	}
	return attested(evidence, k.Public(), []byte("nonce"))
}

func (d *trial) idevid() error {
	k, err := d.root.IDevID(d.t.Context())
	if err != nil {
		return err
	}
	if !same(k.Public(), d.truth.idevid) {
		d.t.Error("got another birth key")
	}
	err = rottest.Verify(k, "message", crypto.SHA256)
	return errors.Join(err, k.Close())
}

func (d *trial) openStranger() error {
	k, err := d.root.Open(d.t.Context(), d.stranger)
	if err == nil {
		d.t.Error("opened a key of another TPM")
		err = k.Close()
	}
	return err
}

// giveUp makes a key for somebody who does not wait for it.
func (d *trial) giveUp() error {
	ctx, cancel := context.WithTimeout(d.t.Context(), time.Duration(d.random.Int64N(int64(2*time.Millisecond))))
	defer cancel()
	k, err := d.root.Create(ctx, rot.P256)
	if err == nil {
		err = k.Close()
	}
	return err
}

// wantInOrder fails the test unless the device works, now that nothing goes wrong,
// and nothing is loaded but what it knows of.
func (d *trial) wantInOrder() {
	d.t.Helper()
	// An answer that was kept back is noticed only now, and this machine may be slow
	// for endureDeadline.
	var err error
	for range 5 {
		if d.root == nil {
			err = d.restart()
		}
		if d.root != nil {
			err = d.idevid()
		}
		if err == nil {
			break
		}
	}
	if err != nil {
		d.t.Fatalf("the device is in trouble, though nobody makes any: %v", err)
	}
	if objects, want := len(handlesOf(d.t, d.p, firstObject)), tpm.Loaded(d.root); objects != want {
		d.t.Errorf("got %d objects in the TPM, want the %d that the device knows of", objects, want)
	}
	if sessions := len(handlesOf(d.t, d.p, firstSession)); sessions != 1 {
		d.t.Errorf("got %d sessions in the TPM, want 1", sessions)
	}
}

// A failure is what can go wrong on the bus with one command.
type failure struct {
	name string
	// before answers in place of the TPM, which does not see the command.
	before func(*bus) []byte
	// after changes what the TPM answers.
	after func(*bus, []byte) []byte
}

// A bus is what failures may use.
type bus struct {
	*interposer // locked
	random      *rand.Rand
	earlier     []byte // answer to such a command
}

func (b *bus) refusal() []byte { return refusal(refusals[b.random.IntN(len(refusals))]) }

var failures = []failure{
	{name: "refused", before: (*bus).refusal},
	{name: "put off", before: func(*bus) []byte { return refusal(tpm2.TPMRCRetry) }},
	{name: "cut before it was done", before: func(b *bus) []byte { b.hangUp = true; return nil }},
	{name: "cut after it was done", after: func(b *bus, _ []byte) []byte { b.hangUp = true; return nil }},
	{name: "cut in the answer", after: func(b *bus, r []byte) []byte { b.hangUp = true; return r[:b.random.IntN(len(r))] }},
	{name: "done and said to be refused", after: func(b *bus, _ []byte) []byte { return b.refusal() }},
	{name: "answered too shortly", after: func(b *bus, r []byte) []byte { return resized(r[:10+b.random.IntN(len(r)-9)]) }},
	{name: "answered with noise", after: func(b *bus, r []byte) []byte {
		r = bytes.Clone(r)
		for i := range r[10:] {
			r[10+i] = byte(b.random.Uint32())
		}
		return r
	}},
	{name: "answered with another bit", after: func(b *bus, r []byte) []byte {
		r = bytes.Clone(r)
		r[b.random.IntN(len(r))] ^= 1 << b.random.IntN(8)
		return r
	}},
	{name: "answered as earlier", after: func(b *bus, r []byte) []byte {
		if b.earlier != nil {
			return b.earlier
		}
		return r
	}},
	{name: "not answered", after: func(b *bus, r []byte) []byte {
		if b.random.IntN(4) > 0 { // each takes a deadline
			return b.refusal()
		}
		return nil
	}},
}

// makeTrouble lets things go wrong until stop is called.
func (d *trial) makeTrouble() (stop func()) {
	random := rand.New(rand.NewPCG(endureSeed, d.random.Uint64()))
	earlier := map[tpm2.TPMCC][]byte{}
	var now *failure
	endCommands := d.p.onCommand(func(tpm2.TPMCC, []byte) []byte {
		now = nil
		if random.IntN(1000) >= failuresPerMill {
			return nil
		}
		now = &failures[random.IntN(len(failures))]
		d.trouble[now.name]++
		if now.before == nil {
			return nil
		}
		return now.before(&bus{interposer: d.p, random: random})
	})
	endAnswers := d.p.onResponse(func(code tpm2.TPMCC, _, response []byte) []byte {
		switch {
		case now == nil:
			earlier[code] = bytes.Clone(response)
		case now.after != nil:
			response = now.after(&bus{d.p, random, earlier[code]}, response)
		}
		return response
	})
	return func() { endCommands(); endAnswers() }
}
