package tpm

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"birthmark/internal/swtpm"
	"birthmark/pkg/rot"
)

// seal keeps a secret under the SRK, behind an authorization value, and opens it
// again with whatever session open makes.
func seal(t *testing.T, r *Root, auth, secret []byte, open func(tpm2.NamedHandle) (tpm2.Session, error)) ([]byte, error) {
	t.Helper()
	var got []byte
	return got, r.run(t.Context(), func() error {
		made, err := execute(r, tpm2.Create{
			ParentHandle: r.parent(),
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				UserAuth: tpm2.TPM2BAuth{Buffer: auth},
				Data:     tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret}),
			}},
			InPublic: tpm2.New2B(tpm2.TPMTPublic{
				Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
				ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true, UserWithAuth: true},
			}),
		})
		if err != nil {
			return err
		}
		loaded, err := execute(r, tpm2.Load{ParentHandle: r.parent(), InPrivate: made.OutPrivate, InPublic: made.OutPublic})
		if err != nil {
			return err
		}
		defer r.flush(loaded.ObjectHandle)
		object := tpm2.NamedHandle{Handle: loaded.ObjectHandle, Name: loaded.Name}
		session, err := open(object)
		if err != nil {
			return err
		}
		opened, err := execute(r, tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: object.Handle, Name: object.Name, Auth: session}})
		if err == nil {
			got = opened.OutData.Buffer
		}
		return err
	})
}

var awkward = map[string][]byte{
	"text":                 []byte("open sesame"),
	"none":                 nil,
	"zero byte inside":     {1, 2, 3, 0, 5, 6},
	"zero byte at the end": {1, 2, 3, 0},
}

// Our sessions take every authorization value, in both directions of encryption.
func TestSessionTakesAnyAuthorization(t *testing.T) {
	r := openTest(t, Start(t))
	secret := bytes.Repeat([]byte("0123456789"), 5) // more than one AES block, not a multiple
	for name, auth := range awkward {
		got, err := seal(t, r, auth, secret, func(tpm2.NamedHandle) (tpm2.Session, error) {
			return r.session.authorize(string(auth), out), nil
		})
		if err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, secret)
		}
	}
	_, err := seal(t, r, []byte("right"), secret, func(tpm2.NamedHandle) (tpm2.Session, error) {
		return r.session.authorize("wrong", out), nil
	})
	if !errors.Is(err, tpm2.TPMRCBadAuth) {
		t.Errorf("a wrong value: got %v, want TPM_RC_BAD_AUTH", err)
	}
}

// go-tpm's sessions up to v0.9.8 end an authorization value at its first zero byte
// (google/go-tpm, pull request 446). When this test fails, the library is better:
// then think again whether package tpm still needs sessions of its own.
func TestGoTPMStillCutsAuthorizations(t *testing.T) {
	s := Start(t)
	for name, auth := range awkward {
		r := openTest(t, s)
		_, err := seal(t, r, auth, []byte("secret"), func(tpm2.NamedHandle) (tpm2.Session, error) {
			s, _, err := tpm2.HMACSession(r.tpm, tpm2.TPMAlgSHA256, nonceSize, tpm2.Auth(auth))
			return s, err
		})
		want := name == "zero byte inside"
		if got := errors.Is(err, tpm2.TPMRCBadAuth); got != want {
			t.Errorf("%s: got %v, want TPM_RC_BAD_AUTH: %t", name, err, want)
		}
		r.Close()
	}
	openTest(t, s) // flushes what go-tpm left
}

func openTest(t *testing.T, s *swtpm.TPM) *Root {
	t.Helper()
	r, err := Open(t.Context(), Config{Address: s.Address()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// Somebody on the bus can keep an answer to himself and say "refused" instead. Then
// the TPM's nonce has moved on and ours has not.
func TestSessionOutOfStepIsRenewed(t *testing.T) {
	r := openTest(t, Start(t))
	k, err := r.IDevID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.session.tpm = bytes.Repeat([]byte{1}, nonceSize)
	digest := sha256.Sum256([]byte("message"))
	if _, err := k.Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, rot.ErrUnavailable) {
		t.Errorf("out of step: got %v, want rot.ErrUnavailable", err)
	}
	if _, err := k.Sign(nil, digest[:], crypto.SHA256); err != nil {
		t.Errorf("the next time: %v", err)
	}
}
