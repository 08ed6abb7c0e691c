package firmware

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"birthmark/internal/config"
	"birthmark/pkg/clock"
	bt "birthmark/pkg/fota/bundle/bundletest"
)

// TestWhomADeviceBelieves tells which files count, of those that a device may have.
func TestWhomADeviceBelieves(t *testing.T) {
	maker, other := bt.NewPKI(t, "P-256", "P-256"), bt.NewPKI(t, "P-384", "P-384")
	anchors, cas := inPEM("CERTIFICATE", maker.Root.Cert.Raw), inPEM("CERTIFICATE", maker.Issuing.Cert.Raw)
	others := inPEM("CERTIFICATE", other.Root.Cert.Raw)
	lists := inPEM("X509 CRL", bt.CRL(t, maker.Root, nil), bt.CRL(t, maker.Issuing, nil))
	named := filepath.Join(t.TempDir(), "named.pem")
	put(t, named, others)
	for _, c := range []struct {
		name     string
		etc, usr map[string]string
		o        Options
		anchor   string // its serial number
		crls     int
		want     string // in the error
	}{
		{"the image's", nil, map[string]string{AnchorsFile: anchors, SigningCAsFile: cas, CRLsFile: lists}, Options{}, maker.Root.Cert.SerialNumber.String(), 2, ""},
		{"without CRLs", nil, map[string]string{AnchorsFile: anchors, SigningCAsFile: cas}, Options{}, maker.Root.Cert.SerialNumber.String(), 0, ""},
		{"the administrator's before the image's", map[string]string{AnchorsFile: others}, map[string]string{AnchorsFile: anchors, SigningCAsFile: cas}, Options{}, other.Root.Cert.SerialNumber.String(), 0, ""},
		{"a file that is named before both", map[string]string{AnchorsFile: anchors, SigningCAsFile: cas}, nil, Options{Anchors: named}, other.Root.Cert.SerialNumber.String(), 0, ""},
		{"nothing", nil, nil, Options{}, "", 0, "--anchors is missing"},
		{"no signing CAs", map[string]string{AnchorsFile: anchors}, nil, Options{}, "", 0, "--signing-cas is missing"},
		{"an empty file is not passed over", map[string]string{AnchorsFile: ""}, map[string]string{AnchorsFile: anchors, SigningCAsFile: cas}, Options{}, "", 0, "no PEM certificate in it"},
		{"nor one that cannot be read", map[string]string{AnchorsFile + "/x": ""}, map[string]string{AnchorsFile: anchors, SigningCAsFile: cas}, Options{}, "", 0, "not a file"},
		{"an empty list of CRLs", map[string]string{AnchorsFile: anchors, SigningCAsFile: cas, CRLsFile: ""}, nil, Options{}, "", 0, "no CRL in it"},
		{"half a CRL", map[string]string{AnchorsFile: anchors, SigningCAsFile: cas, CRLsFile: inPEM("X509 CRL", []byte{0x30, 0x03})}, nil, Options{}, "", 0, "cannot read CRL"},
		{"CRLs without end", map[string]string{AnchorsFile: anchors, SigningCAsFile: cas, CRLsFile: strings.Repeat("\n", crlsLimit+1)}, nil, Options{}, "", 0, "more than 4 MiB"},
	} {
		t.Run(c.name, func(t *testing.T) {
			etc, usr := t.TempDir(), t.TempDir()
			for dir, files := range map[string]map[string]string{etc: c.etc, usr: c.usr} {
				for name, text := range files {
					put(t, filepath.Join(dir, name), text)
				}
			}
			trust, err := c.o.trust(clock.System(), []string{etc, usr})
			var mistake *config.Error
			switch {
			case c.want != "":
				if !errors.As(err, &mistake) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want a *config.Error with %q", err, c.want)
				}
				return
			case err != nil:
				t.Fatal(err)
			}
			if got := trust.Anchors[0].SerialNumber.String(); got != c.anchor {
				t.Errorf("got anchor %s, want %s", got, c.anchor)
			}
			if len(trust.CRLs) != c.crls {
				t.Errorf("got %d CRLs, want %d", len(trust.CRLs), c.crls)
			}
			if trust.Now.IsZero() || trust.Build == nil {
				t.Error("it is not said when it is, or how chains are built")
			}
		})
	}
}

// TestFilesOutOfOrderAreNotPassedOver in favour of the image's: somebody meant them to
// be used.
func TestFilesOutOfOrderAreNotPassedOver(t *testing.T) {
	usr := t.TempDir()
	put(t, filepath.Join(usr, AnchorsFile), "")
	link, file := t.TempDir(), filepath.Join(t.TempDir(), "firmware")
	if err := os.Symlink("nowhere", filepath.Join(link, AnchorsFile)); err != nil {
		t.Fatal(err)
	}
	put(t, file, "")
	for name, etc := range map[string]string{"a link that leads nowhere": link, "a folder that is a file": file} {
		if got, want := find([]string{etc, usr}, AnchorsFile), filepath.Join(etc, AnchorsFile); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

// TestAClockOfThePastIsNotBelieved on a device that starts in 1970: a CRL is judged at
// the time of the build.
func TestAClockOfThePastIsNotBelieved(t *testing.T) {
	dir := t.TempDir()
	maker := bt.NewPKI(t, "P-256", "P-256")
	put(t, filepath.Join(dir, AnchorsFile), inPEM("CERTIFICATE", maker.Root.Cert.Raw))
	put(t, filepath.Join(dir, SigningCAsFile), inPEM("CERTIFICATE", maker.Issuing.Cert.Raw))
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
