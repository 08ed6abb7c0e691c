package tpm_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"birthmark/internal/swtpm/swtpmtest"
	"birthmark/pkg/rot"
	"birthmark/pkg/rot/tpm"
)

func TestExamineLeavesANewTPMAsItWas(t *testing.T) {
	s := tpm.Start(t)
	h, err := tpm.Examine(t.Context(), tpm.Config{Address: s.Address()})
	if err != nil {
		t.Fatal(err)
	}
	if h.Vendor == "" || h.Firmware == "" || !h.EKCertificate || h.Lockout || h.Failures != 0 || h.MaxFailures == 0 || h.ObjectsFree == 0 || h.Objects+h.Sessions != 0 {
		t.Errorf("a new TPM says %+v", h)
	}
	again, err := tpm.Examine(t.Context(), tpm.Config{Address: s.Address()})
	if err != nil || again != h {
		t.Errorf("examined again, it says %+v, %v; want %+v: no key was made in it", again, err, h)
	}
	bare, err := tpm.Examine(t.Context(), tpm.Config{Address: swtpmtest.StartBare(t).Address()})
	if err != nil || bare.EKCertificate {
		t.Errorf("a TPM without EK certificate: %+v, %v", bare, err)
	}
	if _, err := tpm.Examine(t.Context(), tpm.Config{Address: "unix:/nowhere"}); !errors.Is(err, rot.ErrUnavailable) {
		t.Errorf("no TPM: %v, want %v", err, rot.ErrUnavailable)
	}
}

func TestHealthCountsWhatIsLoaded(t *testing.T) {
	s := tpm.Start(t)
	before, err := tpm.Examine(t.Context(), tpm.Config{Address: s.Address()})
	if err != nil {
		t.Fatal(err)
	}
	r := open(t, tpm.Config{Address: s.Address()})
	wantSigns(t, create(t, r, rot.P256))
	h, err := r.Health(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if h.Objects != 1 || h.Sessions != 1 || h.Persistent != before.Persistent+1 {
		t.Errorf("with a key and a session: %+v, want 1 object, 1 session, %d persistent", h, before.Persistent+1)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Health(t.Context()); !errors.Is(err, rot.ErrUnavailable) {
		t.Errorf("after Close: %v, want %v", err, rot.ErrUnavailable)
	}
}

func TestHealthTellsOfWrongTriesAndLockout(t *testing.T) {
	s := tpm.Start(t)
	conn, done := tpm.Direct(t, s)
	protected := tpm2.ECCSRKTemplate
	protected.ObjectAttributes.NoDA = false
	key := must[tpm2.CreatePrimaryResponse](t)(tpm2.CreatePrimary{
		PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(protected),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: []byte("right")}}},
	}.Execute(conn))
	tries := uint32(0)
	for ; ; tries++ {
		_, err := tpm2.Create{
			ParentHandle: tpm2.AuthHandle{Handle: key.ObjectHandle, Name: key.Name, Auth: tpm2.PasswordAuth([]byte("wrong"))},
			InPublic:     tpm2.New2B(tpm2.ECCSRKTemplate),
		}.Execute(conn)
		if errors.Is(err, tpm2.TPMRCLockout) {
			break
		}
		if !errors.Is(err, tpm2.TPMRCAuthFail) {
			t.Fatalf("a wrong try: %v", err)
		}
	}
	must[tpm2.FlushContextResponse](t)(tpm2.FlushContext{FlushHandle: key.ObjectHandle}.Execute(conn))
	done()
	h, err := tpm.Examine(t.Context(), tpm.Config{Address: s.Address()})
	if err != nil {
		t.Fatal(err)
	}
	if !h.Lockout || h.Failures != tries || h.MaxFailures != tries || h.Recovery < time.Second {
		t.Errorf("after %d wrong tries: %+v, want lockout, %d of %d", tries, h, tries, tries)
	}
}
