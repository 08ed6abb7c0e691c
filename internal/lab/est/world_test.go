package est

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
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"birthmark/internal/lab/ca"

	"go.mozilla.org/pkcs7"
)

// A world is a maker and an owner, each with a CA and an EST server before it.
type world struct {
	dir          string
	maker, owner *ca.CA
	log          *bytes.Buffer // what the servers said; read it after the answer

	makerEST, ownerEST *Server
}

// newWorld opens the world in dir, where it may have been before; change, if not nil,
// changes the owner's server.
func newWorld(tb testing.TB, dir string, change func(*Config)) *world {
	tb.Helper()
	w := &world{dir: dir, log: new(bytes.Buffer)}
	log := slog.New(slog.NewTextHandler(w.log, nil))
	open := func(name string) *ca.CA {
		c, err := ca.Open(filepath.Join(dir, name), name)
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { c.Close() })
		return c
	}
	w.maker, w.owner = open("maker"), open("owner")
	conf := Config{CA: w.owner, Profile: ca.Device(0), Clients: w.maker.Chain(), Log: log}
	if change != nil {
		change(&conf)
	}
	w.makerEST = start(tb, Config{CA: w.maker, Profile: ca.Birth(), Log: log})
	w.ownerEST = start(tb, conf)
	return w
}

func start(tb testing.TB, conf Config) *Server {
	tb.Helper()
	s, err := Start("127.0.0.1:0", conf)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// close ends the world, as it ends when the lab is stopped.
func (w *world) close(tb testing.TB) {
	tb.Helper()
	for _, c := range []io.Closer{w.makerEST, w.ownerEST, w.maker, w.owner} {
		if err := c.Close(); err != nil {
			tb.Fatal(err)
		}
	}
}

func (w *world) password(tb testing.TB, c *ca.CA, id string) string {
	tb.Helper()
	text, err := c.Passwords().New(id)
	if err != nil {
		tb.Fatal(err)
	}
	return text
}

// A device is a client with a key.
type device struct {
	id   string
	key  *ecdsa.PrivateKey
	tmpl *x509.CertificateRequest // what it asks for; nil for just its id
	cert *tls.Certificate         // that it shows
	pass string                   // that it gives
}

func newDevice(tb testing.TB, id string) *device {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return &device{id: id, key: key}
}

func named(id string) *x509.CertificateRequest {
	return &x509.CertificateRequest{Subject: pkix.Name{CommonName: id}}
}

func (d *device) csr(tb testing.TB) []byte {
	tb.Helper()
	tmpl := d.tmpl
	if tmpl == nil {
		tmpl = named(d.id)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, d.key)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// holding returns a device that shows cert, for its successor with a new key.
func (d *device) holding(tb testing.TB, cert *x509.Certificate, above ...*x509.Certificate) *device {
	tb.Helper()
	next := newDevice(tb, d.id)
	next.cert = shown(d.key, cert, above...)
	return next
}

func shown(key crypto.Signer, cert *x509.Certificate, above ...*x509.Certificate) *tls.Certificate {
	c := &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
	for _, a := range above {
		c.Certificate = append(c.Certificate, a.Raw)
	}
	return c
}

// tls is the configuration of the device, which trusts root.
func (d *device) tls(root *x509.Certificate) *tls.Config {
	conf := &tls.Config{RootCAs: x509.NewCertPool()}
	conf.RootCAs.AddCert(root)
	if d.cert != nil {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return d.cert, nil }
	}
	return conf
}

// An answer of a server.
type answer struct {
	status int
	header http.Header
	body   string
}

// do sends a request over a new connection.
func (d *device) do(tb testing.TB, s *Server, req *http.Request) answer {
	tb.Helper()
	return d.doTLS(tb, d.tls(s.http.Handler.(*handler).CA.Root()), req)
}

func (d *device) doTLS(tb testing.TB, conf *tls.Config, req *http.Request) answer {
	tb.Helper()
	if d.pass != "" {
		req.SetBasicAuth(d.id, d.pass)
	}
	transport := &http.Transport{TLSClientConfig: conf, DisableCompression: true, DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

func request(tb testing.TB, method, url string, body io.Reader) *http.Request {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), method, url, body)
	if err != nil {
		tb.Fatal(err)
	}
	return req
}

// post asks for a certificate.
func (d *device) post(tb testing.TB, s *Server, op string) answer {
	tb.Helper()
	return d.postBody(tb, s, op, base64.StdEncoding.EncodeToString(d.csr(tb)))
}

func (d *device) postBody(tb testing.TB, s *Server, op, body string) answer {
	tb.Helper()
	req := request(tb, http.MethodPost, s.URL()+root+op, strings.NewReader(body))
	req.Header.Set("Content-Type", "application/pkcs10")
	return d.do(tb, s, req)
}

// mustEnrol returns the certificate that the device gets.
func (d *device) mustEnrol(tb testing.TB, s *Server, op string) *x509.Certificate {
	tb.Helper()
	certs := certificates(tb, d.post(tb, s, op))
	if len(certs) != 1 {
		tb.Fatalf("%d certificates, want the one that was issued", len(certs))
	}
	if !d.key.PublicKey.Equal(certs[0].PublicKey) {
		tb.Fatal("the certificate is for another key")
	}
	return certs[0]
}

// certificates reads an answer of certificates, with a library that is not ours.
func certificates(tb testing.TB, a answer) []*x509.Certificate {
	tb.Helper()
	if a.status != http.StatusOK {
		tb.Fatalf("status %d, %q; want 200", a.status, a.body)
	}
	if got, want := a.header.Get("Content-Type"), "application/pkcs7-mime; smime-type=certs-only"; got != want {
		tb.Errorf("type %q, want %q", got, want)
	}
	if got := a.header.Values("Content-Transfer-Encoding"); got != nil {
		tb.Errorf("Content-Transfer-Encoding %q, want none", got)
	}
	if got := a.header.Get("Content-Length"); got != strconv.Itoa(len(a.body)) {
		tb.Errorf("Content-Length %q, want %d", got, len(a.body))
	}
	if strings.ContainsAny(a.body, "\r\n") {
		tb.Error("the base64 is wrapped, want one line")
	}
	der, err := base64.StdEncoding.DecodeString(a.body)
	if err != nil {
		tb.Fatal(err)
	}
	// Version 1, no digests, content of type data and none of it (RFC 5652 5.1).
	if start := []byte("\x02\x01\x01\x31\x00\x30\x0b\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01\xa0"); !bytes.Contains(der, start) {
		tb.Errorf("%x is not certs-only", der)
	}
	p7, err := pkcs7.Parse(der)
	if err != nil {
		tb.Fatal(err)
	}
	return p7.Certificates
}
