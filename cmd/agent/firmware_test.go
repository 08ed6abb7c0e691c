package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"birthmark/internal/cli/clitest"
	bt "birthmark/pkg/fota/bundle/bundletest"
)

// TestFirmware runs `birthmark firmware` on bundles that `rauc bundle` made, and on what
// became of them.
//
// In a script, $B is a folder with the bundles; $ANCHORS, $CAS, $CRLS and $STALE (CRLs
// that ended an hour ago) belong to their maker. $URL is a server that has them, of
// whose paths below /whole answer no ranges; $MUTUAL one that wants to know who asks,
// for which there are $CERT and $KEY; $SERVER verifies both, and at $NOBODY is none. $SIGNER_… is what a report
// says of who signed good.raucb, $ROOT_HASH and $SIZE what it says of the bundle. The command
// `exits CODE program …` is there, too.
func TestFirmware(t *testing.T) {
	dir := t.TempDir()
	vars := makeBundles(t, dir)
	for name, value := range serveBundles(t, dir) {
		vars[name] = value
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/firmware",
		Setup: func(env *testscript.Env) error {
			for name, value := range vars {
				env.Setenv(name, value)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": clitest.Exits},
	})
}

// makeBundles makes bundles in dir, and says what a script has to know.
func makeBundles(t *testing.T, dir string) map[string]string {
	t.Helper()
	maker, stranger := bt.NewPKI(t, "P-256", "P-256"), bt.NewPKI(t, "P-384", "P-384")
	sibling := bt.Issue(t, bt.Issue(t, maker.Root, bt.Key(t, "P-256", "sibling"), "Another CA", bt.CA), bt.Key(t, "P-256", "signer"), "Releases", nil)
	mail := bt.Issue(t, maker.Issuing, bt.Key(t, "P-256", "mail"), "Mail", func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection}
	})
	put := func(name string, b []byte) string {
		t.Helper()
		write(t, filepath.Join(dir, name), string(b))
		return filepath.Join(dir, name)
	}
	release := bt.NewRelease("acme-gw", "1.1.0+sv2")
	good := release.Rauc(t, maker.Signer, "-comp zstd")
	put("good.raucb", good)
	put("foreign.raucb", release.Rauc(t, stranger.Signer, "-comp zstd"))
	put("sibling.raucb", release.Rauc(t, sibling, "-comp zstd"))
	put("mail.raucb", release.Rauc(t, mail, "-comp zstd"))
	plain := release
	plain.Format = "plain"
	put("plain.raucb", plain.Rauc(t, maker.Signer, "-comp gzip"))
	odd := release
	odd.Compatible += "\ndescription=a release\u202e, by\u200b us"
	put("odd.raucb", odd.Rauc(t, maker.Signer, "-comp xz"))

	size := len(good)
	message := int(good[size-2])<<8 | int(good[size-1])
	for name, at := range map[string]int{"payload": 4096, "tree": size - 8 - message - 4096, "signature": size - 8 - 20, "manifest": bytes.LastIndex(good, []byte("acme-gw")), "length": size - 3} {
		bad := bytes.Clone(good)
		bad[at] ^= 1
		put("tampered-"+name+".raucb", bad)
	}
	put("truncated.raucb", good[:size-1000])
	put("longer.raucb", append(bytes.Clone(good), 0))
	put("text.raucb", bt.Text(10_000))
	put("empty.raucb", nil)

	root := regexp.MustCompile("verity-hash=([0-9a-f]{64})").FindSubmatch(good)
	if root == nil {
		t.Fatal("no verity-hash in the bundle")
	}
	cert := maker.Signer.Cert
	sum := sha256.Sum256(cert.Raw)
	ended := func(l *x509.RevocationList) { l.NextUpdate = time.Now().Add(-time.Hour) }
	return map[string]string{
		"B":                dir,
		"ANCHORS":          put("anchors.pem", inPEM("CERTIFICATE", maker.Root.Cert.Raw)),
		"CAS":              put("cas.pem", inPEM("CERTIFICATE", maker.Issuing.Cert.Raw)),
		"CRLS":             put("crls.pem", inPEM("X509 CRL", bt.CRL(t, maker.Root, nil), bt.CRL(t, maker.Issuing, nil))),
		"STALE":            put("stale.pem", inPEM("X509 CRL", bt.CRL(t, maker.Root, nil), bt.CRL(t, maker.Issuing, ended))),
		"REVOKED":          put("revoked.pem", inPEM("X509 CRL", bt.CRL(t, maker.Root, nil), bt.CRL(t, maker.Issuing, nil, maker.Signer))),
		"DER":              put("issuing.crl", bt.CRL(t, maker.Issuing, nil)),
		"SIGNER_SERIAL":    cert.SerialNumber.Text(16),
		"SIGNER_SHA256":    hex.EncodeToString(sum[:]),
		"SIGNER_NOT_AFTER": cert.NotAfter.UTC().Format(time.RFC3339),
		"SIGNER_UNTIL":     cert.NotAfter.UTC().Format(time.DateOnly),
		"ROOT_HASH":        string(root[1]),
		"ROOTFS_SHA256":    fmt.Sprintf("%x", sha256.Sum256(release.Files["rootfs.img"])),
		"APPFS_SHA256":     fmt.Sprintf("%x", sha256.Sum256(release.Files["appfs.img"])),
		"SIZE":             fmt.Sprint(size),
	}
}

// serveBundles serves the bundles in dir.
func serveBundles(t *testing.T, dir string) map[string]string {
	t.Helper()
	serve := func(w http.ResponseWriter, r *http.Request) {
		name := path.Base(r.URL.Path)
		text, err := os.ReadFile(filepath.Join(dir, name))
		switch {
		case err != nil:
			http.NotFound(w, r)
			return
		case strings.HasPrefix(r.URL.Path, "/whole/"):
			r.Header.Del("Range")
		}
		w.Header().Set("ETag", `"`+name+`"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(text))
	}
	start := func(auth tls.ClientAuthType) *httptest.Server {
		s := httptest.NewUnstartedServer(http.HandlerFunc(serve))
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.TLS = &tls.Config{ClientAuth: auth}
		s.StartTLS()
		t.Cleanup(s.Close)
		return s
	}
	open, mutual := start(tls.NoClientCert), start(tls.RequireAnyClientCert)

	nobody := httptest.NewTLSServer(nil)
	nobody.Close()

	key := bt.Key(t, "P-256", "somebody")
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	vars := map[string]string{"URL": open.URL, "MUTUAL": mutual.URL, "NOBODY": nobody.URL}
	for name, text := range map[string][]byte{
		"SERVER": inPEM("CERTIFICATE", open.Certificate().Raw),
		"CERT":   inPEM("CERTIFICATE", bt.Issue(t, nil, key, "Somebody", nil).Cert.Raw),
		"KEY":    inPEM("PRIVATE KEY", der),
	} {
		vars[name] = filepath.Join(dir, strings.ToLower(name)+".pem")
		write(t, vars[name], string(text))
	}
	return vars
}

func inPEM(kind string, ders ...[]byte) (text []byte) {
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	return text
}
