package installer

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"birthmark/pkg/clock"
	"birthmark/pkg/fota"
	"birthmark/pkg/fota/bundle"
	"birthmark/pkg/fota/bundle/bundletest"
	"birthmark/pkg/fota/permit"
)

// ownedBy lets a device take the permits of somebody, whose CRLs are newer each time.
func (d *device) ownedBy(pki *bundletest.PKI, revoked ...*bundletest.Signer) {
	d.Helper()
	d.ownedSince(nil, pki, revoked...)
}

// ownedSince does so with CRLs of a number.
func (d *device) ownedSince(number *big.Int, pki *bundletest.PKI, revoked ...*bundletest.Signer) {
	d.Helper()
	change := func(l *x509.RevocationList) { l.Number = cmp.Or(number, l.Number) }
	folder := filepath.Join(d.etc, "owner")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		d.Fatal(err)
	}
	var crls []byte
	for _, ca := range []*bundletest.Signer{pki.Root, pki.Issuing} {
		crls = append(crls, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: bundletest.CRL(d, ca, change, revoked...)})...)
	}
	d.trust(folder, bundle.AnchorsFile, bundletest.PEM(pki.Root.Cert))
	d.trust(folder, bundle.IssuersFile, bundletest.PEM(pki.Issuing.Cert))
	d.trust(folder, bundle.CRLsFile, crls)
}

// hands hands over a permit.
func (d *device) hands(p permit.Permit, by *bundletest.Signer) error {
	d.Helper()
	text, err := p.Text()
	if err != nil {
		d.Fatal(err)
	}
	path := d.file(pem.EncodeToMemory(&pem.Block{Type: "CMS", Bytes: bundletest.Message{Content: text, By: by}.Sign(d)}))
	f, err := os.Open(path)
	if err != nil {
		d.Fatal(err)
	}
	defer f.Close()
	return d.Permit(d.Context(), f)
}

func TestAnOlderReleaseTakesAPermit(t *testing.T) {
	day := time.Now().AddDate(0, 0, 1)
	owner := bundletest.NewPKI(t, "P-384", "P-384")
	chip := newChip(1)
	chip.ek = strings.Repeat("ab", 32)
	d := newDevice(t)
	d.ownedBy(owner)
	d.stopped()
	d.loader.status.Running = version(t, "1.4.0+sv2")
	d.startWith(chip.open)
	older := func(what, v, code string) {
		t.Helper()
		_, err := d.try(d.release(v))
		if code == "" && err != nil {
			t.Errorf("%s: %v", what, err)
		} else if code != "" {
			wantRefusal(t, what, err, fota.StagePolicy, code)
		}
	}
	older("without a permit", "1.3.0+sv2", "downgrade")
	for what, p := range map[string]permit.Permit{
		"for other devices":  permit.New("acme-tv", permit.Any, version(t, "1.3.0+sv2"), day),
		"for another device": permit.New("acme-gw", strings.Repeat("cd", 32), version(t, "1.3.0+sv2"), day),
		"that is over":       permit.New("acme-gw", permit.Any, version(t, "1.3.0+sv2"), time.Now()),
	} {
		wantRefusal(t, "a permit "+what, d.hands(p, owner.Signer), fota.StagePolicy, "permit")
		older("with a permit "+what, "1.3.0+sv2", "downgrade")
	}
	good := permit.New("acme-gw", chip.ek, version(t, "1.3.0+sv2"), day)
	wantRefusal(t, "a permit of the maker's", d.hands(good, d.pki.Signer), fota.StageChain, "issuer")
	if err := d.hands(good, owner.Signer); err != nil {
		t.Fatalf("a good permit: %v", err)
	}
	older("another release", "1.2.0+sv2", "downgrade")
	d.startWith(chip.open) // it is remembered
	if st := d.stands(); st.Device.Permit != good.Version {
		t.Errorf("the status says %v is permitted, want %v", st.Device.Permit, good.Version)
	}
	older("the release that is permitted", "1.3.0+sv2", "")
	d.ownedBy(owner, owner.Signer)
	wantRefusal(t, "arm, when the permit is no good any more", d.Arm(t.Context(), good.Version), fota.StagePolicy, "downgrade")
	d.ownedBy(owner)
	if err := d.Arm(t.Context(), good.Version); err != nil {
		t.Errorf("arm: %v", err)
	}
	if err := d.hands(permit.New("acme-gw", permit.Any, version(t, "1.3.0+sv1"), day), owner.Signer); err != nil {
		t.Fatalf("a permit for what is below the floor: %v", err)
	}
	older("below the floor, with a permit", "1.3.0+sv1", "floor")
	if err := d.hands(good, owner.Signer); err != nil {
		t.Fatal(err)
	}
	d.ownedBy(owner, owner.Signer)
	older("with a permit of somebody who was revoked", "1.3.0+sv2", "downgrade")
}

// TestAnOlderCRLOfTheOwnersIsNotAcceptedAgain: whoever can change the disk puts back the
// owner's CRLs of before his signer was revoked. Neither a permit that is handed over nor
// the one that is remembered is taken by them.
func TestAnOlderCRLOfTheOwnersIsNotAcceptedAgain(t *testing.T) {
	owner := bundletest.NewPKI(t, "P-384", "P-384")
	d := newDevice(t)
	good := permit.New("acme-gw", permit.Any, version(t, "0.9.0+sv1"), time.Now().AddDate(0, 0, 1))
	permitted := func() bool {
		st, err := d.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return st.Device.Permit == good.Version
	}
	d.ownedSince(big.NewInt(7), owner)
	if err := d.hands(good, owner.Signer); err != nil || !permitted() {
		t.Fatalf("a good permit: %v", err)
	}
	d.ownedSince(big.NewInt(9), owner)
	if !permitted() { // which remembers that there is a newer one
		t.Error("with a newer CRL the permit is not taken")
	}
	d.ownedSince(big.NewInt(8), owner)
	if permitted() {
		t.Error("with an older CRL the permit that is remembered is taken")
	}
	wantRefusal(t, "a permit, with an older CRL", d.hands(good, owner.Signer), fota.StageChain, "stale")
	_, err := d.try(d.release("0.9.0+sv1"))
	wantRefusal(t, "an older release", err, fota.StagePolicy, "downgrade")
}

// TestAPermitTakesAClock: without one a permit would outlive its end.
func TestAPermitTakesAClock(t *testing.T) {
	owner := bundletest.NewPKI(t, "P-384", "P-384")
	d := newDevice(t)
	d.ownedBy(owner)
	good := permit.New("acme-gw", permit.Any, version(t, "0.9.0+sv1"), time.Now().AddDate(0, 0, 1))
	for _, set := range []bool{true, false, true} {
		d.clock = clock.Fixed(clock.Build(), time.Time{}, time.Now(), set)
		d.start()
		err := d.hands(good, owner.Signer)
		_, older := d.try(d.release("0.9.0+sv1"))
		if set && (err != nil || older != nil) {
			t.Errorf("the clock is set: got %v for the permit, %v for the release", err, older)
		}
		if !set {
			wantRefusal(t, "a permit while the clock is not set", err, fota.StagePolicy, "permit")
			wantRefusal(t, "an older release while the clock is not set", older, fota.StagePolicy, "downgrade")
		}
	}
}

// TestAPermitNeedsAnOwner: a device that was given no owner's certificates has none.
func TestAPermitNeedsAnOwner(t *testing.T) {
	d := newDevice(t)
	err := d.hands(permit.New("acme-gw", permit.Any, version(t, "0.9.0+sv1"), time.Now().AddDate(0, 0, 1)), d.pki.Signer)
	wantRefusal(t, "a permit", err, fota.StageChain, "anchors")
}
