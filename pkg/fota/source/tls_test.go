package source

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// newDevice is a self-signed certificate for a device, and its key.
func newDevice(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "sensor-1"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// A real server on a real network, which wants to know the device and once resets the
// connection in the middle of an answer.
func TestADeviceShowsItsCertificate(t *testing.T) {
	device := newDevice(t)
	known := x509.NewCertPool()
	known.AddCert(device.Leaf)
	var once sync.Once
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if name := r.TLS.PeerCertificates[0].Subject.CommonName; name != "sensor-1" {
			t.Errorf("got a request of %q, want sensor-1", name)
		}
		if partFor(r).first > 500_000 {
			once.Do(func() {
				c, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				p := partFor(r)
				fmt.Fprintf(c, "HTTP/1.1 206 OK\r\nETag: \"v1\"\r\nContent-Range: bytes %d-%d/%d\r\n\r\n", p.first, p.last, p.total)
				c.Write(p.body[:10_000])
				tcp := c.(*tls.Conn).NetConn().(*net.TCPConn)
				tcp.SetLinger(0) // so that closing resets
				tcp.Close()
				panic(http.ErrAbortHandler)
			})
		}
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(released))
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: known}
	s.StartTLS()
	t.Cleanup(s.Close)

	r, err := HTTP(t.Context(), s.URL, Options{TLS: &tls.Config{RootCAs: trusted, Certificates: []tls.Certificate{device}}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := sum(r, 4096)
	if want := sha256.Sum256(released); err != nil || got != want {
		t.Errorf("got %x and error %v, want %x", got, err, want)
	}
	if c := r.Counters(); c.Retries != 1 {
		t.Errorf("got %+v, want 1 retry after the reset", c)
	}
}

// Its certificate would have to be verified by what is meant for the server.
func TestAProxyOverTLSIsNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, opts := serve(t, file(released))
		_, err := HTTP(t.Context(), "https://elsewhere.test/release.raucb", opts)
		if kind(err) != "unavailable" || !strings.Contains(err.Error(), "only http and socks5") || strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v, want that only other proxies can be used, and no secret", err)
		}
		if n := m.Dials(); n != 0 {
			t.Errorf("got %d connections, want none", n)
		}
	})
}
