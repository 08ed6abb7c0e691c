package soft_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"birthmark/pkg/rot"
	"birthmark/pkg/rot/soft"
)

// verified tells whether a key signs what its public key verifies.
func verified(t *testing.T, k rot.Key) bool {
	t.Helper()
	digest := sha256.Sum256([]byte("message"))
	signature, err := k.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	switch key := k.Public().(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, digest[:], signature)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature) == nil
	}
	return false
}

func TestKeysComeBackFromTheirBlob(t *testing.T) {
	r := soft.New()
	for _, a := range []rot.Algorithm{rot.P256, rot.P384, rot.RSA2048} {
		made, err := r.Create(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		opened, err := r.Open(t.Context(), made.Blob())
		if err != nil {
			t.Fatalf("%s: %v", a, err)
		}
		if !verified(t, opened) {
			t.Errorf("%s: the opened key's signature does not verify", a)
		}
		if !opened.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(made.Public()) {
			t.Errorf("%s: another key came back", a)
		}
		if _, err := soft.New().Open(t.Context(), made.Blob()); !errors.Is(err, rot.ErrNotOurs) {
			t.Errorf("%s in another root: got %v, want rot.ErrNotOurs", a, err)
		}
	}
	if _, err := r.Create(t.Context(), "DSA"); err == nil {
		t.Error("made a key of kind DSA")
	}
}

func TestIDevIDStaysInItsFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "root")
	var identity rot.Identity
	for boot := range 3 {
		r, err := soft.Open(dir)
		if err != nil {
			t.Fatalf("boot %d: %v", boot, err)
		}
		if boot > 0 && r.Identity().EK != identity.EK {
			t.Errorf("boot %d: got identity %v, want %v", boot, r.Identity(), identity)
		}
		identity = r.Identity()
		k, err := r.IDevID(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !verified(t, k) || k.Blob() != nil {
			t.Errorf("boot %d: the IDevID does not sign, or has a blob", boot)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "idevid.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("idevid.pem has mode %v, want -rw-------", got)
	}
}

func TestRefusesForeignBlobs(t *testing.T) {
	r := soft.New()
	for _, b := range []rot.Blob{nil, []byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"), make([]byte, 1<<20)} {
		if _, err := r.Open(t.Context(), b); !errors.Is(err, rot.ErrNotOurs) {
			t.Errorf("%d bytes: got %v, want rot.ErrNotOurs", len(b), err)
		}
	}
}
