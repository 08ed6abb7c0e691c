package enroll

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"birthmark/internal/lab/ca"
	"birthmark/internal/lab/est"
	"birthmark/pkg/clock"
)

var oidChallenge = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}

// binder makes requests of ask's for connections, and remembers for which.
type binder struct {
	key      *ecdsa.PrivateKey
	bindings []string
	requests [][]byte
}

// asking is a request that b binds.
func (b *binder) asking() Request {
	req := askFor(b.key)
	req.Bind = func(binding string) ([]byte, error) {
		der := challenged(req.CSR, binding, b.key)
		b.bindings, b.requests = append(b.bindings, binding), append(b.requests, der)
		return der, nil
	}
	return req
}

// challenged is csr with a challengePassword, which crypto/x509 cannot write.
func challenged(csr []byte, password string, key *ecdsa.PrivateKey) []byte {
	plain, err := x509.ParseCertificateRequest(csr)
	must(err)
	type attribute struct {
		Type   asn1.ObjectIdentifier
		Values []any `asn1:"set"`
	}
	info, err := asn1.Marshal(struct {
		Version            int
		Subject, PublicKey asn1.RawValue
		Attributes         []attribute `asn1:"set,tag:0"`
	}{0, asn1.RawValue{FullBytes: plain.RawSubject}, asn1.RawValue{FullBytes: plain.RawSubjectPublicKeyInfo}, []attribute{{oidChallenge, []any{password}}}})
	must(err)
	digest := sha256.Sum256(info)
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	must(err)
	der, err := asn1.Marshal(struct {
		Info      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: info}, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}},
		asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}})
	must(err)
	return der
}

// bindingOf is what a server says that its connection is called.
func bindingOf(r request) string {
	binding := r.TLS.TLSUnique
	if r.TLS.Version == tls.VersionTLS13 {
		var err error
		binding, err = r.TLS.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
		must(err)
	}
	return base64.StdEncoding.EncodeToString(binding)
}

// versions are those of TLS, and how long a binding is there, in base64.
var versions = map[uint16]int{tls.VersionTLS12: 16, tls.VersionTLS13: 44}

func TestABoundRequestGoesOverTheConnectionThatItIsBoundTo(t *testing.T) {
	for version, length := range versions {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			s := serve(t, func(conf *tls.Config) { conf.MaxVersion = version })
			c := s.client(t)
			if _, err := c.CSRAttrs(t.Context()); err != nil { // leaves a connection open
				t.Fatal(err)
			}
			b := &binder{key: newKey()}
			if _, err := c.Enroll(t.Context(), b.asking()); err != nil {
				t.Fatal(err)
			}
			post := s.requests()[1]
			if len(b.bindings) != 1 || b.bindings[0] != bindingOf(post) || len(b.bindings[0]) != length {
				t.Errorf("bound to %q, sent over %q: want the same, once, of %d characters", b.bindings, bindingOf(post), length)
			}
			if want := string(lines(b.requests[0])); string(post.body) != want {
				t.Errorf("the server got %q, want %q", post.body, want)
			}
			if post.ContentLength != int64(len(post.body)) || post.Header.Get("Accept-Encoding") != "" || post.Proto != "HTTP/1.1" {
				t.Errorf("Content-Length %d for %d bytes, Accept-Encoding %q, %s: want what other requests have",
					post.ContentLength, len(post.body), post.Header.Get("Accept-Encoding"), post.Proto)
			}
		})
	}
}

// Whatever makes a second attempt, it goes over another connection, under its name.
func TestEveryAttemptIsBoundAnew(t *testing.T) {
	s := serve(t)
	s.handle[opEnroll] = func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/moved/") {
			http.Redirect(w, r, "/moved/simpleenroll", http.StatusTemporaryRedirect)
			return
		}
		w.WriteHeader(http.StatusAccepted)
	}
	c, b := s.client(t), &binder{key: newKey()}
	req := b.asking()
	for range 2 {
		_, err := c.Enroll(t.Context(), req)
		check(t, err, "pending", "")
	}
	seen := s.requests()
	if len(seen) != 4 || len(b.bindings) != 4 {
		t.Fatalf("%d requests, bound %d times, want 4: two, each sent on once", len(seen), len(b.bindings))
	}
	for i, r := range seen {
		if r.ContentLength == 0 || b.bindings[i] != bindingOf(r) || slices.Contains(b.bindings[:i], b.bindings[i]) {
			t.Errorf("request %d is bound to %q, sent over %q: want its own", i, b.bindings[i], bindingOf(r))
		}
	}
}

func TestABoundRequestGoesThroughAProxy(t *testing.T) {
	s := serve(t)
	theProxy.aim(s)
	b := &binder{key: newKey()}
	c := s.client(t, func(conf *Config) { conf.URL = "https://" + proxied })
	if _, err := c.Enroll(t.Context(), b.asking()); err != nil {
		t.Fatal(err)
	}
	if got, want := b.bindings[0], bindingOf(s.requests()[0]); got != want || len(theProxy.connects()) == 0 {
		t.Errorf("bound to %q, sent over %q, %d times through the proxy", got, want, len(theProxy.connects()))
	}
}

// Each row is what Bind may get wrong. Nothing is sent then.
func TestBindThatFails(t *testing.T) {
	errBusy := errors.New("busy")
	key := newKey()
	for _, tc := range []struct {
		name string
		bind func(string) ([]byte, error)
		says string
	}{
		{"an error", func(string) ([]byte, error) { return nil, errBusy }, "busy"},
		{"no request", func(string) ([]byte, error) { return nil, nil }, "cannot use the bound request"},
		{"another key's", func(string) ([]byte, error) { return askFor(newKey()).CSR, nil }, "its key or its name"},
		{"another name's", func(string) ([]byte, error) {
			return askFor(key, func(tmpl *x509.CertificateRequest) { tmpl.Subject.CommonName = "sensor-2" }).CSR, nil
		}, "its key or its name"},
		{"for more names", func(string) ([]byte, error) {
			return askFor(key, func(tmpl *x509.CertificateRequest) { tmpl.DNSNames = []string{"a"} }).CSR, nil
		}, "its key or its name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := serve(t)
			req := askFor(key)
			req.Bind = tc.bind
			_, err := s.client(t).Enroll(t.Context(), req)
			if kind(err) != "an error of 0 kinds" || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %s, %v, want the caller's error about %q", kind(err), err, tc.says)
			}
			if n := len(s.requests()); n != 0 {
				t.Errorf("%d requests were sent", n)
			}
		})
	}
}

func TestARefusedBindingIsReportedAsSuch(t *testing.T) {
	const hint = "whatever ends TLS between here and the server breaks that"
	for _, tc := range []struct {
		name   string
		answer http.HandlerFunc
		says   string
		hint   bool
	}{
		{"libest's", respond(401, "text/plain", "Proof of Possession Mismatch."), "Proof of Possession Mismatch.", true},
		{"the lab's", respond(403, "text/plain", "not the channel binding"), "not the channel binding", true},
		{"a wrong password's", withHeader("WWW-Authenticate", `Basic realm="est"`, respond(401, "", "")), "Unauthorized", false},
		{"a bad request's", respond(400, "", ""), "Bad Request", false},
	} {
		s := serve(t)
		s.handle[opEnroll] = tc.answer
		_, err := s.client(t).Enroll(t.Context(), (&binder{key: newKey()}).asking())
		check(t, err, "refused", tc.says)
		if got := strings.Contains(err.Error(), hint); got != tc.hint {
			t.Errorf("%s: %v; with the hint %v, want %v", tc.name, err, got, tc.hint)
		}
		if n := len(s.requests()); n != 1 {
			t.Errorf("%s: asked %d times, want once", tc.name, n)
		}
	}
}

// The lab's server holds the binding against its own end of the connection.
func TestTheLabIsContentWithTheBinding(t *testing.T) {
	wish, err := asn1.Marshal([]asn1.ObjectIdentifier{oidChallenge})
	must(err)
	lab, authority := startLab(t, "owner", est.Config{Profile: ca.Device(0), CSRAttrs: wish})
	for version := range versions {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			password, err := authority.Passwords().New("sensor-1")
			must(err)
			c, err := New(Config{URL: lab.URL(), Anchors: []*x509.Certificate{authority.Root()}, Clock: clock.Host(),
				Username: "sensor-1", Password: password})
			must(err)
			c.peer.transport.TLSClientConfig.MaxVersion = version
			t.Cleanup(c.peer.transport.CloseIdleConnections)
			if got, err := c.CSRAttrs(t.Context()); err != nil || !bytes.Equal(got, wish) {
				t.Errorf("the lab wishes for %x, %v, want a challengePassword", got, err)
			}
			b := &binder{key: newKey()}
			req := b.asking()
			bound, err := c.Enroll(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			// The answer was lost: the same key gets the same certificate, whatever it is bound to.
			again, err := c.Enroll(t.Context(), req)
			if err != nil || !again.Chain[0].Equal(bound.Chain[0]) || b.bindings[0] == b.bindings[1] {
				t.Errorf("asked again, bound to %q: %v, want the same certificate over another connection", b.bindings, err)
			}
			for name, replayed := range map[string][]byte{"somebody replays a bound request": b.requests[0], "a request without a binding": req.CSR} {
				_, err = c.Enroll(t.Context(), Request{CSR: replayed, Key: b.key})
				check(t, err, "refused", "not the channel binding of this connection")
				if err == nil {
					t.Errorf("%s, and gets a certificate", name)
				}
			}
			replaying := Request{CSR: req.CSR, Key: b.key, Bind: func(string) ([]byte, error) { return b.requests[0], nil }}
			_, err = c.Enroll(t.Context(), replaying)
			check(t, err, "refused", "whatever ends TLS between here and the server")
		})
	}
}

// A proxy that ends TLS, even one that the device trusts, shows itself.
func TestWhoEndsTLSInBetweenBreaksTheBinding(t *testing.T) {
	wish, err := asn1.Marshal([]asn1.ObjectIdentifier{oidChallenge})
	must(err)
	lab, authority := startLab(t, "owner", est.Config{Profile: ca.Device(0), CSRAttrs: wish})
	password, err := authority.Passwords().New("sensor-1")
	must(err)
	onwards := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: x509.NewCertPool()}}
	onwards.TLSClientConfig.RootCAs.AddCert(authority.Root())
	t.Cleanup(onwards.CloseIdleConnections)
	between := serve(t)
	between.handle[opEnroll] = func(w http.ResponseWriter, r *http.Request) {
		body := between.requests()[len(between.requests())-1].body
		on, err := http.NewRequestWithContext(r.Context(), r.Method, lab.URL()+r.URL.Path, bytes.NewReader(body))
		must(err)
		on.Header = r.Header.Clone()
		resp, err := onwards.RoundTrip(on)
		must(err)
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	}
	c := between.client(t, func(conf *Config) { conf.Username, conf.Password = "sensor-1", password })
	_, err = c.Enroll(t.Context(), (&binder{key: newKey()}).asking())
	check(t, err, "refused", "whatever ends TLS between here and the server breaks that")
}
