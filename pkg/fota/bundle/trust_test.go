package bundle

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"birthmark/pkg/cms"
	"birthmark/pkg/fota"
	bt "birthmark/pkg/fota/bundle/bundletest"
)

// keepers are those who sign, and what a device has of them.
type keepers struct {
	*bt.PKI
	anchors, issuers, crls string
}

func newKeepers(t testing.TB, curve string) keepers {
	pki := bt.NewPKI(t, curve, curve)
	return keepers{pki, string(bt.PEM(pki.Root.Cert)), string(bt.PEM(pki.Issuing.Cert)), crlPEM(bt.CRL(t, pki.Root, nil)) + crlPEM(bt.CRL(t, pki.Issuing, nil))}
}

func crlPEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

// files puts texts into a folder, by name.
type files map[string]string

func (f files) in(t *testing.T, dir string) {
	t.Helper()
	for name, text := range f {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWhomFilesBelieve tells which files count, of those that a device may have.
func TestWhomFilesBelieve(t *testing.T) {
	maker, other := newKeepers(t, "P-256"), newKeepers(t, "P-384")
	image := files{AnchorsFile: maker.anchors, IssuersFile: maker.issuers, CRLsFile: maker.crls}
	for _, c := range []struct {
		name           string
		etc            files
		anchor, issuer *x509.Certificate
		crls           int
	}{
		{"the image's", nil, maker.Root.Cert, maker.Issuing.Cert, 2},
		{"another anchor before the image's", files{AnchorsFile: other.anchors}, other.Root.Cert, maker.Issuing.Cert, 2},
		{"another CA before the image's", files{IssuersFile: other.issuers}, maker.Root.Cert, other.Issuing.Cert, 2},
		{"more CRLs, and the image's", files{CRLsFile: other.crls}, maker.Root.Cert, maker.Issuing.Cert, 4},
		{"a CRL in DER, and the image's", files{CRLsFile: string(bt.CRL(t, other.Root, nil))}, maker.Root.Cert, maker.Issuing.Cert, 3},
		{"with text between", files{AnchorsFile: "The root:\n" + other.anchors + "That was it.\n"}, other.Root.Cert, maker.Issuing.Cert, 2},
	} {
		etc, usr := t.TempDir(), t.TempDir()
		c.etc.in(t, etc)
		image.in(t, usr)
		got, err := TrustIn(etc, usr).Read()
		switch {
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		case len(got.Anchors) != 1 || !got.Anchors[0].Equal(c.anchor):
			t.Errorf("%s: got %d anchors, or others than wanted", c.name, len(got.Anchors))
		case len(got.Issuers) != 1 || !got.Issuers[0].Equal(c.issuer):
			t.Errorf("%s: got %d CAs, or others than wanted", c.name, len(got.Issuers))
		case len(got.CRLs) != c.crls:
			t.Errorf("%s: got %d CRLs, want %d", c.name, len(got.CRLs), c.crls)
		}
	}
}

// TestFilesOutOfOrderAreRefused, each of the three, and none is passed over in favour of
// the image's, which is in order.
func TestFilesOutOfOrderAreRefused(t *testing.T) {
	maker := newKeepers(t, "P-256")
	image := files{AnchorsFile: maker.anchors, IssuersFile: maker.issuers, CRLsFile: maker.crls}
	key := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}))
	for file, code := range map[string]string{AnchorsFile: "anchors", IssuersFile: "issuers", CRLsFile: "crl"} {
		good, kind := image[file], "CERTIFICATE"
		if file == CRLsFile {
			kind = "X509 CRL"
		}
		for _, c := range []struct{ name, text, want string }{
			{"nothing", "", "it holds no \"" + kind + "\" in PEM"},
			{"text", "trust me\n", "it holds no"},
			{"something else", key, `it holds a "PRIVATE KEY", want only "` + kind + `"`},
			{"a key behind it", good + key, "it holds a \"PRIVATE KEY\""},
			{"certificates and CRLs", maker.anchors + maker.crls, "it holds a "},
			{"cut off", strings.TrimSuffix(good, "-----END "+kind+"-----\n"), "it begins "},
			{"a damaged one behind it", good + strings.Replace(good, "\nM", "\n*", 1), "it begins "},
			{"with headers", strings.Replace(good, "-----\n", "-----\nProc-Type: 4,ENCRYPTED\n\n", 1), "it holds a "},
			{"no DER in it", string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: []byte("x")})), "number 1 in it: "},
			{"DER with something behind it", string(maker.Root.Cert.Raw) + "x", ""},
			{"long", strings.Repeat("\n", trustLimit+1), "more than 2 MiB in all"},
			{"more than are read", strings.Repeat(good, trustCount+1), "limit 32"},
		} {
			etc, usr := t.TempDir(), t.TempDir()
			image.in(t, usr)
			files{file: c.text}.in(t, etc)
			_, err := TrustIn(etc, usr).Read()
			wantRefusal(t, file+" with "+c.name, err, fota.StageChain, code)
			if err != nil && (!strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), filepath.Join(etc, file))) {
				t.Errorf("%s with %s: got %v, want the path and %q", file, c.name, err, c.want)
			}
		}
		for what, put := range map[string]func(path string) error{
			"a link that leads nowhere": func(path string) error { return os.Symlink("nowhere", path) },
			"a pipe":                    func(path string) error { return syscall.Mkfifo(path, 0o600) },
			"a folder":                  func(path string) error { return os.Mkdir(path, 0o700) },
		} {
			etc, usr := t.TempDir(), t.TempDir()
			image.in(t, usr)
			if err := put(filepath.Join(etc, file)); err != nil {
				t.Fatal(err)
			}
			_, err := TrustIn(etc, usr).Read()
			wantRefusal(t, file+" is "+what, err, fota.StageChain, code)
		}
		dir := t.TempDir()
		image.in(t, dir)
		if err := os.Remove(filepath.Join(dir, file)); err != nil {
			t.Fatal(err)
		}
		_, err := TrustIn("/nowhere", dir).Read()
		wantRefusal(t, "no "+file, err, fota.StageChain, code)
		if want := "there is no /nowhere/" + file + ", and no " + filepath.Join(dir, file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %s: got %v, want %q", file, err, want)
		}
	}
	usr, folder := t.TempDir(), filepath.Join(t.TempDir(), "firmware")
	image.in(t, usr)
	files{"firmware": ""}.in(t, filepath.Dir(folder))
	_, err := TrustIn(folder, usr).Read()
	wantRefusal(t, "a folder that is a file", err, fota.StageChain, "anchors")
	_, err = TrustIn().Read()
	wantRefusal(t, "no folder", err, fota.StageChain, "anchors")
}

// TestCRLsOfAllFoldersShareOneLimit, in bytes and in number.
func TestCRLsOfAllFoldersShareOneLimit(t *testing.T) {
	maker := newKeepers(t, "P-256")
	for name, text := range map[string]string{
		"long": maker.crls + strings.Repeat("\n", trustLimit/2),
		"many": strings.Repeat(maker.crls, trustCount/4+1),
	} {
		etc, usr := t.TempDir(), t.TempDir()
		files{AnchorsFile: maker.anchors, IssuersFile: maker.issuers, CRLsFile: text}.in(t, etc)
		if _, err := TrustIn(etc, usr).Read(); err != nil {
			t.Errorf("%s, once: %v", name, err)
		}
		files{CRLsFile: text}.in(t, usr)
		_, err := TrustIn(etc, usr).Read()
		wantRefusal(t, name+", twice", err, fota.StageChain, "crl")
	}
}

// FuzzTrust holds that whatever is read is all that the text begins.
func FuzzTrust(f *testing.F) {
	maker := newKeepers(f, "P-256")
	for _, seed := range []string{"", maker.anchors, maker.anchors + "and\n" + maker.issuers, maker.crls, maker.anchors[:200], "-----BEGIN CERTIFICATE-----\n",
		string(maker.Root.Cert.Raw), string(bt.CRL(f, maker.Root, nil)), "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		certs, err := parseTrust(text, "CERTIFICATE", x509.ParseCertificate)
		if err == nil {
			wantAll(t, text, len(certs))
		}
		crls, err := parseTrust(text, "X509 CRL", cms.ReadCRL)
		if err == nil {
			wantAll(t, text, len(crls))
		}
	})
}

func wantAll(t *testing.T, text []byte, got int) {
	if want := max(1, bytes.Count(text, []byte("-----BEGIN"))); got != want && text[0] != 0x30 {
		t.Errorf("%d were read, want %d", got, want)
	}
}
