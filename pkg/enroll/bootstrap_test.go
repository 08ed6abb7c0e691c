package enroll

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"birthmark/pkg/clock"
)

func fingerprint(p *party) []byte {
	sum := sha256.Sum256(p.Raw)
	return sum[:]
}

// pinned leaves a device nothing to trust but a fingerprint, and gives it
// everything to lose.
func pinned(p *party) func(*Config) {
	return func(conf *Config) {
		conf.Anchors, conf.Pin = nil, fingerprint(p)
		conf.Username, conf.Password = "sensor-1", "secret"
		conf.Certificate = issuing.device(newKey()).tls(issuing)
	}
}

func TestBootstrapByAPinShowsNothingBeforeTheServerIsVerified(t *testing.T) {
	s := serve(t, func(conf *tls.Config) { conf.ClientAuth = tls.RequestClientCert })
	if _, err := s.client(t, pinned(root)).Enroll(t.Context(), ask()); err != nil {
		t.Fatal(err)
	}
	seen := s.requests()
	if first := seen[0]; first.URL.Path != "/.well-known/est/cacerts" || first.Header.Get("Authorization") != "" || len(first.TLS.PeerCertificates) != 0 {
		t.Errorf("the first connection carried %s, Authorization %q and %d certificates, want /cacerts and nothing else",
			first.URL.Path, first.Header.Get("Authorization"), len(first.TLS.PeerCertificates))
	}
	for _, r := range seen[1:] {
		if r.RemoteAddr == seen[0].RemoteAddr {
			t.Errorf("%s went over the connection that was not verified", r.URL.Path)
		}
		if _, password, _ := r.BasicAuth(); password != "secret" || len(r.TLS.PeerCertificates) != 2 {
			t.Errorf("%s went without password or certificate", r.URL.Path)
		}
	}
}

// Each row is a server that a device with a pinned fingerprint may meet at first.
func TestBootstrapThatFails(t *testing.T) {
	right := respond(200, rightType, base64Of(certsOnly(raw(issuing, root)...)))
	for _, tc := range []struct {
		name    string
		pin     *party
		shows   *tls.Certificate
		cacerts http.HandlerFunc
		kind    string
		says    string
	}{
		{"its root has another fingerprint", foreign, server.tls(issuing), right, "untrusted", "none of its 2 CA certificates"},
		{"its root has the name and not the fingerprint", namesake, server.tls(issuing), right, "untrusted", "none of its 2"},
		{"it shows the right root and runs on another", root, foreign.server().tls(), right, "untrusted", "unknown authority"},
		{"it shows the right root and runs on its namesake", root, namesake.server().tls(), right, "untrusted", "unknown authority"},
		{"it shows the right root and is another host", root, issuing.server(func(tmpl *x509.Certificate) {
			tmpl.DNSNames, tmpl.IPAddresses = []string{"est.example"}, nil
		}).tls(issuing), right, "untrusted", "127.0.0.1"},
		{"it shows the right root and is a device", root, issuing.device(newKey(), func(tmpl *x509.Certificate) {
			tmpl.IPAddresses = server.IPAddresses
		}).tls(issuing), right, "untrusted", "key usage"},
		{"the fingerprint is that of its issuing CA", issuing, server.tls(issuing), right, "untrusted", "is not a root"},
		{"the fingerprint is that of its own certificate", server, server.tls(issuing),
			respond(200, rightType, base64Of(certsOnly(raw(server)...))), "untrusted", "is not a root"},
		{"it sends no certificates", root, server.tls(issuing), respond(200, rightType, base64Of(certsOnly())), "untrusted", "not verified yet"},
		{"it says no, whoever it is", root, server.tls(issuing), respond(403, "", ""), "untrusted", "not verified yet, and refused with status 403"},
		{"it says later", root, server.tls(issuing), respond(202, "", ""), "untrusted", "not verified yet"},
		{"it sends the device elsewhere", root, server.tls(issuing), func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/other/cacerts", http.StatusFound)
		}, "untrusted", "after 0 others"},
		{"it has no time", root, server.tls(issuing), respond(503, "", ""), "unavailable", "503"},
		{"it hangs up", root, server.tls(issuing), byHand(""), "unavailable", "EOF"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var connections atomic.Int32
			s := serve(t, servedBy(tc.shows), func(conf *tls.Config) {
				conf.ClientAuth = tls.RequestClientCert
				conf.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
					connections.Add(1)
					return nil, nil
				}
			})
			s.handle[opCACerts] = tc.cacerts
			_, err := s.client(t, pinned(tc.pin)).Enroll(t.Context(), ask())
			check(t, err, tc.kind, tc.says)
			if n := connections.Load(); n != 1 {
				t.Errorf("connected %d times, want once: there is nobody to come back to", n)
			}
			for _, r := range s.requests() {
				if r.Method != http.MethodGet || r.Header.Get("Authorization") != "" || len(r.TLS.PeerCertificates) != 0 {
					t.Errorf("it got %s %s, Authorization %q, %d certificates", r.Method, r.URL.Path, r.Header.Get("Authorization"), len(r.TLS.PeerCertificates))
				}
			}
		})
	}
}

// Somebody who steps in after the first connection gains nothing.
func TestBootstrapTrustsTheRootAndNotTheAddress(t *testing.T) {
	var connections atomic.Int32
	s := serve(t, func(conf *tls.Config) {
		conf.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if connections.Add(1) == 1 {
				return server.tls(issuing), nil
			}
			return foreign.server().tls(), nil
		}
		conf.Certificates = nil
	})
	_, err := s.client(t, pinned(root)).Enroll(t.Context(), ask())
	check(t, err, "untrusted", "unknown authority")
	if n := len(s.requests()); n != 1 {
		t.Errorf("it got %d requests, want the first only", n)
	}
	var reason *clock.VerifyError
	if !errors.As(err, &reason) {
		t.Errorf("got %v, want the clock's reason within", err)
	}
}

func TestBootstrapIsDoneOnceForAll(t *testing.T) {
	s := serve(t)
	var failed atomic.Bool
	s.handle[opCACerts] = func(w http.ResponseWriter, _ *http.Request) {
		if failed.CompareAndSwap(false, true) {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		s.answer(w, certsOnly(raw(issuing, root)...))
	}
	c := s.client(t, pinned(root))
	_, err := c.CSRAttrs(t.Context())
	check(t, err, "unavailable", "503") // and the next one tries again

	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := c.CSRAttrs(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	var cacerts int
	for _, r := range s.requests() {
		if r.URL.Path == "/.well-known/est/cacerts" {
			cacerts++
		}
	}
	if cacerts != 2 {
		t.Errorf("bootstrapped %d times, want once in vain and once for all", cacerts)
	}
}
