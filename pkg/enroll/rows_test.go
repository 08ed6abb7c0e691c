package enroll

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"birthmark/internal/promises"
)

// TestEST keeps the rows of docs/est.md that are about a client.
func TestEST(t *testing.T) {
	good := base64Of(certsOnly(raw(forOurKey)...))
	head := "HTTP/1.1 200 OK\r\nContent-Type: application/pkcs7-mime\r\n"
	promises.Keep(t, "est.md", map[int]func(*testing.T){
		1: sends(func(t *testing.T, r request) {
			der, err := base64.StdEncoding.DecodeString(string(r.body))
			if _, errParse := x509.ParseCertificateRequest(der); err != nil || errParse != nil || r.Header.Get("Content-Type") != "application/pkcs10" {
				t.Errorf("%q of type %q: %v, %v", r.body, r.Header.Get("Content-Type"), err, errParse)
			}
		}),
		2: sends(func(t *testing.T, r request) {
			if text := string(r.body); text != wrapped(strings.ReplaceAll(text, "\n", ""), "\n") {
				t.Errorf("not in lines of 64: %q", text)
			}
		}),
		3: sends(func(t *testing.T, r request) {
			if r.ContentLength != int64(len(r.body)) || r.TransferEncoding != nil {
				t.Errorf("Content-Length %d, encoding %q, for %d bytes", r.ContentLength, r.TransferEncoding, len(r.body))
			}
		}),
		4: all(sends(lacks("Content-Transfer-Encoding")),
			answers("no error", withHeader("Content-Transfer-Encoding", "base64", respond(200, rightType, good)),
				withHeader("Content-Transfer-Encoding", "binary", respond(200, rightType, good)))),
		5: sends(lacks("Accept")),
		6: func(t *testing.T) {
			s := serve(t)
			c := s.client(t)
			_, err := c.CACerts(t.Context())
			check(t, err, "no error", "")
			_, err = c.CSRAttrs(t.Context())
			check(t, err, "no error", "")
			for _, r := range s.requests() {
				if r.Method != http.MethodGet || len(r.body) != 0 || r.ContentLength != 0 || r.Header.Get("Authorization") != "" {
					t.Errorf("%s %s with %d bytes and Authorization %q", r.Method, r.URL.Path, len(r.body), r.Header.Get("Authorization"))
				}
			}
		},
		8:  TestALabelIsOneSegmentOfThePath,
		9:  TestHTTP1IsSpokenWhateverIsOffered,
		10: all(TestBasicGoesWithTheFirstRequest, says("wants Digest", withHeader("WWW-Authenticate", `Digest qop="auth", realm="r", nonce="n"`, respond(401, "", "")))),
		11: TestARefusedCertificateIsReportedAsSuch,
		12: TestTheCertificateIsShownWithItsChain,
		13: TestTheCertificateIsShownWithItsChain,
		14: TestWhatTheCallerGetsWrong,
		16: all(TestAProxyOfTheEnvironmentLeadsToTheServerAndSeesNoPassword, TestNoProxyIsObeyed),
		17: boundOver(tls.VersionTLS12),
		18: boundOver(tls.VersionTLS13),
		19: TestEveryAttemptIsBoundAnew,
		21: TestARefusedBindingIsReportedAsSuch,
		22: TestWhoEndsTLSInBetweenBreaksTheBinding,
		23: TestTheServersNameIsCheckedAlways,
		24: TestTLSVersions,
		25: TestBootstrapByAPinShowsNothingBeforeTheServerIsVerified,
		26: answers("no error", respond(200, "Application/PKCS7-MIME", good), respond(200, rightType+`; smime-type="certs-only"`, good),
			respond(200, rightType+"; charset=UTF-8; name=smime.p7c", good), respond(200, rightType+"; smime-type", good)),
		27: says(`its text is "closed"`, respond(200, "", "closed")),
		28: all(answers("no error", respond(200, rightType, wrapped(good, "\r\n")), respond(200, rightType, wrapped(good, "\n \t")), respond(200, rightType, good+"\x00")),
			answers("answer", respond(200, rightType, good[:40]+"\x00"+good[40:]), respond(200, rightType, good[:40]+"*"+good[40:]))),
		29: all(answers("no error", respond(200, rightType, armoured("PKCS7", certsOnly(raw(forOurKey)...)))),
			answers("answer", respond(200, rightType, armoured("CERTIFICATE", forOurKey.Raw)), respond(200, rightType, base64Of(forOurKey.Raw)))),
		30: answers("no error", respond(200, rightType, base64Of(inBER(certsOnly(raw(forOurKey)...))))),
		31: TestEnrollReturnsTheChainWithoutTheRoot,
		32: TestEnrollReturnsTheChainWithoutTheRoot,
		33: TestRetryAfter,
		34: func(t *testing.T) {
			s, req := serve(t), ask()
			s.handle[opEnroll] = respond(202, "", "")
			c := s.client(t)
			for range 2 {
				_, err := c.Enroll(t.Context(), req)
				check(t, err, "pending", "")
			}
			if seen := s.requests(); len(seen) != 2 || seen[1].Method != http.MethodPost || string(seen[0].body) != string(seen[1].body) {
				t.Errorf("%d requests, want the same POST twice", len(seen))
			}
		},
		35: func(t *testing.T) {
			const attrs = "application/csrattrs"
			for name, h := range map[string]http.HandlerFunc{
				"an empty list": respond(200, attrs, "MAA="), "an empty body": respond(200, attrs, ""), "an empty body of no type": respond(200, "", ""),
				"no content": respond(204, "", ""), "not found": respond(404, "", ""),
			} {
				s := serve(t)
				s.handle[opCSRAttrs] = h
				if der, err := s.client(t).CSRAttrs(t.Context()); der != nil || err != nil {
					t.Errorf("%s: %x, %v, want no wishes", name, der, err)
				}
			}
		},
		39: says("status 400: no such profile", respond(400, "text/plain", "no such\r\n\x07profile"), respond(400, "", "no\x1bsuch\x00profile")),
		40: all(answers("no error", withHeader("Status", "200 OK", respond(200, rightType, good))),
			says("status 401", byHand("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"))),
		41: answers("unavailable", byHand(head+"Content-Length: 9999\r\n\r\n"+good), byHand(head+"Transfer-Encoding: chunked\r\n\r\nffff\r\n"+good)),
		42: all(sends(lacks("Accept-Encoding")), answers("answer", withHeader("Content-Encoding", "gzip", respond(200, rightType, bomb())), endless(200))),
		43: TestRedirects,
		44: TestAnOperationEndsInTime,
		49: issues("for our key", func(*x509.CertificateRequest) []*party { return []*party{issuing.device(newKey()), issuing} }),
		50: all(TestIntermediatesFromCACerts, TestARootFromCACertsIsNotAnAnchor),
		51: all(edited("clientAuth", func(tmpl *x509.Certificate) { tmpl.ExtKeyUsage = nil }),
			edited("clientAuth", func(tmpl *x509.Certificate) { tmpl.ExtKeyUsage = server.ExtKeyUsage })),
		52: all(edited("", func(tmpl *x509.Certificate) { tmpl.NotBefore = now.Add(skew) }),
			edited("begins at", func(tmpl *x509.Certificate) { tmpl.NotBefore = now.Add(skew + time.Second) }),
			edited("expired", func(tmpl *x509.Certificate) { tmpl.NotAfter = now.Add(-time.Second) })),
		53: TestReenroll,
		54: all(edited("is a CA's", func(tmpl *x509.Certificate) { tmpl.IsCA = true }),
			edited("digitalSignature", func(tmpl *x509.Certificate) { tmpl.KeyUsage = x509.KeyUsageKeyEncipherment })),
		55: all(edited("lacks CN=sensor-1", func(tmpl *x509.Certificate) { tmpl.RawSubject, tmpl.Subject.CommonName = nil, "sensor-2" }),
			edited("", func(tmpl *x509.Certificate) { tmpl.DNSNames = []string{"a.example"} })),
		56: TestTheKeyIsTried,
	})
}

// all is several tests for one row.
func all(tests ...func(*testing.T)) func(*testing.T) {
	return func(t *testing.T) {
		for _, test := range tests {
			test(t)
		}
	}
}

// sends looks at the request of a device that enrols.
func sends(look func(*testing.T, request)) func(*testing.T) {
	return func(t *testing.T) {
		s := serve(t)
		_, err := s.client(t).Enroll(t.Context(), ask())
		check(t, err, "no error", "")
		look(t, s.requests()[0])
	}
}

func lacks(header string) func(*testing.T, request) {
	return func(t *testing.T, r request) {
		if got := r.Header.Values(header); got != nil {
			t.Errorf("%s is %q, want none", header, got)
		}
	}
}

// answers lets a device that enrols get each of some answers, which all mean the same.
func answers(kind string, handlers ...http.HandlerFunc) func(*testing.T) {
	return func(t *testing.T) {
		for _, h := range handlers {
			s := serve(t)
			s.handle[opEnroll] = h
			_, err := s.client(t).Enroll(t.Context(), ask())
			check(t, err, kind, "")
		}
	}
}

// says is answers with an error that has to say something.
func says(text string, handlers ...http.HandlerFunc) func(*testing.T) {
	return func(t *testing.T) {
		for _, h := range handlers {
			s := serve(t)
			s.handle[opEnroll] = h
			_, err := s.client(t).Enroll(t.Context(), ask())
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("got %v, want an error that says %q", err, text)
			}
		}
	}
}

// issues lets a device that enrols get other certificates than it should, and refuse
// them in words.
func issues(text string, issue func(*x509.CertificateRequest) []*party) func(*testing.T) {
	return func(t *testing.T) {
		s := serve(t)
		s.issue = func(csr *x509.CertificateRequest) []*x509.Certificate { return raw(issue(csr)...) }
		issued, err := s.client(t).Enroll(t.Context(), ask())
		if text == "" {
			check(t, err, "no error", "")
		} else if check(t, err, "answer", text); issued.Chain != nil {
			t.Error("a chain was returned, too")
		}
	}
}

// edited is issues with a certificate that is right but for one thing.
func edited(text string, edit func(*x509.Certificate)) func(*testing.T) {
	return issues(text, func(csr *x509.CertificateRequest) []*party { return []*party{certify(csr, edit)} })
}

// boundOver binds a request over one version of TLS.
func boundOver(version uint16) func(*testing.T) {
	return func(t *testing.T) {
		s := serve(t, func(conf *tls.Config) { conf.MaxVersion = version })
		b := &binder{key: newKey()}
		_, err := s.client(t).Enroll(t.Context(), b.asking())
		check(t, err, "no error", "")
		if want := bindingOf(s.requests()[0]); !slices.Equal(b.bindings, []string{want}) || len(want) != versions[version] {
			t.Errorf("bound to %q, want %q", b.bindings, want)
		}
	}
}

// inBER is a SEQUENCE with an indefinite length, and what is in it as it was.
func inBER(der []byte) []byte {
	start := 2
	if der[1] >= 0x80 {
		start += int(der[1] & 0x7f)
	}
	return slices.Concat([]byte{0x30, 0x80}, der[start:], []byte{0, 0})
}

func TestTheServersNameIsCheckedAlways(t *testing.T) {
	elsewhere := issuing.server(func(tmpl *x509.Certificate) { tmpl.DNSNames, tmpl.IPAddresses = []string{"est.example"}, nil })
	for name, edit := range map[string]func(*Config){"by an anchor": func(*Config) {}, "by a fingerprint": pinned(root)} {
		s := serve(t, servedBy(elsewhere.tls(issuing)))
		_, err := s.client(t, edit).Enroll(t.Context(), ask())
		check(t, err, "untrusted", "127.0.0.1")
		if slices.ContainsFunc(s.requests(), func(r request) bool { return r.Method == http.MethodPost }) {
			t.Errorf("%s: it got the request", name)
		}
	}
}

// throughProxy reports whether a client of a server at url uses the proxy of the
// environment.
func throughProxy(t *testing.T, url string) bool {
	t.Helper()
	c, err := New(Config{URL: url, Anchors: raw(root)})
	must(err)
	proxy, err := c.peer.transport.Proxy(nil)
	must(err)
	return proxy != nil
}

func TestNoProxyIsObeyed(t *testing.T) {
	for url, want := range map[string]bool{
		"https://" + proxied:         true,
		"https://direct.test":        false,
		"https://est.direct.test":    false,
		"https://port.test":          true,
		"https://port.test:8443":     false,
		"https://192.0.2.7":          false,
		"https://198.51.100.7":       true,
		"https://127.0.0.1:8443":     false,
		"https://localhost":          false,
		"https://direct.test.evil":   true,
		"https://other.test:8443":    true,
		"https://[2001:db8::1]:8443": true,
	} {
		if got := throughProxy(t, url); got != want {
			t.Errorf("%s: through the proxy %v, want %v", url, got, want)
		}
	}
}
