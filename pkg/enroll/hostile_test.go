package enroll

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"birthmark/pkg/clock"
)

// Each row is a server that a device may meet instead of its own. It gets no
// request to see, and no password.
func TestServersThatAreNotBelieved(t *testing.T) {
	at := func(from, to time.Time) func(*x509.Certificate) {
		return func(tmpl *x509.Certificate) { tmpl.NotBefore, tmpl.NotAfter = from, to }
	}
	unsynchronised := clock.Fixed(clock.Build(), now, time.Unix(0, 0), false)
	for _, tc := range []struct {
		name  string
		shows *tls.Certificate
		clock *clock.Clock
		says  string
	}{
		{"its CA is another one", foreign.server().tls(), nil, "unknown authority"},
		{"its root has our root's name, and another key", namesake.server().tls(), nil, "unknown authority"},
		{"its certificate is self-signed", (*party)(nil).server().tls(), nil, "unknown authority"},
		{"it leaves out the certificate of its issuing CA", server.tls(), nil, "unknown authority"},
		{"its certificate is for another name", issuing.server(func(tmpl *x509.Certificate) {
			tmpl.DNSNames, tmpl.IPAddresses = []string{"est.example"}, nil
		}).tls(issuing), nil, "127.0.0.1"},
		{"its name stands in the common name only", issuing.server(func(tmpl *x509.Certificate) {
			tmpl.Subject.CommonName, tmpl.DNSNames, tmpl.IPAddresses = "127.0.0.1", nil, nil
		}).tls(issuing), nil, "127.0.0.1"},
		{"its certificate is a device's", issuing.device(newKey(), func(tmpl *x509.Certificate) {
			tmpl.IPAddresses = server.IPAddresses
		}).tls(issuing), nil, "incompatible key usage"},
		{"its certificate expired yesterday", issuing.server(at(now.Add(-9*day), now.Add(-day))).tls(issuing), nil, "expired"},
		{"its certificate begins tomorrow", issuing.server(at(now.Add(day), now.Add(9*day))).tls(issuing), nil, "not yet valid"},
		{"its certificate expired before what the device knows of time, whatever its clock says",
			issuing.server(at(now.Add(-9*day), now.Add(-day))).tls(issuing), unsynchronised, "expired"},
		{"its issuing CA is none", server.device(newKey(), func(tmpl *x509.Certificate) {
			tmpl.IPAddresses, tmpl.ExtKeyUsage = server.IPAddresses, server.ExtKeyUsage
		}).tls(server, issuing), nil, "parent certificate cannot sign"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := serve(t, servedBy(tc.shows))
			c := s.client(t, func(conf *Config) {
				conf.Username, conf.Password = "sensor-1", "secret"
				if tc.clock != nil {
					conf.Clock = tc.clock
				}
			})
			_, err := c.Enroll(t.Context(), ask())
			check(t, err, "untrusted", tc.says)
			if n := len(s.requests()); n != 0 {
				t.Errorf("it got %d requests", n)
			}
		})
	}
}

// A clock that says 1970 is no reason not to enrol.
func TestAServerIsBelievedWhateverAnUnsynchronisedClockSays(t *testing.T) {
	for _, at := range []time.Time{time.Unix(0, 0), now.AddDate(30, 0, 0)} {
		s := serve(t)
		c := s.client(t, func(conf *Config) { conf.Clock = clock.Fixed(clock.Build(), time.Time{}, at, false) })
		if _, err := c.Enroll(t.Context(), ask()); err != nil {
			t.Errorf("the clock says %v: %v", at, err)
		}
	}
}

// Each row is a server that takes its time. No timer of a single read would notice
// the last ones.
func TestAnOperationEndsInTime(t *testing.T) {
	slowly := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", rightType)
			for _, b := range []byte(text) {
				w.Write([]byte{b})
				w.(http.Flusher).Flush()
				select {
				case <-time.After(20 * time.Millisecond):
				case <-r.Context().Done():
					return
				}
			}
		}
	}
	wait := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for name, handle := range map[string]map[string]http.HandlerFunc{
		"no answer":                     {opEnroll: wait},
		"one byte at a time":            {opEnroll: slowly(strings.Repeat("A", 10_000))},
		"in the second of two requests": {opEnroll: respond(200, rightType, base64Of(certsOnly(raw(forOurKey)...))), opCACerts: wait},
		"redirects that take time": {opEnroll: func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-time.After(80 * time.Millisecond):
			case <-r.Context().Done():
			}
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t)
			s.handle = handle
			start := time.Now()
			_, err := s.client(t, func(conf *Config) { conf.Timeout = 200 * time.Millisecond }).Enroll(t.Context(), ask())
			check(t, err, "unavailable", "no whole answer within 200ms")
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("it took %v, want 200ms", took)
			}
		})
	}
}

// Each row is a way to send a device elsewhere.
func TestRedirects(t *testing.T) {
	other := serve(t)
	plain := httptest.NewServer(other)
	t.Cleanup(plain.Close)
	const path = "/.well-known/est/simpleenroll"
	for _, tc := range []struct {
		name     string
		status   int
		location func(s *estServer) string
		kind     string
		says     string
	}{
		{"307 to the same server", 307, func(s *estServer) string { return s.URL + "/moved/simpleenroll" }, "no error", ""},
		{"308 to the same server", 308, func(*estServer) string { return "/moved/simpleenroll" }, "no error", ""},
		{"307 to another port", 307, func(*estServer) string { return other.URL + path }, "answer", "another origin"},
		{"307 to another name of the same server", 307, func(s *estServer) string {
			return strings.Replace(s.URL, "127.0.0.1", "localhost", 1) + path
		}, "answer", "another origin"},
		{"307 to plain http", 307, func(*estServer) string { return plain.URL + path }, "answer", "another origin"},
		{"307 to plain http on the same port", 307, func(s *estServer) string {
			return strings.Replace(s.URL, "https", "http", 1) + path
		}, "answer", "another origin"},
		{"307 to another host without a scheme", 307, func(*estServer) string { return "//est.example" + path }, "answer", "another origin"},
		{"307 with another password", 307, func(s *estServer) string {
			return strings.Replace(s.URL, "//", "//user:pass@", 1) + path
		}, "answer", "another origin"},
		{"307 to nowhere", 307, func(*estServer) string { return "" }, "answer", "without a place to go"},
		{"307 to what is no address", 307, func(*estServer) string { return "https://[" }, "answer", "without a place to go"},
		{"307 in a circle", 307, func(*estServer) string { return path }, "answer", "after 3 others"},
		{"301, which makes a GET of it", 301, func(*estServer) string { return "/moved/simpleenroll" }, "answer", "without its body"},
		{"302, which makes a GET of it", 302, func(*estServer) string { return "/moved/simpleenroll" }, "answer", "without its body"},
		{"303, which makes a GET of it", 303, func(*estServer) string { return "/moved/simpleenroll" }, "answer", "without its body"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := serve(t)
			s.handle[opEnroll] = func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/moved/simpleenroll" {
					respond(200, rightType, base64Of(certsOnly(raw(forOurKey)...)))(w, r)
					return
				}
				w.Header().Set("Location", tc.location(s))
				w.WriteHeader(tc.status)
			}
			req := ask()
			_, err := s.client(t, func(conf *Config) { conf.Username, conf.Password = "sensor-1", "secret" }).Enroll(t.Context(), req)
			check(t, err, tc.kind, tc.says)
			for _, r := range s.requests()[:len(s.requests())-1] {
				if r.Method == http.MethodPost && string(r.body) != wrapped(base64Of(req.CSR), "\n") {
					t.Errorf("%s got a body of %d bytes", r.URL.Path, len(r.body))
				}
			}
			for _, r := range other.requests() {
				t.Errorf("another origin got %s %s with Authorization %q", r.Method, r.URL.Path, r.Header.Get("Authorization"))
			}
		})
	}
	t.Run("302 of a GET", func(t *testing.T) {
		s := serve(t)
		s.handle[opCACerts] = func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/moved/cacerts" {
				s.answer(w, certsOnly(raw(root)...))
				return
			}
			http.Redirect(w, r, "/moved/cacerts", http.StatusFound)
		}
		if certs, err := s.client(t).CACerts(t.Context()); err != nil || len(certs) != 1 {
			t.Errorf("got %d certificates and error %v", len(certs), err)
		}
	})
}

// Each row is an address at which there is no EST server.
func TestServersThatAreNotThere(t *testing.T) {
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	closed := httptest.NewServer(nil)
	closed.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	t.Cleanup(func() { silent.Close() })
	for name, tc := range map[string]struct{ address, says string }{
		"nobody listens":        {closed.Listener.Addr().String(), "connection refused"},
		"it speaks plain http":  {plain.Listener.Addr().String(), "does not look like a TLS handshake"},
		"it does not say hello": {silent.Addr().String(), "within 200ms"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := New(Config{URL: "https://" + tc.address, Anchors: raw(root), Timeout: 200 * time.Millisecond})
			must(err)
			_, err = c.CACerts(t.Context())
			check(t, err, "unavailable", tc.says)
		})
	}
}
