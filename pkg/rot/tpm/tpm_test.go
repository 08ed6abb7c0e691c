package tpm_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"testing"

	"birthmark/internal/swtpm/swtpmtest"
	"birthmark/pkg/rot"
	"birthmark/pkg/rot/tpm"
)

func open(t *testing.T, c tpm.Config) *tpm.Root {
	t.Helper()
	r, err := tpm.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestThin(t *testing.T) {
	s := swtpmtest.Start(t)
	r := open(t, tpm.Config{Address: s.Address()})
	t.Logf("%+v", r.Identity())
	t.Log(r.Stats())
	id, err := r.IDevID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Log(r.Stats())
	for _, a := range []rot.Algorithm{rot.P256, rot.P384, rot.RSA2048} {
		k, err := r.Create(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(r.Stats())
		t.Log(k.(rot.Describer).Describe())
		k.Close()
	}
	d := sha256.Sum256(nil)
	sig, err := id.Sign(nil, d[:], crypto.SHA256)
	if err != nil || !ecdsa.VerifyASN1(id.Public().(*ecdsa.PublicKey), d[:], sig) {
		t.Fatal(err)
	}
	_, err = r.Certify(t.Context(), id, d[:])
	t.Log(err, r.Stats())
}
