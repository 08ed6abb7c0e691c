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
	"errors"
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
	return selfSigned(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
}

// selfSigned is a certificate for a device, and for a server at example.com, and its key.
func selfSigned(t *testing.T, from, until time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "sensor-1"},
		NotBefore: from, NotAfter: until, DNSNames: []string{"example.com"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
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

// TestAServerThatIsNotBelievedIsAnAnswer, and is not asked again in the hope of another one,
// but where waiting may help.
func TestAServerThatIsNotBelievedIsAnAnswer(t *testing.T) {
	no := errors.New("we have heard of him")
	for _, tc := range []struct {
		name    string
		address string
		from    time.Duration // what it shows is good from then on
		until   time.Duration
		change  func(*tls.Config)
		want    string
		says    string
	}{
		{"one that is", address, -time.Hour, time.Hour, nil, "none", ""},
		{"another name", "https://example.org/release.raucb", -time.Hour, time.Hour, nil, "untrusted", "not example.org"},
		{"nobody vouches", address, -time.Hour, time.Hour, func(c *tls.Config) { c.RootCAs = x509.NewCertPool() }, "untrusted", "unknown authority"},
		{"the caller refuses", address, -time.Hour, time.Hour, func(c *tls.Config) {
			c.InsecureSkipVerify = true
			c.VerifyConnection = func(tls.ConnectionState) error { return no }
		}, "untrusted", no.Error()},
		{"expired", address, -2 * time.Hour, -time.Hour, nil, "untrusted", "expired"},
		{"good in a second", address, time.Second, time.Hour, nil, "none", ""},
		{"good in an hour", address, time.Hour, 2 * time.Hour, nil, "unavailable", "not yet valid"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				cert := selfSigned(t, began.Add(tc.from), began.Add(tc.until))
				conf := &tls.Config{RootCAs: x509.NewCertPool()}
				conf.RootCAs.AddCert(cert.Leaf)
				if tc.change != nil {
					tc.change(conf)
				}
				s := &http.Server{Handler: file(released), ErrorLog: log.New(io.Discard, "", 0)}
				defer s.Close()
				m, opts := connect(t, func(l net.Listener) { s.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}})) })
				opts.TLS = conf
				r, err := HTTP(t.Context(), tc.address, opts)
				if kind(err) != tc.want || err != nil && !strings.Contains(err.Error(), tc.says) {
					t.Errorf("got %v, want the kind %s and %q", err, tc.want, tc.says)
				}
				if tc.want == "untrusted" && (m.Dials() != 1 || time.Since(began) > 0) {
					t.Errorf("got %d connections in %v, want one at once", m.Dials(), time.Since(began))
				}
				if err == nil {
					r.Close()
				}
			})
		})
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
