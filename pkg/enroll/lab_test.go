package enroll

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"birthmark/internal/lab/ca"
	"birthmark/internal/lab/est"
	"birthmark/pkg/clock"
)

// startLab starts the lab's EST server for a CA of its own.
func startLab(t *testing.T, name string, conf est.Config) (*est.Server, *ca.CA) {
	t.Helper()
	authority, err := ca.Open(filepath.Join(t.TempDir(), name), name)
	must(err)
	t.Cleanup(func() { authority.Close() })
	conf.CA, conf.Log = authority, slog.New(slog.DiscardHandler)
	s, err := est.Start("127.0.0.1:0", conf)
	must(err)
	t.Cleanup(func() { s.Close() })
	return s, authority
}

// The life of a device at servers that this package's tests did not write: born with
// a one-time password and a fingerprint, owned under its birth certificate, renewed
// with another key under the owner's.
func TestALifeAtTheLab(t *testing.T) {
	var held atomic.Bool
	maker, makerCA := startLab(t, "maker", est.Config{Profile: ca.Birth()})
	owner, ownerCA := startLab(t, "owner", est.Config{
		Profile: ca.Device(0), Clients: makerCA.Chain(),
		Hold: func(*x509.CertificateRequest) time.Duration {
			if held.CompareAndSwap(false, true) {
				return 7 * time.Second
			}
			return 0
		},
	})
	password, err := makerCA.Passwords().New("sensor-1")
	must(err)
	client := func(conf Config) *Client {
		conf.Clock = clock.Host()
		c, err := New(conf)
		must(err)
		return c
	}
	credential := func(req Request, chain []*x509.Certificate) *tls.Certificate {
		cert := &tls.Certificate{PrivateKey: req.Key}
		for _, c := range chain {
			cert.Certificate = append(cert.Certificate, c.Raw)
		}
		return cert
	}

	pin := sha256.Sum256(makerCA.Root().Raw)
	birth := ask()
	at := Config{URL: maker.URL(), Pin: pin[:], Username: "sensor-1", Password: "guessed"}
	_, err = client(at).Enroll(t.Context(), birth)
	check(t, err, "refused", "401")
	at.Password = password
	idevid, err := client(at).Enroll(t.Context(), birth)
	if err != nil {
		t.Fatal(err)
	}

	at = Config{URL: owner.URL(), Anchors: []*x509.Certificate{ownerCA.Root()}, Certificate: credential(birth, idevid.Chain)}
	c := client(at)
	if _, err := c.CSRAttrs(t.Context()); err != nil {
		t.Error(err)
	}
	first := askFor(newKey())
	_, err = c.Enroll(t.Context(), first)
	check(t, err, "pending", "7s")
	ldevid, err := c.Enroll(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}

	at.Certificate = credential(first, ldevid.Chain)
	second := askFor(newKey())
	second.Current = ldevid.Chain[0]
	renewed, err := client(at).Reenroll(t.Context(), second)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(renewed.Chain); n != 2 || !renewed.Chain[1].Equal(ownerCA.Issuing()) || renewed.Changes != nil {
		t.Errorf("got a chain of %d and changes %q, want the certificate and its issuer, and none", n, renewed.Changes)
	}

	at.Anchors = []*x509.Certificate{makerCA.Root()}
	_, err = client(at).Reenroll(t.Context(), second)
	check(t, err, "untrusted", "unknown authority")
}
