package clock

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"slices"
	"testing"
	"time"
)

// A party is a certificate with its key.
type party struct {
	*x509.Certificate
	key *ecdsa.PrivateKey
}

// issue makes a certificate for name; from and to are its dates. Without a parent
// it is a root, without hosts a CA, else a server.
func issue(tb testing.TB, parent *party, name string, from, to time.Time, hosts ...string) *party {
	tb.Helper()
	return issueFor(tb, x509.ExtKeyUsageServerAuth, parent, name, from, to, hosts...)
}

func issueFor(tb testing.TB, usage x509.ExtKeyUsage, parent *party, name string, from, to time.Time, hosts ...string) *party {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: from, NotAfter: to, DNSNames: hosts,
		BasicConstraintsValid: true, IsCA: hosts == nil,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	if hosts != nil {
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{usage}
	}
	if parent == nil {
		parent = &party{tmpl, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent.Certificate, key.Public(), parent.key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return &party{cert, key}
}

// A server that was set up half a year after the device's software was built:
// root and issuing CA are old, the certificate is young and lives 90 days.
type world struct{ root, issuing, leaf *party }

func newWorld(tb testing.TB) world {
	var w world
	w.root = issue(tb, nil, "root", build.AddDate(-2, 0, 0), build.AddDate(20, 0, 0))
	w.issuing = issue(tb, w.root, "issuing", build.AddDate(-1, 0, 0), build.AddDate(9, 0, 0))
	born := build.AddDate(0, 6, 0)
	w.leaf = issue(tb, w.issuing, "server", born, born.Add(90*day), "est.test")
	return w
}

func (w world) verify(c *Clock, usage ...x509.ExtKeyUsage) ([]*x509.Certificate, error) {
	return c.Verify(w.leaf.Certificate, []*x509.Certificate{w.issuing.Certificate}, []*x509.Certificate{w.root.Certificate}, usage...)
}

// Whatever an unsynchronised clock says, the chain of a server that works today
// is accepted: the dates of the chain speak, not the clock.
func TestVerifyWithoutTrustIgnoresTheClock(t *testing.T) {
	w := newWorld(t)
	for _, tc := range clocks {
		chain, err := w.verify(Fixed(build, time.Time{}, tc.now, false), x509.ExtKeyUsageServerAuth)
		if err != nil {
			t.Errorf("clock says %s: %v", tc.name, err)
			continue
		}
		want := []*x509.Certificate{w.leaf.Certificate, w.issuing.Certificate, w.root.Certificate}
		if !slices.EqualFunc(chain, want, (*x509.Certificate).Equal) {
			t.Errorf("clock says %s: chain of %d, want leaf, issuing, root", tc.name, len(chain))
		}
	}
}

// A synchronised clock is believed, whatever it says; only the floor is still a
// floor.
func TestVerifyWithTrustBelievesTheClock(t *testing.T) {
	w := newWorld(t)
	for _, tc := range clocks {
		if _, err := w.verify(Fixed(build, time.Time{}, tc.now, true)); err == nil {
			t.Errorf("clock says %s, synchronised: accepted, want refused", tc.name)
		}
	}
	during := w.leaf.NotBefore.Add(day)
	if _, err := w.verify(Fixed(build, time.Time{}, during, true)); err != nil {
		t.Errorf("clock within the validity, synchronised: %v", err)
	}
	if _, err := w.verify(Fixed(build, during, time.Unix(0, 0), true)); err != nil {
		t.Errorf("clock says 1970, synchronised, floor within the validity: %v", err)
	}
}

// The moments of an unsynchronised clock, one row a certificate of the chain.
func TestVerifyWithoutTrust(t *testing.T) {
	years := func(n int) time.Time { return build.AddDate(n, 0, 0) }
	for _, tc := range []struct {
		name                                     string
		floor                                    time.Time
		rootFrom, rootTo, caFrom, caTo, from, to time.Time
		ok                                       bool
	}{
		{"all valid at the floor", years(1), years(-1), years(9), years(-1), years(9), years(0), years(2), true},
		{"leaf younger than the floor", years(1), years(-1), years(9), years(-1), years(9), years(2), years(3), true},
		{"leaf ended before the floor", years(3), years(-1), years(9), years(-1), years(9), years(0), years(2), false},
		{"issuing CA ended before the floor", years(3), years(-1), years(9), years(-1), years(2), years(0), years(4), false},
		{"root ended before the floor", years(3), years(-1), years(2), years(-1), years(9), years(0), years(4), false},
		{"issuing CA younger than the leaf", years(0), years(-1), years(9), years(2), years(9), years(1), years(3), true},
		{"root younger than all", years(0), years(3), years(9), years(2), years(9), years(1), years(4), true},
		{"issuing CA begins after the leaf ended", years(0), years(-1), years(9), years(3), years(9), years(1), years(2), false},
		{"leaf begins after the issuing CA ended", years(0), years(-1), years(9), years(-1), years(1), years(2), years(3), false},
		{"leaf just below the horizon", years(0), years(-1), years(50), years(-1), years(50), years(15), years(16), true},
		{"leaf beyond the horizon", years(0), years(-1), years(50), years(-1), years(50), years(15).Add(time.Second), years(16), false},
		{"issuing CA beyond the horizon", years(0), years(-1), years(50), years(16), years(50), years(1), years(20), false},
		{"never ends", years(14), years(-1), years(50), years(-1), years(50), years(0), clocks[len(clocks)-1].now, true},
	} {
		root := issue(t, nil, "root", tc.rootFrom, tc.rootTo)
		ca := issue(t, root, "issuing", tc.caFrom, tc.caTo)
		w := world{root, ca, issue(t, ca, "leaf", tc.from, tc.to, "est.test")}
		if _, err := w.verify(Fixed(build, tc.floor, time.Unix(0, 0), false)); (err == nil) != tc.ok {
			t.Errorf("%s: error %v, want accepted %v", tc.name, err, tc.ok)
		}
	}
}

func TestVerifyRefusals(t *testing.T) {
	w := newWorld(t)
	other := issue(t, nil, "root", w.root.NotBefore, w.root.NotAfter) // same name, another key
	young := issue(t, nil, "unrelated", build.AddDate(40, 0, 0), build.AddDate(50, 0, 0))
	certs := func(parties ...*party) (list []*x509.Certificate) {
		for _, p := range parties {
			list = append(list, p.Certificate)
		}
		return list
	}
	for _, tc := range []struct {
		name                 string
		intermediates, roots []*x509.Certificate
		usage                x509.ExtKeyUsage
	}{
		{"another root of the same name", certs(w.issuing), certs(other), x509.ExtKeyUsageServerAuth},
		{"no roots at all", certs(w.issuing), nil, x509.ExtKeyUsageServerAuth},
		{"no way to the root", nil, certs(w.root), x509.ExtKeyUsageServerAuth},
		{"for another use", certs(w.issuing), certs(w.root), x509.ExtKeyUsageClientAuth},
		{"too many certificates", slices.Repeat(certs(w.issuing), chainLimit+1), certs(w.root), x509.ExtKeyUsageServerAuth},
		{"a distraction from the far future", certs(young), certs(w.root), x509.ExtKeyUsageServerAuth},
	} {
		for _, trusted := range []bool{true, false} {
			c := Fixed(build, w.leaf.NotBefore, w.leaf.NotBefore.Add(day), trusted)
			chain, err := c.Verify(w.leaf.Certificate, tc.intermediates, tc.roots, tc.usage)
			var refused *VerifyError
			if !errors.As(err, &refused) || chain != nil {
				t.Errorf("%s, synchronised %v: chain of %d and error %v, want a VerifyError", tc.name, trusted, len(chain), err)
			} else if refused.Subject != "CN=server" || refused.Trusted != trusted {
				t.Errorf("%s: error is about %q, synchronised %v", tc.name, refused.Subject, refused.Trusted)
			}
		}
	}
	// What is not needed for the chain cannot spoil it.
	c := Fixed(build, time.Time{}, time.Unix(0, 0), false)
	if _, err := c.Verify(w.leaf.Certificate, certs(young, w.issuing), certs(w.root)); err != nil {
		t.Errorf("an unneeded certificate from the far future: %v", err)
	}
	var unknown x509.UnknownAuthorityError
	if _, err := c.Verify(w.leaf.Certificate, certs(young), certs(w.root)); !errors.As(err, &unknown) {
		t.Errorf("got %v, want crypto/x509's reason within", err)
	}
}

// handshake lets a client with configuration conf meet the server of w.
func (w world) handshake(conf *tls.Config) error {
	near, far := net.Pipe()
	defer near.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		defer far.Close()
		cert := tls.Certificate{Certificate: [][]byte{w.leaf.Raw, w.issuing.Raw}, PrivateKey: w.leaf.key}
		// The client's verdict is what counts.
		_ = tls.Server(far, &tls.Config{Certificates: []tls.Certificate{cert}}).Handshake()
	}()
	err := tls.Client(near, conf).Handshake()
	near.Close()
	<-served
	return err
}

func TestTLS(t *testing.T) {
	w := newWorld(t)
	other := issue(t, nil, "root", w.root.NotBefore, w.root.NotAfter)
	for _, tc := range clocks {
		c := Fixed(build, time.Time{}, tc.now, false)
		if err := w.handshake(c.TLS([]*x509.Certificate{w.root.Certificate}, "est.test")); err != nil {
			t.Errorf("clock says %s: %v", tc.name, err)
		}
		for name, conf := range map[string]*tls.Config{
			"another root":      c.TLS([]*x509.Certificate{other.Certificate}, "est.test"),
			"no root":           c.TLS(nil, "est.test"),
			"another host name": c.TLS([]*x509.Certificate{w.root.Certificate}, "est.example"),
			"no host name":      c.TLS([]*x509.Certificate{w.root.Certificate}, ""),
			"floor after its end": Fixed(build, w.leaf.NotAfter.Add(day), tc.now, false).
				TLS([]*x509.Certificate{w.root.Certificate}, "est.test"),
		} {
			var refused *VerifyError
			if err := w.handshake(conf); !errors.As(err, &refused) {
				t.Errorf("clock says %s, %s: got %v, want a VerifyError", tc.name, name, err)
			}
		}
	}
}

// A certificate of a client is no server, even from the right CA.
func TestTLSWantsAServer(t *testing.T) {
	w := newWorld(t)
	w.leaf = issueFor(t, x509.ExtKeyUsageClientAuth, w.issuing, "device", w.leaf.NotBefore, w.leaf.NotAfter, "est.test")
	var refused *VerifyError
	c := Fixed(build, time.Time{}, build, false)
	if err := w.handshake(c.TLS([]*x509.Certificate{w.root.Certificate}, "est.test")); !errors.As(err, &refused) {
		t.Errorf("got %v, want a VerifyError", err)
	}
}
