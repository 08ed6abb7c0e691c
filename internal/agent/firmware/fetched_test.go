package firmware

import (
	"bytes"
	"crypto/x509"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"birthmark/pkg/clock"
	"birthmark/pkg/cms"
	"birthmark/pkg/fota/bundle"
	bt "birthmark/pkg/fota/bundle/bundletest"
	"birthmark/pkg/fota/source"
)

// TestBytesFetched bounds what a bundle on a server costs, to look at and to install. Of a
// plain one all has to be read before anything may be believed, and then again.
func TestBytesFetched(t *testing.T) {
	pki := bt.NewPKI(t, "P-256", "P-256")
	c := clock.System()
	trust := &cms.Trust{Anchors: []*x509.Certificate{pki.Root.Cert}, Issuers: []*x509.Certificate{pki.Issuing.Cert}, Now: c.Now(), Build: c.Verify}
	for _, ca := range []*bt.Signer{pki.Root, pki.Issuing} {
		crl, err := cms.ReadCRL(bt.CRL(t, ca, nil))
		if err != nil {
			t.Fatal(err)
		}
		trust.CRLs = append(trust.CRLs, crl)
	}
	release := bt.NewRelease("acme-gw", "1.1.0+sv2")
	// Each block shrinks a bit, and some are tails of files, in a fragment.
	release.Files = map[string][]byte{"rootfs.img": slices.Concat(bt.Noise(6<<20, "rootfs"), bt.Text(6<<20+7000)), "appfs.img": bt.Noise(3<<20+5000, "appfs")}
	for _, c := range []struct {
		format, compression string
		most                float64 // times its size
	}{
		{"verity", "gzip", 1.05}, {"verity", "xz", 1.05}, {"verity", "zstd", 1.05},
		{"plain", "gzip", 2.05}, {"plain", "zstd", 2.05},
	} {
		release.Format = c.format
		files := map[string][]byte{"manifest.raucm": []byte(release.Manifest())}
		for name, text := range release.Files {
			files[name] = text
		}
		whole := bt.Build(t, bt.Squashfs(t, files, "-comp", c.compression), release.Manifest(), c.format, bt.Message{By: pki.Signer}).Bytes()
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"v1"`)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(whole))
		}))
		t.Cleanup(server.Close)
		for what, use := range map[string]func(*bundle.Bundle) error{
			"verify": func(b *bundle.Bundle) error { return b.Verify(t.Context(), nil) },
			"install": func(b *bundle.Bundle) error {
				for _, image := range b.Manifest.Images {
					if err := b.CopyImage(t.Context(), io.Discard, image, nil); err != nil {
						return err
					}
				}
				return nil
			},
		} {
			src, err := source.HTTP(t.Context(), server.URL, source.Options{TLS: server.Client().Transport.(*http.Transport).TLSClientConfig})
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			b, err := bundle.OpenPlain(t.Context(), src, src.Size(), trust, nil)
			if err == nil {
				err = use(b)
			}
			if err != nil {
				t.Fatalf("%s %s, %s: %v", c.format, c.compression, what, err)
			}
			got := src.Counters()
			ratio := float64(got.Fetched) / float64(src.Size())
			t.Logf("%s %s, %s: %.3f times %d bytes in %d requests", c.format, c.compression, what, ratio, src.Size(), got.Requests)
			if ratio > c.most {
				t.Errorf("%s %s, %s: %d bytes of %d were fetched, %.3f times as many, want at most %.2f", c.format, c.compression, what, got.Fetched, src.Size(), ratio, c.most)
			}
		}
	}
}
