// Package rottest holds a root of trust against the promises of package rot.
//
// [Run] is the one suite that every [rot.Root] passes. Tests of one root only,
// such as how many commands a signature costs, use [Verify] and [Handshake] to
// see whether a key does what a key is for.
package rottest

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"sync"
	"testing"

	"birthmark/pkg/rot"
)

// Algorithms are all kinds of key that a Root makes.
var Algorithms = []rot.Algorithm{rot.P256, rot.P384, rot.RSA2048}

// Run runs the suite. Open opens the root of one device, the same at every call;
// stranger that of another device. No two roots are open at the same time.
func Run(t *testing.T, open, stranger func(*testing.T) rot.Root) {
	for _, promise := range []struct {
		name string
		hold func(*testing.T, func(*testing.T) rot.Root, func(*testing.T) rot.Root)
	}{
		{"the identity stays", identityStays},
		{"the IDevID is the same at every call, here and nowhere else", idevidStays},
		{"keys come back from their blob", keysComeBack},
		{"a foreign blob is not ours", foreignBlobs},
		{"an unknown algorithm is refused", unknownAlgorithm},
		{"keys sign what crypto asks for", keysSign},
		{"keys sign certificate requests", keysRequest},
		{"keys authenticate to TLS servers", keysAuthenticate},
		{"everything may be used at the same time", together},
		{"Close may be called again", closeTwice},
	} {
		t.Run(promise.name, func(t *testing.T) { promise.hold(t, open, stranger) })
	}
}

func identityStays(t *testing.T, open, stranger func(*testing.T) rot.Root) {
	seen := func(open func(*testing.T) rot.Root) rot.Identity {
		r := open(t)
		defer shut(t, r)
		before := r.Identity()
		shut(t, create(t, r, rot.P256))
		after := r.Identity()
		if before.Kind != after.Kind || before.EK != after.EK || before.SRKName != after.SRKName {
			t.Errorf("got identity %v, later %v", before, after)
		}
		return after
	}
	first, second, other := seen(open), seen(open), seen(stranger)
	if first.Kind == "" || first.EK == "" {
		t.Errorf("got identity %v, want a kind and an EK", first)
	}
	if first.EK != second.EK || first.SRKName != second.SRKName {
		t.Errorf("got identity %v, opened again %v", first, second)
	}
	if first.EK == other.EK {
		t.Errorf("another device has the same identity: %v", other)
	}
}

func idevidStays(t *testing.T, open, stranger func(*testing.T) rot.Root) {
	var want crypto.PublicKey
	for boot := range 2 {
		r := open(t)
		for call := range 2 {
			k := idevid(t, r)
			if want == nil {
				want = k.Public()
			}
			if !same(k.Public(), want) {
				t.Errorf("boot %d, call %d: got another key", boot, call)
			}
			if k.Blob() != nil {
				t.Errorf("boot %d, call %d: got a blob of %d bytes, want none", boot, call, len(k.Blob()))
			}
			wantSigns(t, k)
			shut(t, k)
		}
		shut(t, r)
	}
	r := stranger(t)
	if same(idevid(t, r).Public(), want) {
		t.Error("another device has the same key")
	}
	shut(t, r)
}

func keysComeBack(t *testing.T, open, _ func(*testing.T) rot.Root) {
	var made []rot.Key
	r := open(t)
	for _, a := range Algorithms {
		made = append(made, create(t, r, a))
	}
	shut(t, r)
	r = open(t)
	for i, m := range made {
		k, err := r.Open(t.Context(), m.Blob())
		if err != nil {
			t.Errorf("%s: %v", Algorithms[i], err)
			continue
		}
		if !same(k.Public(), m.Public()) || !bytes.Equal(k.Blob(), m.Blob()) {
			t.Errorf("%s: another key came back", Algorithms[i])
		}
		wantSigns(t, k)
		shut(t, k)
	}
	shut(t, r)
}

func foreignBlobs(t *testing.T, open, stranger func(*testing.T) rot.Root) {
	theirs := stranger(t)
	foreign := create(t, theirs, rot.P256).Blob()
	shut(t, theirs)
	r := open(t)
	ours := create(t, r, rot.P256).Blob()
	for name, b := range map[string]rot.Blob{
		"nothing":           nil,
		"noise":             []byte("hello"),
		"another PEM":       []byte("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n"),
		"a mebibyte":        make([]byte, 1<<20),
		"half of one":       ours[:len(ours)/2],
		"two in one":        append(bytes.Clone(ours), ours...),
		"of another device": foreign,
	} {
		if k, err := r.Open(t.Context(), b); !errors.Is(err, rot.ErrNotOurs) {
			t.Errorf("%s: got %v, %v, want rot.ErrNotOurs", name, k, err)
		}
	}
	if k, err := r.Open(t.Context(), ours); err != nil {
		t.Errorf("our own after all these: %v", err)
	} else {
		wantSigns(t, k)
	}
	shut(t, r)
}

func unknownAlgorithm(t *testing.T, open, _ func(*testing.T) rot.Root) {
	r := open(t)
	defer shut(t, r)
	for _, a := range []rot.Algorithm{"", "DSA", "p-256"} {
		if k, err := r.Create(t.Context(), a); err == nil {
			t.Errorf("made a key of kind %q: %v", a, k.Public())
		}
	}
}

func keysRequest(t *testing.T, open, _ func(*testing.T) rot.Root) {
	r := open(t)
	defer shut(t, r)
	template := &x509.CertificateRequest{Subject: pkix.Name{SerialNumber: "1"}}
	for _, a := range Algorithms {
		k := create(t, r, a)
		der, err := x509.CreateCertificateRequest(rand.Reader, template, k)
		if err != nil {
			t.Errorf("%s: %v", a, err)
			continue
		}
		request, err := x509.ParseCertificateRequest(der)
		if err == nil {
			err = request.CheckSignature()
		}
		if err != nil {
			t.Errorf("%s: the request is not good: %v", a, err)
		}
		shut(t, k)
	}
}

func together(t *testing.T, open, _ func(*testing.T) rot.Root) {
	r := open(t)
	defer shut(t, r)
	shared := create(t, r, rot.P256)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				wantSigns(t, shared)
			}
			own, err := r.Create(t.Context(), rot.P256)
			if err != nil {
				t.Error(err)
				return
			}
			again, err := r.Open(t.Context(), own.Blob())
			if err != nil {
				t.Error(err)
				return
			}
			birth, err := r.IDevID(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			for _, k := range []rot.Key{own, again, birth} {
				wantSigns(t, k)
				shut(t, k)
			}
			r.Identity()
		})
	}
	wg.Wait()
}

func closeTwice(t *testing.T, open, _ func(*testing.T) rot.Root) {
	r := open(t)
	early, late, birth := create(t, r, rot.P256), create(t, r, rot.P256), idevid(t, r)
	shut(t, early)
	shut(t, early)
	wantSigns(t, late)
	shut(t, r)
	shut(t, r)
	for _, k := range []rot.Key{early, late, birth} { // after their root
		shut(t, k)
	}
}

func create(t *testing.T, r rot.Root, a rot.Algorithm) rot.Key {
	t.Helper()
	k, err := r.Create(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func idevid(t *testing.T, r rot.Root) rot.Key {
	t.Helper()
	k, err := r.IDevID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func shut(t *testing.T, c interface{ Close() error }) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func same(a, b crypto.PublicKey) bool {
	return a.(interface{ Equal(crypto.PublicKey) bool }).Equal(b)
}
