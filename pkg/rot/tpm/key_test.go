package tpm_test

import (
	"crypto"
	"crypto/rsa"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"birthmark/internal/swtpm"
	"birthmark/pkg/rot"
	"birthmark/pkg/rot/rottest"
	"birthmark/pkg/rot/tpm"
	"birthmark/pkg/rot/tpm/keyfile"
)

func TestRefusesToSign(t *testing.T) {
	r := open(t, tpm.Config{Address: tpm.Start(t).Address()})
	ec, rs := create(t, r, rot.P256), create(t, r, rot.RSA2048)
	before := r.Stats().Commands
	for name, tt := range map[string]struct {
		key    rot.Key
		digest int
		opts   crypto.SignerOpts
	}{
		"a digest too short":       {ec, 31, crypto.SHA256},
		"a digest of another":      {ec, 32, crypto.SHA384},
		"no hash":                  {ec, 32, crypto.Hash(0)},
		"SHA-1":                    {rs, 20, crypto.SHA1},
		"a salt of another length": {rs, 32, &rsa.PSSOptions{SaltLength: 20, Hash: crypto.SHA256}},
	} {
		if _, err := tt.key.Sign(nil, make([]byte, tt.digest), tt.opts); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	if n := r.Stats().Commands - before; n > 0 {
		t.Errorf("asked the TPM %d times", n)
	}
}

func TestSaysWhatTheTPMEnforces(t *testing.T) {
	r := open(t, tpm.Config{Address: tpm.Start(t).Address()})
	want := []string{"fixedTPM", "fixedParent", "sensitiveDataOrigin", "userWithAuth", "noDA", "sign"}
	for _, a := range rottest.Algorithms {
		k := create(t, r, a)
		if got := k.(rot.Describer).Describe(); !slices.Equal(got, want) {
			t.Errorf("%s: got attributes %v, want %v", a, got, want)
		}
		k.Close()
	}
}

func TestRefusesKeysThatAreNotOurs(t *testing.T) {
	s := tpm.Start(t)
	r := open(t, tpm.Config{Address: s.Address()})
	good := create(t, r, rot.P256).Blob()
	r.Close()
	change := func(f func(*keyfile.Key)) rot.Blob {
		k, err := keyfile.Parse(good)
		if err != nil {
			t.Fatal(err)
		}
		f(&k)
		text, err := keyfile.Marshal(k)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	planted := plantedKey(t, s)
	r = open(t, tpm.Config{Address: s.Address()})
	for name, b := range map[string]rot.Blob{
		"nothing":               nil,
		"half a file":           good[:100],
		"another parent":        change(func(k *keyfile.Key) { k.Parent = 0x40000001 }),
		"a changed public part": change(func(k *keyfile.Key) { k.Public[30] ^= 1 }),
		"other attributes":      change(func(k *keyfile.Key) { k.Public[7] ^= 2 }),
		"a changed secret":      change(func(k *keyfile.Key) { k.Private[40] ^= 1 }),
		"no secret":             change(func(k *keyfile.Key) { k.Private = []byte{0, 1, 0} }),
		"a key from outside":    planted,
	} {
		if k, err := r.Open(t.Context(), b); !errors.Is(err, rot.ErrNotOurs) {
			t.Errorf("%s: got %v, %v, want rot.ErrNotOurs", name, k, err)
		}
	}
	if _, err := r.Open(t.Context(), good); err != nil {
		t.Errorf("the good one: %v", err)
	}
	if n := r.Stats().Commands; n == 0 {
		t.Error("no command was sent")
	}
	r.Close()
	tpm.WantClean(t, s)
}

// plantedKey is a key file that the TPM loads, but whose key may be copied out of
// it: somebody with access to the TPM and the state folder could swap it in.
func plantedKey(t *testing.T, s *swtpm.TPM) rot.Blob {
	t.Helper()
	conn, done := tpm.Direct(t, s)
	defer done()
	template := signingTemplate()
	template.ObjectAttributes = tpm2.TPMAObject{SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true}
	srk := must[tpm2.ReadPublicResponse](t)(tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(0x81000001)}.Execute(conn))
	made := must[tpm2.CreateResponse](t)(tpm2.Create{
		ParentHandle: tpm2.NamedHandle{Handle: 0x81000001, Name: srk.Name}, InPublic: tpm2.New2B(template),
	}.Execute(conn))
	text, err := keyfile.Marshal(keyfile.Key{
		Parent: 0x81000001, Public: tpm2.Marshal(made.OutPublic), Private: tpm2.Marshal(made.OutPrivate), EmptyAuth: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}
