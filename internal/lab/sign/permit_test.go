package sign

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"birthmark/pkg/fota"
	bt "birthmark/pkg/fota/bundle/bundletest"
	"birthmark/pkg/fota/permit"
)

// TestADeviceTakesAPermit signs with the lab's CA, and with one of each kind of key.
func TestADeviceTakesAPermit(t *testing.T) {
	dir := t.TempDir()
	p := permit.New("acme-gw", permit.Any, fota.Version{Major: 1, Security: 2}, time.Now().AddDate(0, 0, 1))
	signers := map[string]Signer{}
	var err error
	if signers["the lab"], err = Owner(filepath.Join(dir, "lab")); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"P-256", "P-384", "RSA-3072"} {
		pki := bt.NewPKI(t, kind, kind)
		signers[kind] = files(t, filepath.Join(dir, kind), pki, pki.Signer)
	}
	for name, by := range signers {
		out := filepath.Join(dir, "permit.pem")
		if err := Permit(t.Context(), p, by, out); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		trust, err := by.trust()
		if err != nil {
			t.Fatal(err)
		}
		signed, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if got, _, err := permit.Open(signed, trust); err != nil || got != p {
			t.Errorf("%s: a device reads %+v, %v; want %+v", name, got, err, p)
		}
	}
}

func TestAPermitThatNoDeviceTakesIsNotWritten(t *testing.T) {
	dir := t.TempDir()
	pki := bt.NewPKI(t, "P-256", "P-256")
	good := permit.New("acme-gw", permit.Any, fota.Version{Major: 1, Security: 2}, time.Now().AddDate(0, 0, 1))
	mail := bt.Issue(t, pki.Issuing, bt.Key(t, "P-256", "mail"), "Mail", forMail)
	by := files(t, filepath.Join(dir, "mail"), pki, mail)
	out := filepath.Join(dir, "permit.pem")
	var r *fota.Refusal
	if err := Permit(t.Context(), good, by, out); !errors.As(err, &r) || r.Code != "eku" {
		t.Errorf("a signer of mail: got %v, want a refusal, eku", err)
	}
	nameless := good
	nameless.Device = "gw-17"
	var wrong *ReleaseError
	if err := Permit(t.Context(), nameless, files(t, filepath.Join(dir, "good"), pki, pki.Signer), out); !errors.As(err, &wrong) {
		t.Errorf("a device with another name: got %v, want a ReleaseError", err)
	}
	t.Setenv("PATH", dir)
	var missing *MissingError
	if err := Permit(t.Context(), good, files(t, filepath.Join(dir, "again"), pki, pki.Signer), out); !errors.As(err, &missing) || !strings.Contains(err.Error(), "openssl") {
		t.Errorf("without openssl: got %v, want to be told", err)
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("there is a permit")
	}
}
