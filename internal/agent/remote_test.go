package agent_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"birthmark/internal/agent/agenttest"
	"birthmark/internal/agent/firmware"
	"birthmark/internal/agent/update"
	"birthmark/pkg/fota/bundle"
	bt "birthmark/pkg/fota/bundle/bundletest"
)

// TestABundleIsFetchedAsWhoTheDeviceIs: the server is verified by its own anchors, and
// shown the everyday certificate, whose key is in the TPM.
func TestABundleIsFetchedAsWhoTheDeviceIs(t *testing.T) {
	dir := t.TempDir()
	maker := bt.NewPKI(t, "P-256", "P-256")
	good := bt.NewRelease("acme-gw", "1.1.0+sv2").Parts(t, maker.Signer).Bytes()
	var asked atomic.Value
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.TLS.PeerCertificates[0].Subject.CommonName)
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(good))
	}))
	server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	server.StartTLS()
	defer server.Close()
	for name, text := range map[string][]byte{
		"server.pem":       bt.PEM(server.Certificate()),
		bundle.AnchorsFile: bt.PEM(maker.Root.Cert),
		bundle.IssuersFile: bt.PEM(maker.Issuing.Cert),
		bundle.CRLsFile: bytes.Join([][]byte{
			pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: bt.CRL(t, maker.Root, nil)}),
			pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: bt.CRL(t, maker.Issuing, nil)}),
		}, nil),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	folders := firmware.Folders
	firmware.Folders = []string{dir}
	t.Cleanup(func() { firmware.Folders = folders })

	bench := agenttest.StartLab(t)
	p := newPatient(t, bench, "dev-remote")
	p.cfg.Firmware.ServerAnchors = filepath.Join(dir, "server.pem")
	p.agent.Close()
	p.reopen()
	p.agent.UpdateBy(noInstaller{}, func(context.Context) error { return nil })
	p.start()
	p.awaitService()
	order := func(ctx context.Context) error {
		from, err := update.ParseFrom(server.URL + "/release.raucb")
		if err == nil {
			_, err = p.agent.Updates().Order(ctx, from, false)
		}
		return err
	}
	// What was fetched is believed, and then there is nobody to install it.
	if err := order(t.Context()); !errors.Is(err, os.ErrNotExist) || asked.Load() != "dev-remote" {
		t.Errorf("%v, after %v had asked; want %v, and dev-remote", err, asked.Load(), os.ErrNotExist)
	}
	// A server of the owner's broker is not one for bundles.
	if err := os.WriteFile(filepath.Join(dir, "server.pem"), mustRead(t, p.cfg.Broker.Anchors), 0o600); err != nil {
		t.Fatal(err)
	}
	asked.Store("nobody")
	soon, cancel := context.WithTimeout(t.Context(), 3*time.Second) // of a minute that it is tried
	defer cancel()
	if err := order(soon); err == nil || asked.Load() != "nobody" {
		t.Errorf("%v, after %v had asked; want an error, and nobody", err, asked.Load())
	}
	p.stop()
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
