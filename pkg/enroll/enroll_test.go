package enroll

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

func servedBy(cert *tls.Certificate) func(*tls.Config) {
	return func(conf *tls.Config) { conf.Certificates = []tls.Certificate{*cert} }
}

func TestEnrollReturnsTheChainWithoutTheRoot(t *testing.T) {
	for name, answer := range map[string]func(leaf *party) []*party{
		"only the certificate, the rest from /cacerts": func(leaf *party) []*party { return []*party{leaf} },
		"with its issuer": func(leaf *party) []*party { return []*party{leaf, issuing} },
		"root first":      func(leaf *party) []*party { return []*party{root, issuing, leaf} },
		"issuer first":    func(leaf *party) []*party { return []*party{issuing, leaf, root} },
		"each twice":      func(leaf *party) []*party { return []*party{issuing, leaf, issuing, leaf} },
		"among others":    func(leaf *party) []*party { return []*party{foreign, server, leaf, namesake, issuing} },
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t)
			var leaf *party
			s.issue = func(csr *x509.CertificateRequest) []*x509.Certificate {
				leaf = certify(csr)
				return raw(answer(leaf)...)
			}
			issued, err := s.client(t).Enroll(t.Context(), ask())
			if err != nil {
				t.Fatal(err)
			}
			if want := raw(leaf, issuing); !slices.EqualFunc(issued.Chain, want, (*x509.Certificate).Equal) || issued.Changes != nil {
				t.Errorf("got a chain of %d and changes %q, want leaf and issuing, and none", len(issued.Chain), issued.Changes)
			}
		})
	}
}

func TestTheChainKeepsAnAnchorThatIsNoRoot(t *testing.T) {
	s := serve(t)
	issued, err := s.client(t, func(conf *Config) { conf.Anchors = raw(issuing) }).Enroll(t.Context(), ask())
	if err != nil {
		t.Fatal(err)
	}
	if n := len(issued.Chain); n != 2 {
		t.Errorf("got a chain of %d, want leaf and issuing: servers that know the root only need both", n)
	}
}

func TestWhatEnrollSends(t *testing.T) {
	s := serve(t)
	req := ask(func(tmpl *x509.CertificateRequest) { tmpl.DNSNames = []string{"sensor-1.example"} })
	if _, err := s.client(t).Enroll(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	r := s.requests()[0]
	for what, got := range map[string][2]string{
		"method":                    {r.Method, "POST"},
		"path":                      {r.URL.EscapedPath(), "/.well-known/est/simpleenroll"},
		"protocol":                  {r.Proto, "HTTP/1.1"},
		"Content-Type":              {r.Header.Get("Content-Type"), "application/pkcs10"},
		"Content-Transfer-Encoding": {r.Header.Get("Content-Transfer-Encoding"), ""},
		"Accept-Encoding":           {r.Header.Get("Accept-Encoding"), ""},
		"Authorization":             {r.Header.Get("Authorization"), ""},
		"body without line ends":    {strings.ReplaceAll(string(r.body), "\n", ""), base64Of(req.CSR)},
	} {
		if got[0] != got[1] {
			t.Errorf("%s is %q, want %q", what, got[0], got[1])
		}
	}
	if r.ContentLength != int64(len(r.body)) || r.TransferEncoding != nil {
		t.Errorf("Content-Length is %d and encoding %q for %d bytes; libest refuses chunks", r.ContentLength, r.TransferEncoding, len(r.body))
	}
	lines := strings.SplitAfter(string(r.body), "\n")
	for i, line := range lines[:len(lines)-2] {
		if len(line) != 65 {
			t.Errorf("line %d of the body has %d characters, want 64 and its end", i+1, len(line))
		}
	}
	if last := lines[len(lines)-1]; last != "" {
		t.Errorf("the body ends in %q, want a line's end", last)
	}
}

func TestTLSVersions(t *testing.T) {
	for name, tc := range map[string]struct {
		version uint16
		kind    string
	}{
		"1.3": {tls.VersionTLS13, "no error"},
		"1.2": {tls.VersionTLS12, "no error"},
		"1.1": {tls.VersionTLS11, "unavailable"},
		"1.0": {tls.VersionTLS10, "unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, func(conf *tls.Config) { conf.MinVersion, conf.MaxVersion = tls.VersionTLS10, tc.version })
			_, err := s.client(t).Enroll(t.Context(), ask())
			check(t, err, tc.kind, "protocol version")
			if err == nil && s.requests()[0].TLS.Version != tc.version {
				t.Errorf("spoke version %#x, want %#x", s.requests()[0].TLS.Version, tc.version)
			}
		})
	}
}

// A server that offers HTTP/2 does not get it.
func TestHTTP1IsSpokenWhateverIsOffered(t *testing.T) {
	s := serve(t, func(conf *tls.Config) { conf.NextProtos = []string{"h2", "http/1.1"} })
	if _, err := s.client(t).Enroll(t.Context(), ask()); err != nil {
		t.Fatal(err)
	}
	if got := s.requests()[0].Proto; got != "HTTP/1.1" {
		t.Errorf("spoke %s", got)
	}
}

func TestBasicGoesWithTheFirstRequest(t *testing.T) {
	s := serve(t)
	c := s.client(t, func(conf *Config) { conf.Username, conf.Password = "sensor-1", "secret" })
	if _, err := c.Enroll(t.Context(), ask()); err != nil {
		t.Fatal(err)
	}
	if user, password, ok := s.requests()[0].BasicAuth(); !ok || user != "sensor-1" || password != "secret" {
		t.Errorf("the server got user %q, password %q, Basic %v", user, password, ok)
	}
	c = s.client(t, func(conf *Config) { conf.Username = "sensor-1" })
	if _, err := c.Enroll(t.Context(), ask()); err != nil {
		t.Fatal(err)
	}
	if got := s.requests()[len(s.requests())-1].Header.Get("Authorization"); got != "" {
		t.Errorf("a user without a password sent Authorization %q", got)
	}
}

func TestTheCertificateIsShownWithItsChain(t *testing.T) {
	idevid := issuing.device(newKey())
	for name, edit := range map[string]func(*tls.Config){
		"to a server that wants one of our CA": func(conf *tls.Config) { conf.ClientAuth, conf.ClientCAs = tls.RequireAndVerifyClientCert, pool(root) },
		"to a server that names no CA":         func(conf *tls.Config) { conf.ClientAuth = tls.RequireAnyClientCert },
		"to a server that names another CA":    func(conf *tls.Config) { conf.ClientAuth, conf.ClientCAs = tls.RequireAnyClientCert, pool(foreign) },
		"to a server that does not insist":     func(conf *tls.Config) { conf.ClientAuth = tls.RequestClientCert },
		"to a server that only knows the root 2": func(conf *tls.Config) {
			conf.ClientAuth, conf.ClientCAs, conf.MaxVersion = tls.RequireAndVerifyClientCert, pool(root), tls.VersionTLS12
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, edit)
			c := s.client(t, func(conf *Config) { conf.Certificate = idevid.tls(issuing) })
			if _, err := c.Enroll(t.Context(), ask()); err != nil {
				t.Fatal(err)
			}
			if got, want := s.requests()[0].TLS.PeerCertificates, raw(idevid, issuing); !slices.EqualFunc(got, want, (*x509.Certificate).Equal) {
				t.Errorf("the server saw %d certificates, want ours and its issuer's", len(got))
			}
		})
	}
}

func pool(parties ...*party) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range parties {
		p.AddCert(c.Certificate)
	}
	return p
}

func TestARefusedCertificateIsReportedAsSuch(t *testing.T) {
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, func(conf *tls.Config) {
				conf.MaxVersion, conf.ClientAuth, conf.ClientCAs = version, tls.RequireAndVerifyClientCert, pool(root)
			})
			for why, cert := range map[string]*party{
				"unknown certificate authority": foreign.device(newKey()),
				"expired certificate":           root.device(newKey(), func(tmpl *x509.Certificate) { tmpl.NotAfter = now.Add(-time.Hour) }),
				"bad certificate":               root.server(),
			} {
				c := s.client(t, func(conf *Config) { conf.Certificate = cert.tls() })
				_, err := c.Enroll(t.Context(), ask())
				check(t, err, "refused", "does not accept our certificate: tls: "+why)
			}
			_, err := s.client(t).Enroll(t.Context(), ask())
			check(t, err, "refused", "there is none to show")
			if n := len(s.requests()); n != 0 {
				t.Errorf("%d requests got through", n)
			}
		})
	}
	t.Run("by hanging up", func(t *testing.T) {
		s := serve(t, func(conf *tls.Config) { conf.ClientAuth = tls.RequireAnyClientCert })
		s.handle[opEnroll] = func(w http.ResponseWriter, _ *http.Request) { hijack(w, "") }
		c := s.client(t, func(conf *Config) { conf.Certificate = foreign.device(newKey()).tls() })
		_, err := c.Enroll(t.Context(), ask())
		check(t, err, "unavailable", "may not accept ours")
	})
}

// hijack writes an answer by hand and hangs up.
func hijack(w http.ResponseWriter, text string) {
	conn, _, err := w.(http.Hijacker).Hijack()
	must(err)
	io.WriteString(conn, text)
	conn.Close()
}

func TestReenroll(t *testing.T) {
	s := serve(t)
	names := func(tmpl *x509.Certificate) {
		tmpl.Subject = pkix.Name{CommonName: "sensor-1", Organization: []string{"Acme"}}
		tmpl.DNSNames, tmpl.IPAddresses = []string{"sensor-1.example"}, []net.IP{net.IPv4(192, 0, 2, 1)}
	}
	present := issuing.device(newKey(), names, func(tmpl *x509.Certificate) { tmpl.NotAfter = now.Add(30 * day) })
	req := ask(func(tmpl *x509.CertificateRequest) {
		tmpl.RawSubject = present.RawSubject
		tmpl.ExtraExtensions = []pkix.Extension{{Id: oidAltName, Value: altNames(present.Extensions)}}
	})
	req.Current = present.Certificate
	c := s.client(t, func(conf *Config) { conf.Certificate = present.tls(issuing) })

	issued, err := c.Reenroll(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.requests()[0].URL.Path; got != "/.well-known/est/simplereenroll" {
		t.Errorf("asked at %s", got)
	}
	if !samePublicKey(issued.Chain[0].PublicKey, deviceKey.Public()) || issued.Changes != nil {
		t.Errorf("got a certificate of %s with changes %q", issued.Chain[0].Subject, issued.Changes)
	}

	t.Run("with the same key, the old certificate beside the new one", func(t *testing.T) {
		old := issuing.device(deviceKey, func(tmpl *x509.Certificate) { tmpl.NotBefore = now.Add(-10 * day) })
		req := ask()
		req.Current = old.Certificate
		for order, place := range map[string]func(leaf *party) []*party{
			"before it": func(leaf *party) []*party { return []*party{old, leaf} },
			"after it":  func(leaf *party) []*party { return []*party{leaf, old} },
		} {
			s.issue = func(csr *x509.CertificateRequest) []*x509.Certificate { return raw(place(certify(csr))...) }
			issued, err := c.Reenroll(t.Context(), req)
			if err != nil || issued.Chain[0].Equal(old.Certificate) {
				t.Errorf("%s: got the old one: %v, error %v", order, err == nil, err)
			}
		}
	})
	t.Run("for a shorter life", func(t *testing.T) {
		s.issue = func(csr *x509.CertificateRequest) []*x509.Certificate {
			return raw(certify(csr, names, func(tmpl *x509.Certificate) { tmpl.NotAfter = present.NotAfter.Add(-1e9) }))
		}
		_, err := c.Reenroll(t.Context(), req)
		check(t, err, "answer", "before the one it replaces")
	})
}

func TestWhatTheCallerGetsWrong(t *testing.T) {
	s := serve(t)
	c := s.client(t)
	present := issuing.device(newKey(), func(tmpl *x509.Certificate) { tmpl.DNSNames = []string{"a"} })
	for name, tc := range map[string]struct {
		req  Request
		says string
	}{
		"no request":                          {Request{Key: deviceKey, Current: present.Certificate}, "cannot use the request"},
		"no key":                              {Request{CSR: ask().CSR, Current: present.Certificate}, "another key"},
		"another key":                         {Request{CSR: ask().CSR, Key: newKey(), Current: present.Certificate}, "another key"},
		"nothing to renew":                    {ask(), "there is none"},
		"the alternative name is not the old": {Request{CSR: ask().CSR, Key: deviceKey, Current: present.Certificate}, "its name is not"},
		"the subject is not the old": {Request{CSR: ask(func(tmpl *x509.CertificateRequest) {
			tmpl.Subject.CommonName, tmpl.DNSNames = "sensor-2", []string{"a"}
		}).CSR, Key: deviceKey, Current: present.Certificate}, "its name is not"},
	} {
		_, err := c.Reenroll(t.Context(), tc.req)
		if kind(err) != "an error of 0 kinds" || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: got %s, %v, want an error about the caller that says %q", name, kind(err), err, tc.says)
		}
	}
	if n := len(s.requests()); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
}

func TestCACerts(t *testing.T) {
	s := serve(t)
	certs, err := s.client(t).CACerts(t.Context())
	if err != nil || !slices.EqualFunc(certs, raw(issuing, root), (*x509.Certificate).Equal) {
		t.Errorf("got %d certificates and error %v, want issuing and root", len(certs), err)
	}
}

func TestALabelIsOneSegmentOfThePath(t *testing.T) {
	s := serve(t)
	for label, path := range map[string]string{
		"":          "/.well-known/est/cacerts",
		"factory-1": "/.well-known/est/factory-1/cacerts",
		"a b?c%#é":  "/.well-known/est/a%20b%3Fc%25%23%C3%A9/cacerts",
	} {
		if _, err := s.client(t, func(conf *Config) { conf.Label = label }).CACerts(t.Context()); err != nil {
			t.Errorf("label %q: %v", label, err)
			continue
		}
		if got := s.requests()[len(s.requests())-1].URL.EscapedPath(); got != path {
			t.Errorf("label %q: asked at %s, want %s", label, got, path)
		}
	}
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	good := Config{URL: "https://est.example", Anchors: raw(root)}
	for name, edit := range map[string]func(*Config){
		"no address":                     func(c *Config) { c.URL = "" },
		"no scheme":                      func(c *Config) { c.URL = "est.example" },
		"plain http":                     func(c *Config) { c.URL = "http://est.example" },
		"no host":                        func(c *Config) { c.URL = "https://:8443" },
		"a port that is none":            func(c *Config) { c.URL = "https://est.example:65536" },
		"port 0":                         func(c *Config) { c.URL = "https://est.example:0" },
		"a password in the address":      func(c *Config) { c.URL = "https://user:pass@est.example" },
		"another path":                   func(c *Config) { c.URL = "https://est.example/est" },
		"a label in the address":         func(c *Config) { c.URL = "https://est.example/.well-known/est/label" },
		"a query":                        func(c *Config) { c.URL = "https://est.example?a=b" },
		"a fragment":                     func(c *Config) { c.URL = "https://est.example#a" },
		"a label of two segments":        func(c *Config) { c.Label = "a/b" },
		"a label that leads up":          func(c *Config) { c.Label = ".." },
		"a label that leads nowhere":     func(c *Config) { c.Label = "." },
		"a label named for simpleenroll": func(c *Config) { c.Label = "simpleenroll" },
		"a label named for serverkeygen": func(c *Config) { c.Label = "serverkeygen" },
		"nobody to trust":                func(c *Config) { c.Anchors = nil },
		"a fingerprint of SHA-1":         func(c *Config) { c.Anchors, c.Pin = nil, make([]byte, 20) },
		"an empty fingerprint":           func(c *Config) { c.Anchors, c.Pin = nil, []byte{} },
		"a colon in the user name":       func(c *Config) { c.Username = "a:b" },
		"a line's end in the password":   func(c *Config) { c.Password = "secret\n" },
		"a certificate without bytes":    func(c *Config) { c.Certificate = &tls.Certificate{PrivateKey: deviceKey} },
		"a certificate without a key":    func(c *Config) { c.Certificate = &tls.Certificate{Certificate: [][]byte{root.Raw}} },
		"less than no time":              func(c *Config) { c.Timeout = -1 },
	} {
		conf := good
		edit(&conf)
		if _, err := New(conf); err == nil || kind(err) != "an error of 0 kinds" {
			t.Errorf("%s: got %v, want an error about the configuration", name, err)
		}
	}
	for _, address := range []string{
		"https://est.example", "https://est.example/", "https://est.example/.well-known/est", "https://est.example/.well-known/est/",
		"https://est.example:8443", "https://192.0.2.1", "https://[2001:db8::1]:8443", "HTTPS://est.example",
	} {
		conf := good
		conf.URL = address
		if _, err := New(conf); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestTheCallerCanStopWaiting(t *testing.T) {
	s := serve(t)
	ctx, cancel := context.WithCancel(t.Context())
	s.handle[opEnroll] = func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	}
	_, err := s.client(t).Enroll(ctx, ask())
	check(t, err, "unavailable", "context canceled")
}

// Every kind of key that a root of trust makes.
func TestKinds(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(err)
	rsa2048, err := rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	for name, key := range map[string]crypto.Signer{"P-384": p384, "RSA-2048": rsa2048} {
		if _, err := serve(t).client(t).Enroll(t.Context(), askFor(key)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
