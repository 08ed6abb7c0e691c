package enroll

import (
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// An attack is what a server, or somebody in its place, may try; won reports whether
// he got what he is after. Each of checks alone stops it, as its twin shows: with all
// of them switched off the attack succeeds, with all but one it does not.
type attack struct {
	name   string
	checks []string
	won    func(*testing.T) bool
}

// without switches checks off until restore is called. It is there only in the build
// of TestEveryAttackHasATwin.
var without func(checks ...string) (restore func())

func TestAttacks(t *testing.T) {
	for _, a := range attacks() {
		t.Run(a.name, func(t *testing.T) {
			if a.won(t) {
				t.Fatal("the attack succeeds")
			}
			if without == nil {
				return
			}
			restore := without(a.checks...)
			won := a.won(t)
			restore()
			if !won {
				t.Errorf("the attack fails without %q: they are not what stops it", a.checks)
			}
			for i, check := range a.checks {
				if len(a.checks) == 1 {
					break
				}
				restore := without(slices.Delete(slices.Clone(a.checks), i, i+1)...)
				won := a.won(t)
				restore()
				if won {
					t.Errorf("the attack succeeds with %q as the only check: it does not stop it", check)
				}
			}
		})
	}
	if n := len(attacks()); n < 40 {
		t.Errorf("%d attacks, want 40 at least", n)
	} else if without != nil && !t.Failed() {
		t.Logf("%d attacks, each with its twin", n)
	}
}

func attacks() (list []attack) {
	add := func(won func(*testing.T) bool, name string, checks ...string) {
		list = append(list, attack{name, checks, won})
	}
	at := func(from, to time.Time) func(*x509.Certificate) {
		return func(tmpl *x509.Certificate) { tmpl.NotBefore, tmpl.NotAfter = from, to }
	}
	good := base64Of(certsOnly(raw(forOurKey)...))

	// Somebody in the server's place. He is after the request, and the password.
	add(posing(foreign.server().tls()), "the server's CA is another one", "server")
	add(posing(namesake.server().tls()), "the server's root has our root's name, and another key", "server")
	add(posing((*party)(nil).server().tls()), "the server's certificate is self-signed", "server")
	add(posing(issuing.device(newKey(), func(tmpl *x509.Certificate) { tmpl.IPAddresses = server.IPAddresses }).tls(issuing)),
		"a device poses as the server", "server")
	add(posing(issuing.server(func(tmpl *x509.Certificate) { tmpl.DNSNames, tmpl.IPAddresses = []string{"est.example"}, nil }).tls(issuing)),
		"another host poses as the server", "server")
	add(posing(issuing.server(at(now.Add(-9*day), now.Add(-day))).tls(issuing)), "the server's certificate has ended", "server")
	add(posing(issuing.server(at(now.Add(day), now.Add(9*day))).tls(issuing)), "the server's certificate has not begun", "server")
	add(posing(server.device(newKey(), func(tmpl *x509.Certificate) {
		tmpl.IPAddresses, tmpl.ExtKeyUsage = server.IPAddresses, server.ExtKeyUsage
	}).tls(server, issuing)), "a server plays the CA", "server")
	add(outdated, "the server speaks TLS 1.1", "version")

	// The same at the first connection, when only a fingerprint is known.
	add(firstMet(foreign.server().tls(), raw(foreign)), "the first server has another root", "pin")
	add(firstMet(namesake.server().tls(), raw(namesake)), "the first server has a root of the right name", "pin")
	add(firstMet(foreign.server().tls(), raw(root)), "the first server shows the right root, and runs on another", "pinned chain", "server")
	add(sawBefore(func(r request) bool { return r.Header.Get("Authorization") != "" }), "the first server waits for the password", "early password")
	add(sawBefore(func(r request) bool { return len(r.TLS.PeerCertificates) > 0 }), "the first server waits for the certificate", "early certificate")
	add(sawBefore(func(r request) bool { return strings.HasPrefix(r.URL.Path, "/moved/") }), "the first server sends the device elsewhere", "early redirect")

	// A server, or a CA, that issues what it should not.
	add(issuesFor(newKey()), "a certificate for another key", "key", "try")
	add(mixedUp, "a certificate for a key that is not the one that signs", "try")
	add(issued(func(tmpl *x509.Certificate) { tmpl.IsCA = true }), "a CA's certificate", "no CA")
	add(issued(func(tmpl *x509.Certificate) { tmpl.KeyUsage |= x509.KeyUsageCertSign }), "a CA's by its keyUsage", "no CA")
	add(issued(func(tmpl *x509.Certificate) { tmpl.KeyUsage |= x509.KeyUsageCRLSign }), "one to sign CRLs", "no CA")
	add(issued(func(tmpl *x509.Certificate) { tmpl.KeyUsage = 0 }), "one for anything", "signature")
	add(issued(func(tmpl *x509.Certificate) { tmpl.KeyUsage = x509.KeyUsageKeyEncipherment }), "one that cannot sign", "signature")
	add(issued(func(tmpl *x509.Certificate) { tmpl.ExtKeyUsage = nil }), "one for any use", "client")
	add(issued(func(tmpl *x509.Certificate) { tmpl.ExtKeyUsage = server.ExtKeyUsage }), "one for servers", "client", "chain")
	add(issued(at(now.Add(day), now.Add(9*day))), "one that begins tomorrow", "begin")
	add(issued(at(now.Add(-9*day), now.Add(-day))), "one that has ended", "chain")
	add(issuedBy(foreign), "one of another root", "chain")
	add(issuedBy(namesake), "one of a root with our root's name", "chain")
	add(selfIssued, "one signed by itself", "chain")
	add(ownRoot, "one of a root that cacerts brings along", "chain")
	add(renewedShort, "a successor that ends early", "successor")
	add(issued(func(tmpl *x509.Certificate) { tmpl.RawSubject, tmpl.Subject.CommonName = nil, "sensor-2" }), "another device's name", "subject", "common name")
	add(issued(func(tmpl *x509.Certificate) { tmpl.RawSubject, tmpl.Subject = nil, pkix.Name{} }), "no name", "subject")
	add(issued(func(tmpl *x509.Certificate) {
		tmpl.RawSubject = utf8Name("CN", "sensor-1", "CN", "sensor-2")
	}), "another device's name beside ours", "common name")
	add(issuedNamed(func(tmpl *x509.Certificate) { tmpl.DNSNames = nil }), "no alternative name", "alternative name")
	add(issuedNamed(func(tmpl *x509.Certificate) { tmpl.DNSNames = []string{"evil.example"} }), "another alternative name", "alternative name")
	add(issued(func(tmpl *x509.Certificate) {
		for i := range changeLimit + 1 {
			tmpl.DNSNames = append(tmpl.DNSNames, fmt.Sprintf("host-%d.example", i))
		}
	}), "a phone book of names", "additions")

	// Answers that should not be read.
	add(accepted(respond(200, "text/html", good)), "a page of somebody's, with a certificate in it", "media type")
	add(accepted(respond(200, rightType, armoured("PKCS7", certsOnly(raw(forOurKey)...))+"<p>more</p>")), "more after the end", "end of PEM")
	add(accepted(byHand(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/pkcs7-mime\r\nContent-Length: %d\r\n\r\n%s", len(good)+100, good))),
		"an answer that breaks off", "whole")
	add(accepted(respond(200, rightType, good+strings.Repeat("\n", 4*answerLimit))), "a certificate in an ocean of blanks", "size")
	add(accepted(withHeader("Content-Encoding", "gzip", respond(200, rightType, string(packed(good+strings.Repeat("\n", 100_000)))))),
		"more than was sent, by decompression", "compression")
	add(accepted(withHeader("X", strings.Repeat("x", 1<<20), respond(200, rightType, good))), "a header of a megabyte", "header")
	add(accepted(dripping(good, 600*time.Millisecond)), "a byte now and then", "time")
	add(attrsAccepted(respond(200, "application/csrattrs", base64Of([]byte{0x06, 0x03, 0x2a, 0x03, 0x04}))), "wishes that are no list", "wishes")

	// Ways to send a device elsewhere.
	add(redirected(func(_, other *estServer) string { return other.URL }), "to another port", "origin")
	add(redirected(func(_, other *estServer) string { return strings.Replace(other.URL, "127.0.0.1", "localhost", 1) }), "to another host", "origin")
	add(redirectedInTheClear, "to plain http", "origin")
	add(redirected(func(_, other *estServer) string { return strings.Replace(other.URL, "//", "//user:pass@", 1) }), "with another password", "origin")
	add(circled, "in a circle", "hops")
	add(unbodied, "with a status that takes the request away", "body")

	// Answers that are not certificates.
	add(told(respond(400, "text/plain", "\x1b]0;title\x07\u202e"), func(text string) bool { return strings.ContainsAny(text, "\x1b\x07\u202e") }),
		"an error that writes to the terminal", "printable")
	add(told(respond(400, "text/plain", strings.Repeat("wor ", 1000)), func(text string) bool { return utf8.RuneCountInString(text) > 1000 }), "an error as long as a book", "short")
	add(waits("31536000", func(d time.Duration) bool { return d > waitMost }), "a wait for a year", "longest wait")
	add(waits("1", func(d time.Duration) bool { return d < waitLeast }), "a wait for next to no time", "shortest wait")
	return list
}

// asks lets a device that has everything to lose enrol.
func asks(t *testing.T, s *estServer, edit ...func(*Config)) (Issued, error) {
	return s.client(t, append(edit, func(conf *Config) {
		conf.Username, conf.Password = "sensor-1", "secret"
		conf.Timeout = 10 * time.Second
	})...).Enroll(t.Context(), ask())
}

func posted(s *estServer) bool {
	return slices.ContainsFunc(s.requests(), func(r request) bool { return r.Method == http.MethodPost && len(r.body) > 0 })
}

func posing(shows *tls.Certificate) func(*testing.T) bool {
	return func(t *testing.T) bool {
		s := serve(t, servedBy(shows))
		asks(t, s)
		return posted(s)
	}
}

func outdated(t *testing.T) bool {
	s := serve(t, func(conf *tls.Config) { conf.MinVersion, conf.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 })
	asks(t, s)
	return posted(s)
}

func firstMet(shows *tls.Certificate, cacerts []*x509.Certificate) func(*testing.T) bool {
	return func(t *testing.T) bool {
		s := serve(t, servedBy(shows))
		s.handle[opCACerts] = respond(200, rightType, base64Of(certsOnly(cacerts...)))
		asks(t, s, pinned(root))
		return posted(s)
	}
}

// sawBefore lets a device meet a server for the first time that redirects it, and
// reports whether it saw something over the connection that was not verified.
func sawBefore(look func(request) bool) func(*testing.T) bool {
	return func(t *testing.T) bool {
		s := serve(t, func(conf *tls.Config) { conf.ClientAuth = tls.RequestClientCert })
		s.handle[opCACerts] = func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/moved/cacerts", http.StatusFound)
		}
		s.client(t, pinned(root)).CACerts(t.Context())
		return slices.ContainsFunc(s.requests(), look)
	}
}

func mayIssue(t *testing.T, issue func(*x509.CertificateRequest) []*x509.Certificate, cacerts ...*party) bool {
	s := serve(t)
	s.issue = issue
	if cacerts != nil {
		s.handle[opCACerts] = respond(200, rightType, base64Of(certsOnly(raw(cacerts...)...)))
	}
	_, err := asks(t, s)
	return err == nil
}

func issued(edit func(*x509.Certificate)) func(*testing.T) bool {
	return func(t *testing.T) bool {
		return mayIssue(t, func(csr *x509.CertificateRequest) []*x509.Certificate { return raw(certify(csr, edit)) })
	}
}

// issuedNamed is issued for a request with an alternative name.
func issuedNamed(edit func(*x509.Certificate)) func(*testing.T) bool {
	return func(t *testing.T) bool {
		s := serve(t)
		s.issue = func(csr *x509.CertificateRequest) []*x509.Certificate { return raw(certify(csr, edit)) }
		_, err := s.client(t).Enroll(t.Context(), ask(func(tmpl *x509.CertificateRequest) { tmpl.DNSNames = []string{"sensor-1.example"} }))
		return err == nil
	}
}

func issuesFor(key crypto.Signer) func(*testing.T) bool {
	return func(t *testing.T) bool {
		return mayIssue(t, func(*x509.CertificateRequest) []*x509.Certificate { return raw(issuing.device(key)) })
	}
}

func issuedBy(ca *party) func(*testing.T) bool {
	return func(t *testing.T) bool {
		return mayIssue(t, func(csr *x509.CertificateRequest) []*x509.Certificate { return raw(certifyBy(ca, csr), ca) })
	}
}

func selfIssued(t *testing.T) bool {
	return mayIssue(t, func(*x509.CertificateRequest) []*x509.Certificate { return raw((*party)(nil).device(deviceKey)) })
}

func ownRoot(t *testing.T) bool {
	return mayIssue(t, func(csr *x509.CertificateRequest) []*x509.Certificate { return raw(certifyBy(foreign, csr)) }, foreign)
}

func mixedUp(t *testing.T) bool {
	req := ask()
	req.Key = &mixedUpKey{deviceKey, newKey()}
	_, err := serve(t).client(t).Enroll(t.Context(), req)
	return err == nil
}

func renewedShort(t *testing.T) bool {
	s := serve(t)
	s.issue = func(csr *x509.CertificateRequest) []*x509.Certificate {
		return raw(certify(csr, func(tmpl *x509.Certificate) { tmpl.NotAfter = now.Add(day) }))
	}
	req := ask()
	req.Current = issuing.device(deviceKey).Certificate
	_, err := s.client(t).Reenroll(t.Context(), req)
	return err == nil
}

func accepted(h http.HandlerFunc) func(*testing.T) bool {
	return func(t *testing.T) bool {
		s := serve(t)
		s.handle[opEnroll] = h
		_, err := s.client(t, func(conf *Config) { conf.Timeout = 300 * time.Millisecond }).Enroll(t.Context(), ask())
		return err == nil
	}
}

func attrsAccepted(h http.HandlerFunc) func(*testing.T) bool {
	return func(t *testing.T) bool {
		s := serve(t)
		s.handle[opCSRAttrs] = h
		_, err := s.client(t).CSRAttrs(t.Context())
		return err == nil
	}
}

// dripping spreads an answer over some time.
func dripping(text string, over time.Duration) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", rightType)
		const drops = 20
		for i := range drops {
			io.WriteString(w, text[i*len(text)/drops:(i+1)*len(text)/drops])
			w.(http.Flusher).Flush()
			select {
			case <-time.After(over / drops):
			case <-r.Context().Done():
				return
			}
		}
	}
}

func packed(text string) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	io.WriteString(z, text)
	must(z.Close())
	return b.Bytes()
}

// redirected sends a device to another server, which is after its password.
func redirected(where func(s, other *estServer) string) func(*testing.T) bool {
	return func(t *testing.T) bool {
		s, other := serve(t), serve(t)
		s.handle[opEnroll] = func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", where(s, other)+r.URL.Path)
			w.WriteHeader(http.StatusTemporaryRedirect)
		}
		asks(t, s)
		return slices.ContainsFunc(other.requests(), func(r request) bool { return r.Header.Get("Authorization") != "" })
	}
}

func redirectedInTheClear(t *testing.T) bool {
	s, other := serve(t), &estServer{handle: map[string]http.HandlerFunc{}}
	plain := httptest.NewServer(other)
	t.Cleanup(plain.Close)
	s.handle[opEnroll] = func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, plain.URL+r.URL.Path, http.StatusTemporaryRedirect)
	}
	other.issue = s.issue
	asks(t, s)
	return slices.ContainsFunc(other.requests(), func(r request) bool { return r.Header.Get("Authorization") != "" })
}

func circled(t *testing.T) bool {
	s := serve(t)
	s.handle[opEnroll] = func(w http.ResponseWriter, r *http.Request) {
		if len(s.requests()) <= 2*redirectLimit {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
			return
		}
		respond(200, rightType, base64Of(certsOnly(raw(forOurKey)...)))(w, r)
	}
	asks(t, s)
	return len(s.requests()) > redirectLimit+1
}

func unbodied(t *testing.T) bool {
	s := serve(t)
	s.handle[opEnroll] = func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/moved/") {
			respond(200, rightType, base64Of(certsOnly(raw(forOurKey)...)))(w, r)
			return
		}
		http.Redirect(w, r, "/moved/simpleenroll", http.StatusSeeOther)
	}
	_, err := asks(t, s)
	return err == nil
}

func told(h http.HandlerFunc, won func(string) bool) func(*testing.T) bool {
	return func(t *testing.T) bool {
		s := serve(t)
		s.handle[opEnroll] = h
		_, err := asks(t, s)
		return err != nil && won(err.Error())
	}
}

func waits(after string, won func(time.Duration) bool) func(*testing.T) bool {
	return func(t *testing.T) bool {
		s := serve(t)
		s.handle[opEnroll] = withHeader("Retry-After", after, respond(202, "", ""))
		_, err := asks(t, s)
		var pending *PendingError
		return errors.As(err, &pending) && won(pending.RetryAfter)
	}
}
