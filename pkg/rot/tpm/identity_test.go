package tpm_test

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2"
	gotpm "github.com/google/go-tpm/tpm2/transport"

	"birthmark/internal/swtpm"
	"birthmark/internal/swtpm/swtpmtest"
	"birthmark/pkg/rot"
	"birthmark/pkg/rot/tpm"
)

func TestIdentityIsTheTPMs(t *testing.T) {
	s := tpm.Start(t)
	first := open(t, tpm.Config{Address: s.Address()})
	want := first.Identity()
	if want.Kind != "tpm" || want.Vendor != "IBM SW TPM" {
		t.Errorf("got kind %q of %q, want tpm of IBM SW TPM", want.Kind, want.Vendor)
	}
	certificate, err := x509.ParseCertificate(want.EKCertificate)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(certificate.RawSubjectPublicKeyInfo); hex.EncodeToString(sum[:]) != want.EK {
		t.Errorf("got EK %s, the certificate is for %x", want.EK, sum)
	}
	first.Close()

	saved := want
	saved.EKCertificate = nil
	for name, known := range map[string]rot.Identity{"forgotten": {}, "remembered": saved} {
		r := open(t, tpm.Config{Address: s.Address(), Known: known})
		if diff := cmp.Diff(want, r.Identity()); diff != "" {
			t.Errorf("%s: first (-) and second (+) identity differ:\n%s", name, diff)
		}
		r.Close()
	}
}

func TestIDevIDOutlivesEverythingButTheTPM(t *testing.T) {
	s := tpm.Start(t)
	r := open(t, tpm.Config{Address: s.Address()})
	want := idevid(t, r)
	if want.Blob() != nil {
		t.Error("the IDevID has a blob")
	}
	if !same(idevid(t, r).Public(), want.Public()) {
		t.Error("the second call gave another key")
	}
	r.Close()
	clearTPM(t, s)
	r = open(t, tpm.Config{Address: s.Address()})
	if !same(idevid(t, r).Public(), want.Public()) {
		t.Error("another key after TPM2_Clear")
	}
	r.Close()
	other := open(t, tpm.Config{Address: tpm.StartOther(t).Address()})
	if same(idevid(t, other).Public(), want.Public()) {
		t.Error("the same key in another TPM")
	}
}

// clearTPM is what a BIOS menu or a root user can do: TPM2_Clear.
func clearTPM(t *testing.T, s *swtpm.TPM) {
	t.Helper()
	conn, done := tpm.Direct(t, s)
	defer done()
	must[tpm2.ClearResponse](t)(tpm2.Clear{AuthHandle: tpm2.TPMRHLockout}.Execute(conn))
}

func TestRefusesAnotherOrAClearedTPM(t *testing.T) {
	s := tpm.Start(t)
	r := open(t, tpm.Config{Address: s.Address()})
	k := create(t, r, rot.P256)
	known := r.Identity()
	r.Close()

	other := tpm.StartOther(t)
	refused := func(address string, want error) {
		t.Helper()
		_, err := tpm.Open(t.Context(), tpm.Config{Address: address, Known: known})
		if !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	refused(other.Address(), rot.ErrReplaced) // without a storage root key
	stranger := open(t, tpm.Config{Address: other.Address()})
	if _, err := stranger.Open(t.Context(), k.Blob()); !errors.Is(err, rot.ErrNotOurs) {
		t.Errorf("another TPM: got %v, want rot.ErrNotOurs", err)
	}
	stranger.Close()
	refused(other.Address(), rot.ErrReplaced) // with one
	tpm.WantClean(t, other)

	clearTPM(t, s)
	refused(s.Address(), rot.ErrCleared)
	again := open(t, tpm.Config{Address: s.Address()})
	if _, err := again.Open(t.Context(), k.Blob()); !errors.Is(err, rot.ErrNotOurs) {
		t.Errorf("cleared TPM: got %v, want rot.ErrNotOurs", err)
	}
	again.Close()
	refused(s.Address(), rot.ErrCleared) // with a new storage root key
	tpm.WantClean(t, s)
}

func TestConnectsAgain(t *testing.T) {
	s := swtpmtest.Start(t)
	r := open(t, tpm.Config{Address: s.Address()})
	birth, k := idevid(t, r), create(t, r, rot.P256)
	for _, off := range []func(){s.Kill, func() { s.Stop() }} {
		off()
		if _, err := k.Sign(nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, rot.ErrUnavailable) {
			t.Errorf("TPM off: got %v, want rot.ErrUnavailable", err)
		}
		if _, err := r.Create(t.Context(), rot.P256); !errors.Is(err, rot.ErrUnavailable) {
			t.Errorf("TPM off: got %v, want rot.ErrUnavailable", err)
		}
		var err error
		if s, err = swtpm.Start(t.Context(), s.Dir()); err != nil {
			t.Fatal(err)
		}
		defer s.Kill()
		wantSigns(t, k)
		wantSigns(t, birth)
		if _, err := r.Certify(t.Context(), k, nil); err != nil {
			t.Error(err)
		}
	}

	s.Kill()
	other, err := swtpm.Start(t.Context(), swapState(t, s.Dir()))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Kill()
	for range 2 { // the first one may only notice that the connection is gone
		if _, err = k.Sign(nil, make([]byte, 32), crypto.SHA256); errors.Is(err, rot.ErrReplaced) {
			break
		}
	}
	if !errors.Is(err, rot.ErrReplaced) {
		t.Errorf("another TPM at the same address: got %v, want rot.ErrReplaced", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	tpm.WantClean(t, other)
}

// swapState puts another TPM into a folder: a board was changed.
func swapState(t *testing.T, dir string) string {
	t.Helper()
	other := swtpmtest.StartOther(t)
	if err := other.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "tpm")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(dir, "tpm"), os.DirFS(filepath.Join(other.Dir(), "tpm"))); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestCannotOpen(t *testing.T) {
	dir := t.TempDir()
	mute, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tt := range map[string]struct {
		ctx    context.Context
		config tpm.Config
		want   error
		text   string
	}{
		"no device":     {t.Context(), tpm.Config{Address: "/dev/tpm-that-is-not-there"}, rot.ErrUnavailable, "/dev/tpm-that-is-not-there: no such file"},
		"a plain file":  {t.Context(), tpm.Config{Address: "/etc/hostname"}, rot.ErrUnavailable, "/etc/hostname is not a character device"},
		"no socket":     {t.Context(), tpm.Config{Address: "unix:" + dir + "/none"}, rot.ErrUnavailable, "/none: connect: no such file"},
		"no server":     {t.Context(), tpm.Config{Address: "tcp:127.0.0.1:1"}, rot.ErrUnavailable, "connection refused"},
		"mute":          {t.Context(), tpm.Config{Address: "unix:" + dir + "/s", Deadline: 20 * time.Millisecond}, rot.ErrUnavailable, "no answer within 20ms"},
		"canceled":      {canceled, tpm.Config{Address: "unix:" + dir + "/s"}, context.Canceled, "canceled"},
		"no address":    {t.Context(), tpm.Config{}, nil, `"" is neither`},
		"a bad address": {t.Context(), tpm.Config{Address: "udp:1.2.3.4:5"}, nil, `"udp:1.2.3.4:5" is neither`},
		"zero byte":     {t.Context(), tpm.Config{Address: "/dev/null", OwnerAuth: "a\x00b"}, nil, "not printable ASCII"},
		"long auth":     {t.Context(), tpm.Config{Address: "/dev/null", OwnerAuth: strings.Repeat("a", 33)}, nil, "33 bytes, at most 32"},
	} {
		_, err := tpm.Open(tt.ctx, tt.config)
		if err == nil || !strings.Contains(err.Error(), tt.text) || (tt.want != nil && !errors.Is(err, tt.want)) {
			t.Errorf("%s: got %v, want %v with %q", name, err, tt.want, tt.text)
		}
	}
}

// A TPM whose owner hierarchy somebody has taken: only its owner can make the SRK.
func TestOwnerAuth(t *testing.T) {
	s := tpm.Start(t)
	conn, done := tpm.Direct(t, s)
	must[tpm2.HierarchyChangeAuthResponse](t)(tpm2.HierarchyChangeAuth{
		AuthHandle: tpm2.TPMRHOwner, NewAuth: tpm2.TPM2BAuth{Buffer: []byte("owner")},
	}.Execute(conn))
	done()
	if _, err := tpm.Open(t.Context(), tpm.Config{Address: s.Address()}); err == nil || !strings.Contains(err.Error(), "cannot make the storage root key") {
		t.Errorf("without authorization: got %v", err)
	}
	tpm.WantClean(t, s)
	r := open(t, tpm.Config{Address: s.Address(), OwnerAuth: "owner"})
	known := r.Identity()
	r.Close()
	wantSigns(t, create(t, open(t, tpm.Config{Address: s.Address(), Known: known}), rot.P256))
}

// persist makes a primary key and stores it, as other software of the machine or
// its factory did.
func persist(t *testing.T, conn gotpm.TPM, hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic, at tpm2.TPMHandle) *tpm2.TPMTPublic {
	t.Helper()
	made := must[tpm2.CreatePrimaryResponse](t)(tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(template)}.Execute(conn))
	must[tpm2.EvictControlResponse](t)(tpm2.EvictControl{
		Auth: tpm2.TPMRHOwner, ObjectHandle: tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}, PersistentHandle: at,
	}.Execute(conn))
	must[tpm2.FlushContextResponse](t)(tpm2.FlushContext{FlushHandle: made.ObjectHandle}.Execute(conn))
	public, err := made.OutPublic.Contents()
	if err != nil {
		t.Fatal(err)
	}
	return public
}

func TestUsesTheStorageKeyThatIsThere(t *testing.T) {
	s := tpm.Start(t)
	conn, done := tpm.Direct(t, s)
	public := persist(t, conn, tpm2.TPMRHOwner, tpm2.RSASRKTemplate, 0x81000001)
	done()
	name, err := tpm2.ObjectName(public)
	if err != nil {
		t.Fatal(err)
	}
	r := open(t, tpm.Config{Address: s.Address()})
	if got, want := r.Identity().SRKName, hex.EncodeToString(name.Buffer); got != want {
		t.Errorf("got SRK %s, want %s", got, want)
	}
	wantSigns(t, create(t, r, rot.P256))
	r.Close()
	wantSigns(t, create(t, open(t, tpm.Config{Address: s.Address(), Known: r.Identity()}), rot.P256))
}

func TestKeepsItsHandsOffSomethingElse(t *testing.T) {
	s := tpm.Start(t)
	conn, done := tpm.Direct(t, s)
	persist(t, conn, tpm2.TPMRHOwner, signingTemplate(), 0x81000001)
	done()
	_, err := tpm.Open(t.Context(), tpm.Config{Address: s.Address()})
	if err == nil || !strings.Contains(err.Error(), "no storage root key") {
		t.Errorf("got %v, want a complaint about 0x81000001", err)
	}
	tpm.WantClean(t, s)
}

// signingTemplate is a key like the TCG's IDevID.
func signingTemplate() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, AdminWithPolicy: true, SignEncrypt: true},
		AuthPolicy:       tpm2.TPM2BDigest{Buffer: make([]byte, 32)},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
		Unique:           tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: []byte("IDEVID")}}),
	}
}

func TestUsesTheFactorysIDevID(t *testing.T) {
	s := tpm.Start(t)
	conn, done := tpm.Direct(t, s)
	public := persist(t, conn, tpm2.TPMRHEndorsement, signingTemplate(), 0x81020000)
	done()
	want, err := tpm2.Pub(*public)
	if err != nil {
		t.Fatal(err)
	}
	r := open(t, tpm.Config{Address: s.Address()})
	k := idevid(t, r)
	if !same(k.Public(), want) {
		t.Error("got another key than the factory's")
	}
	wantSigns(t, k)
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	wantSigns(t, idevid(t, r))
	if _, err := r.Certify(t.Context(), idevid(t, r), nil); err == nil {
		t.Error("certified a key that only its policy lets certify")
	}
	wantSigns(t, create(t, r, rot.P256))
}
