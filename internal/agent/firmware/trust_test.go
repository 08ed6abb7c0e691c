package firmware

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"birthmark/internal/config"
	"birthmark/pkg/clock"
	"birthmark/pkg/fota"
	"birthmark/pkg/fota/bundle"
	bt "birthmark/pkg/fota/bundle/bundletest"
)

// TestFlagsCountInPlaceOfTheDevicesFiles, each for itself. What is wrong with a file that a
// flag names is a mistake of whoever asks; without files of the device nobody is believed.
func TestFlagsCountInPlaceOfTheDevicesFiles(t *testing.T) {
	maker, other := bt.NewPKI(t, "P-256", "P-256"), bt.NewPKI(t, "P-384", "P-384")
	device, dir := t.TempDir(), t.TempDir()
	for path, text := range map[string][]byte{
		filepath.Join(device, bundle.AnchorsFile): bt.PEM(maker.Root.Cert), filepath.Join(device, bundle.IssuersFile): bt.PEM(maker.Issuing.Cert),
		filepath.Join(device, bundle.CRLsFile): inPEM("X509 CRL", bt.CRL(t, maker.Root, nil), bt.CRL(t, maker.Issuing, nil)),
		filepath.Join(dir, "root.pem"):         bt.PEM(other.Root.Cert),
		filepath.Join(dir, "ca.pem"):           bt.PEM(other.Issuing.Cert),
		filepath.Join(dir, "ca.crl"):           bt.CRL(t, other.Issuing, nil),
	} {
		put(t, path, string(text))
	}
	named := func(name string) string { return filepath.Join(dir, name) }
	for _, c := range []struct {
		name            string
		o               Options
		folder          string
		anchor, issuing *x509.Certificate
		crls            int
		mistake, code   string
	}{
		{"no flag", Options{}, device, maker.Root.Cert, maker.Issuing.Cert, 2, "", ""},
		{"--anchors", Options{Anchors: named("root.pem")}, device, other.Root.Cert, maker.Issuing.Cert, 2, "", ""},
		{"--signing-cas", Options{SigningCAs: named("ca.pem")}, device, maker.Root.Cert, other.Issuing.Cert, 2, "", ""},
		{"--crls", Options{CRLs: named("ca.crl")}, device, maker.Root.Cert, maker.Issuing.Cert, 1, "", ""},
		{"--anchors of nothing", Options{Anchors: named("nowhere")}, device, nil, nil, 0, "--anchors: there is no " + named("nowhere"), ""},
		{"--signing-cas of something else", Options{SigningCAs: named("ca.crl")}, device, nil, nil, 0, "--signing-cas: ", ""},
		{"--crls of something else", Options{CRLs: named("ca.pem")}, device, nil, nil, 0, `want only "X509 CRL"`, ""},
		{"no file", Options{}, dir, nil, nil, 0, "", "anchors"},
		{"no file but --anchors", Options{Anchors: named("root.pem")}, dir, nil, nil, 0, "", "issuers"},
		{"no file but these two", Options{Anchors: named("root.pem"), SigningCAs: named("ca.pem")}, dir, nil, nil, 0, "", "crl"},
	} {
		got, err := c.o.trust(clock.System(), []string{c.folder})
		var mistake *config.Error
		var no *fota.Refusal
		switch {
		case c.mistake != "":
			if !errors.As(err, &mistake) || !strings.Contains(err.Error(), c.mistake) {
				t.Errorf("%s: got %v, want a *config.Error with %q", c.name, err, c.mistake)
			}
		case c.code != "":
			if !errors.As(err, &no) || no.Stage != fota.StageChain || no.Code != c.code {
				t.Errorf("%s: got %v, want a refusal at chain, %s", c.name, err, c.code)
			}
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		case !got.Anchors[0].Equal(c.anchor) || !got.Issuers[0].Equal(c.issuing) || len(got.CRLs) != c.crls:
			t.Errorf("%s: got anchor %s, CA %s, %d CRLs; want %s, %s, %d", c.name, got.Anchors[0].Subject, got.Issuers[0].Subject, len(got.CRLs),
				c.anchor.Subject, c.issuing.Subject, c.crls)
		case got.Now.IsZero() || got.Build == nil:
			t.Errorf("%s: it is not said when it is, or how chains are built", c.name)
		}
	}
}

// TestAClockOfThePastIsNotBelieved on a device that starts in 1970: a CRL is judged at
// the time of the build.
func TestAClockOfThePastIsNotBelieved(t *testing.T) {
	dir := t.TempDir()
	maker := bt.NewPKI(t, "P-256", "P-256")
	put(t, filepath.Join(dir, bundle.AnchorsFile), string(bt.PEM(maker.Root.Cert)))
	put(t, filepath.Join(dir, bundle.IssuersFile), string(bt.PEM(maker.Issuing.Cert)))
	put(t, filepath.Join(dir, bundle.CRLsFile), string(bt.CRL(t, maker.Root, nil)))
	built := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	trust, err := new(Options).trust(clock.Fixed(built, time.Time{}, time.Unix(0, 0), false), []string{dir})
	if err != nil {
		t.Fatal(err)
	}
	if !trust.Now.Equal(built) {
		t.Errorf("got %v, want %v", trust.Now, built)
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func inPEM(kind string, ders ...[]byte) (text []byte) {
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	return text
}
