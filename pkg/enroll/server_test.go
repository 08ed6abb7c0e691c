package enroll

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
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
	"time"

	"go.mozilla.org/pkcs7"

	"birthmark/pkg/clock"
)

const day = 24 * time.Hour

// now is the time on all clocks.
var now = clock.Build().AddDate(0, 6, 0).Truncate(time.Second)

// A party is a certificate with its key.
type party struct {
	*x509.Certificate
	key crypto.Signer
}

// sign lets p certify the public key of a template that is valid around now. Without
// p the certificate is self-signed.
func (p *party) sign(key crypto.Signer, edit func(*x509.Certificate)) *party {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	must(err)
	tmpl := &x509.Certificate{
		SerialNumber: serial, NotBefore: now.Add(-day), NotAfter: now.Add(90 * day),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	edit(tmpl)
	parent := p
	if parent == nil {
		parent = &party{tmpl, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent.Certificate, key.Public(), parent.key)
	must(err)
	cert, err := x509.ParseCertificate(der)
	must(err)
	return &party{cert, key}
}

// ca certifies another CA, or without p makes a root.
func (p *party) ca(name string, edit ...func(*x509.Certificate)) *party {
	return p.sign(newKey(), func(tmpl *x509.Certificate) {
		tmpl.Subject.CommonName = name
		tmpl.NotAfter = now.AddDate(10, 0, 0)
		tmpl.IsCA, tmpl.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
		for _, e := range edit {
			e(tmpl)
		}
	})
}

// server certifies an EST server.
func (p *party) server(edit ...func(*x509.Certificate)) *party {
	return p.sign(newKey(), func(tmpl *x509.Certificate) {
		tmpl.Subject.CommonName = "est"
		tmpl.DNSNames, tmpl.IPAddresses = []string{"localhost", proxied}, []net.IP{net.IPv4(127, 0, 0, 1)}
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		for _, e := range edit {
			e(tmpl)
		}
	})
}

// device certifies a device.
func (p *party) device(key crypto.Signer, edit ...func(*x509.Certificate)) *party {
	return p.sign(key, func(tmpl *x509.Certificate) {
		tmpl.Subject.CommonName = "sensor-1"
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		for _, e := range edit {
			e(tmpl)
		}
	})
}

func (p *party) tls(chain ...*party) *tls.Certificate {
	cert := &tls.Certificate{Certificate: [][]byte{p.Raw}, PrivateKey: p.key}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert
}

func newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	return key
}

// The parties that every test knows.
var (
	root      = (*party)(nil).ca("root")
	issuing   = root.ca("issuing")
	server    = issuing.server()
	foreign   = (*party)(nil).ca("foreign root")
	namesake  = (*party)(nil).ca("root") // has the name of root, and another key
	deviceKey = newKey()
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func raw(parties ...*party) (certs []*x509.Certificate) {
	for _, p := range parties {
		certs = append(certs, p.Certificate)
	}
	return certs
}

// certsOnly is a certs-only message in DER. It is written by another program than
// the one that reads it.
func certsOnly(certs ...*x509.Certificate) []byte {
	var all []byte
	for _, c := range certs {
		all = append(all, c.Raw...)
	}
	der, err := pkcs7.DegenerateCertificate(all)
	must(err)
	return der
}

func base64Of(der []byte) string { return base64.StdEncoding.EncodeToString(der) }

// A request is what the server saw.
type request struct {
	*http.Request
	body []byte
}

// An estServer is an EST server that can be told to misbehave. It does what is
// right unless a field says otherwise.
type estServer struct {
	*httptest.Server

	// Instead of the right thing, by operation. The body is read already.
	handle map[string]http.HandlerFunc
	// What the right thing issues instead of a certificate for the request.
	issue func(*x509.CertificateRequest) []*x509.Certificate

	mu   sync.Mutex
	seen []request
}

func (s *estServer) requests() []request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

// serve starts an EST server; edit changes its TLS.
func serve(tb testing.TB, edit ...func(*tls.Config)) *estServer {
	s := &estServer{handle: map[string]http.HandlerFunc{}, issue: func(csr *x509.CertificateRequest) []*x509.Certificate {
		return raw(certify(csr))
	}}
	s.Server = httptest.NewUnstartedServer(s)
	s.Server.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{
		Certificates: []tls.Certificate{*server.tls(issuing)},
		Time:         func() time.Time { return now },
	}
	for _, e := range edit {
		e(s.TLS)
	}
	s.StartTLS()
	tb.Cleanup(s.Close)
	return s
}

// certify gives a request what it asks for.
func certify(csr *x509.CertificateRequest, edit ...func(*x509.Certificate)) *party {
	return certifyBy(issuing, csr, edit...)
}

func certifyBy(ca *party, csr *x509.CertificateRequest, edit ...func(*x509.Certificate)) *party {
	return ca.device(&publicOnly{csr.PublicKey}, func(tmpl *x509.Certificate) {
		tmpl.RawSubject = csr.RawSubject
		tmpl.DNSNames, tmpl.IPAddresses = csr.DNSNames, csr.IPAddresses
		for _, e := range edit {
			e(tmpl)
		}
	})
}

// publicOnly stands for a key that is elsewhere.
type publicOnly struct{ key crypto.PublicKey }

func (k *publicOnly) Public() crypto.PublicKey { return k.key }
func (k *publicOnly) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("it is elsewhere")
}

func (s *estServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	s.seen = append(s.seen, request{r, body})
	s.mu.Unlock()
	op := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	if h := s.handle[op]; h != nil {
		h(w, r)
		return
	}
	switch op {
	case opCACerts:
		s.answer(w, certsOnly(raw(issuing, root)...))
	case opCSRAttrs:
		w.WriteHeader(http.StatusNoContent)
	case opEnroll, opReenroll:
		der, err := base64.StdEncoding.DecodeString(string(body))
		if err == nil {
			var csr *x509.CertificateRequest
			if csr, err = x509.ParseCertificateRequest(der); err == nil {
				s.answer(w, certsOnly(s.issue(csr)...))
			}
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	default:
		http.NotFound(w, r)
	}
}

func (s *estServer) answer(w http.ResponseWriter, der []byte) {
	w.Header().Set("Content-Type", "application/pkcs7-mime; smime-type=certs-only")
	io.WriteString(w, base64Of(der))
}

// client is a device's client of s, with a synchronised clock.
func (s *estServer) client(tb testing.TB, edit ...func(*Config)) *Client {
	tb.Helper()
	conf := Config{URL: s.URL, Anchors: raw(root), Clock: synchronised(now), Timeout: 20 * time.Second}
	for _, e := range edit {
		e(&conf)
	}
	c, err := New(conf)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if c.peer != nil {
			c.peer.transport.CloseIdleConnections()
		}
	})
	return c
}

func synchronised(at time.Time) *clock.Clock {
	return clock.Fixed(clock.Build(), time.Time{}, at, true)
}

// ask is a device's request for a certificate.
func ask(edit ...func(*x509.CertificateRequest)) Request { return askFor(deviceKey, edit...) }

func askFor(key crypto.Signer, edit ...func(*x509.CertificateRequest)) Request {
	tmpl := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "sensor-1"}}
	for _, e := range edit {
		e(tmpl)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	must(err)
	return Request{CSR: der, Key: key}
}

// kind says by which type a caller would decide about err.
func kind(err error) string {
	var pending *PendingError
	var refused *RefusedError
	var untrusted *UntrustedError
	var answer *AnswerError
	var unavailable *UnavailableError
	var kinds []string
	for name, is := range map[string]bool{
		"pending": errors.As(err, &pending), "refused": errors.As(err, &refused), "untrusted": errors.As(err, &untrusted),
		"answer": errors.As(err, &answer), "unavailable": errors.As(err, &unavailable),
	} {
		if is {
			kinds = append(kinds, name)
		}
	}
	switch {
	case err == nil:
		return "no error"
	case len(kinds) != 1:
		return fmt.Sprintf("an error of %d kinds", len(kinds))
	}
	return kinds[0]
}

// check holds err against the kind and a part of the text that it should have, and
// against what every error must be.
func check(tb testing.TB, err error, wantKind, says string) {
	tb.Helper()
	if got := kind(err); got != wantKind {
		tb.Errorf("got %s (%v), want %s", got, err, wantKind)
		return
	}
	if err == nil {
		return
	}
	text := err.Error()
	if !strings.Contains(text, says) {
		tb.Errorf("error %q does not say %q", text, says)
	}
	if len(text) > 1000 || bytes.ContainsAny([]byte(text), "\n\r\x1b\x00") {
		tb.Errorf("error is not one short line: %.1200q", text)
	}
}
