package tpm_test

import (
	"context"
	"crypto"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"birthmark/pkg/rot"
	"birthmark/pkg/rot/rottest"
	"birthmark/pkg/rot/tpm"
)

func open(tb testing.TB, c tpm.Config) *tpm.Root {
	tb.Helper()
	r, err := tpm.Open(tb.Context(), c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { r.Close() })
	return r
}

func create(tb testing.TB, r *tpm.Root, a rot.Algorithm) rot.Key {
	tb.Helper()
	k, err := r.Create(tb.Context(), a)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func idevid(tb testing.TB, r *tpm.Root) rot.Key {
	tb.Helper()
	k, err := r.IDevID(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// must makes go-tpm's commands fit on a line.
func must[R any](t *testing.T) func(*R, error) *R {
	return func(r *R, err error) *R {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
}

// wantSigns fails the test unless k signs what its public key verifies.
func wantSigns(t *testing.T, k rot.Key) {
	t.Helper()
	if err := rottest.Verify(k, "message", crypto.SHA256); err != nil {
		t.Error(err)
	}
}

func same(a, b crypto.PublicKey) bool {
	return a.(interface{ Equal(crypto.PublicKey) bool }).Equal(b)
}

func TestKeepsThePromisesOfARoot(t *testing.T) {
	one, other := tpm.Start(t), tpm.StartOther(t)
	rottest.Run(t,
		func(t *testing.T) rot.Root { return open(t, tpm.Config{Address: one.Address()}) },
		func(t *testing.T) rot.Root { return open(t, tpm.Config{Address: other.Address()}) })
}

func TestLeavesTheTPMAsItWas(t *testing.T) {
	s := tpm.Start(t)
	r := open(t, tpm.Config{Address: s.Address()})
	wantSigns(t, idevid(t, r))
	k := create(t, r, rot.P256)
	wantSigns(t, k)
	if _, err := r.Create(t.Context(), "DSA"); err == nil {
		t.Error("made a key of kind DSA")
	}
	if _, err := r.Open(t.Context(), []byte("no key")); err == nil {
		t.Error("opened a key file that is none")
	}
	if _, err := r.Certify(t.Context(), k, []byte("nonce")); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := k.Close(); err != nil {
		t.Errorf("closing a key after its root: %v", err)
	}
	tpm.WantClean(t, s)
}

// Some agents are killed: what they left is in the way of everybody behind a
// socket, since there is no resource manager.
func TestFlushesWhatAKilledPredecessorLeft(t *testing.T) {
	s := tpm.Start(t)
	conn, done := tpm.Direct(t, s)
	for range 3 { // as many as fit
		must[tpm2.CreatePrimaryResponse](t)(tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(conn))
		if _, _, err := tpm2.HMACSession(conn, tpm2.TPMAlgSHA256, 16); err != nil {
			t.Fatal(err)
		}
	}
	done()
	r := open(t, tpm.Config{Address: s.Address()})
	wantSigns(t, create(t, r, rot.P256))
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	tpm.WantClean(t, s)
}

// More keys than the TPM has room for take turns.
func TestManyKeys(t *testing.T) {
	s := tpm.Start(t)
	r := open(t, tpm.Config{Address: s.Address()})
	keys := []rot.Key{idevid(t, r), idevid(t, r)}
	for range 6 {
		keys = append(keys, create(t, r, rot.P256))
	}
	for range 2 {
		for _, k := range keys {
			wantSigns(t, k)
		}
	}
	if _, err := r.Certify(t.Context(), keys[2], nil); err != nil {
		t.Error(err)
	}
	for _, k := range keys {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
		if _, err := k.Sign(nil, make([]byte, 32), crypto.SHA256); err == nil {
			t.Error("a closed key signed")
		}
	}
	r.Close()
	tpm.WantClean(t, s)
}

func TestACanceledCallerDoesNotDisturbTheConnection(t *testing.T) {
	r := open(t, tpm.Config{Address: tpm.Start(t).Address()})
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	before := r.Stats().Commands
	for range 10 {
		if _, err := r.Create(canceled, rot.P256); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
	}
	create(t, r, rot.P256)
	if n := r.Stats().Commands - before; n != 2 {
		t.Errorf("got %d commands, want the 2 of a key that is made", n)
	}
}
