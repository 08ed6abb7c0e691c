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
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

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

// A device is born at its maker's, enrols at its owner's, and renews there.
func TestALife(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	born := newDevice(t, "dev-1")
	born.pass = w.password(t, w.maker, "dev-1")
	idevid := born.mustEnrol(t, w.makerEST, "simpleenroll")
	if idevid.NotAfter.Year() != 9999 {
		t.Errorf("the IDevID ends in %v, want never", idevid.NotAfter)
	}

	for _, above := range [][]*x509.Certificate{nil, {w.maker.Issuing()}, w.maker.Chain()} {
		enrolled := born.holding(t, idevid, above...)
		ldevid := enrolled.mustEnrol(t, w.ownerEST, "simpleenroll")
		if err := ldevid.CheckSignatureFrom(w.owner.Issuing()); err != nil {
			t.Error(err)
		}
		renewed := enrolled.holding(t, ldevid, above...)
		next := renewed.mustEnrol(t, w.ownerEST, "simplereenroll")
		if next.Subject.String() != "CN=dev-1" || next.Equal(ldevid) {
			t.Errorf("renewed as %v, serial %x after %x", next.Subject, next.SerialNumber, ldevid.SerialNumber)
		}
		// The same key again, if the device likes it so.
		renewed.cert = shown(renewed.key, next)
		if again := renewed.mustEnrol(t, w.ownerEST, "simplereenroll"); again.Equal(next) {
			t.Error("renewed with the same key, the device got the certificate that it had")
		}
	}
}

// An owner may know only the root of a maker: then the device brings what is between.
func TestADeviceBringsItsChain(t *testing.T) {
	w := newWorld(t, t.TempDir(), func(c *Config) { c.Clients = c.Clients[1:] })
	dev := newDevice(t, "dev-1")
	dev.pass = w.password(t, w.maker, "dev-1")
	idevid := dev.mustEnrol(t, w.makerEST, "simpleenroll")
	checkRefusal(t, "without the issuing CA", dev.holding(t, idevid).post(t, w.ownerEST, "simpleenroll"), 403, "unknown authority")
	dev.holding(t, idevid, w.maker.Issuing()).mustEnrol(t, w.ownerEST, "simpleenroll")
}

// What was lost on the way is sent again, also after the lab was restarted, and under
// a label: passwords, CAs and certificates survive.
func TestALostAnswerIsGivenAgain(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, dir, nil)
	dev := newDevice(t, "dev-1")
	dev.pass = w.password(t, w.maker, "dev-1")
	first := dev.mustEnrol(t, w.makerEST, "simpleenroll")
	root := w.maker.Root()
	w.close(t)

	w = newWorld(t, dir, nil)
	if !w.maker.Root().Equal(root) {
		t.Error("after a restart the root is another")
	}
	for _, op := range []string{"simpleenroll", "a-label/simpleenroll"} {
		if again := dev.mustEnrol(t, w.makerEST, op); !again.Equal(first) {
			t.Errorf("%s: asked again, the device got another certificate", op)
		}
	}
	thief := newDevice(t, "dev-1")
	thief.pass = dev.pass
	if a := thief.post(t, w.makerEST, "simpleenroll"); a.status != http.StatusForbidden {
		t.Errorf("after a restart the password opens for another key: %d %q, want 403", a.status, a.body)
	}
}

func TestCACertsHasTheIssuingCAAndTheRoot(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	for _, path := range []string{"cacerts", "some-label/cacerts", "a%2Fb/cacerts"} {
		got := certificates(t, newDevice(t, "").do(t, w.ownerEST, request(t, http.MethodGet, w.ownerEST.URL()+root+path, nil)))
		// They are a set: DER says in which order.
		if len(got) != 2 || !slices.ContainsFunc(got, w.owner.Issuing().Equal) || !slices.ContainsFunc(got, w.owner.Root().Equal) {
			t.Errorf("%s: %d certificates, want the issuing CA and the root", path, len(got))
		}
	}
}

func TestCSRAttrsSaysWhatItIsTold(t *testing.T) {
	for _, tc := range []struct {
		name   string
		attrs  []byte
		status int
		body   string
	}{
		{"nothing", nil, http.StatusNoContent, ""},
		{"an empty sequence", []byte{0x30, 0}, http.StatusOK, "MAA="},
		{"no bytes", []byte{}, http.StatusOK, ""},
		{"rubbish", []byte("rubbish"), http.StatusOK, "cnViYmlzaA=="},
	} {
		w := newWorld(t, t.TempDir(), func(c *Config) { c.CSRAttrs = tc.attrs })
		a := newDevice(t, "").do(t, w.ownerEST, request(t, http.MethodGet, w.ownerEST.URL()+root+"csrattrs", nil))
		if a.status != tc.status || a.body != tc.body {
			t.Errorf("%s: got %d %q, want %d %q", tc.name, a.status, a.body, tc.status, tc.body)
		}
		if got := a.header.Get("Content-Type"); a.status == http.StatusOK && got != "application/csrattrs" {
			t.Errorf("%s: type %q, want application/csrattrs", tc.name, got)
		}
	}
}

// Who sends a request in another form than we would still gets a certificate (RFC 8951
// section 3).
func TestForeignHabitsAreUnderstood(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	dev := newDevice(t, "dev-1")
	dev.pass = w.password(t, w.owner, "dev-1")
	plain := base64.StdEncoding.EncodeToString(dev.csr(t))
	var wrapped strings.Builder
	for line := plain; line != ""; line = line[min(64, len(line)):] {
		wrapped.WriteString(line[:min(64, len(line))] + "\r\n")
	}
	for _, tc := range []struct {
		name   string
		body   string
		change func(*http.Request)
	}{
		{"one line", plain, nil},
		{"wrapped", wrapped.String(), nil},
		{"wrapped with LF", strings.ReplaceAll(wrapped.String(), "\r", ""), nil},
		{"indented", " \t" + strings.ReplaceAll(wrapped.String(), "\n", "\n\t "), nil},
		{"a NUL at the end", wrapped.String() + "\x00", nil},
		{"chunked", plain, func(r *http.Request) { r.ContentLength, r.Body = -1, io.NopCloser(strings.NewReader(plain)) }},
		{"another case", plain, func(r *http.Request) { r.Header.Set("Content-Type", `Application/PKCS10; charset="x"`) }},
		{"Content-Transfer-Encoding", plain, func(r *http.Request) { r.Header.Set("Content-Transfer-Encoding", "base64") }},
		{"a false Content-Transfer-Encoding", plain, func(r *http.Request) { r.Header.Set("Content-Transfer-Encoding", "binary") }},
		{"Expect", plain, func(r *http.Request) { r.Header.Set("Expect", "100-continue") }},
	} {
		req := request(t, http.MethodPost, w.ownerEST.URL()+root+"simpleenroll", strings.NewReader(tc.body))
		req.Header.Set("Content-Type", "application/pkcs10")
		if tc.change != nil {
			tc.change(req)
		}
		if a := dev.do(t, w.ownerEST, req); a.status != http.StatusOK {
			t.Errorf("%s: %d %q, want 200", tc.name, a.status, a.body)
		}
	}
}

// An old device comes with TLS 1.2, and reads the answer in one record.
func TestBothVersionsOfTLS(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	for version, ok := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		conf := newDevice(t, "").tls(w.ownerEST.http.Handler.(*handler).CA.Root())
		conf.MinVersion, conf.MaxVersion = version, version
		conn, err := tls.Dial("tcp", w.ownerEST.Addr().String(), conf)
		if (err == nil) != ok {
			t.Errorf("%s: %v, want success %v", tls.VersionName(version), err, ok)
		}
		if err != nil {
			continue
		}
		io.WriteString(conn, "GET "+root+"cacerts HTTP/1.1\r\nHost: localhost\r\n\r\n")
		buf := make([]byte, 16<<10)
		n, err := conn.Read(buf) // one record
		if err != nil || !bytes.Contains(buf[:n], []byte("\r\n\r\n")) || bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
			t.Errorf("%s: the first record holds %d bytes, %v, want header and body", tls.VersionName(version), n, err)
		}
		conn.Close()
	}
}

func TestHeldRequestsAreAnsweredLater(t *testing.T) {
	wait := 1500 * time.Millisecond
	w := newWorld(t, t.TempDir(), func(c *Config) {
		c.Hold = func(csr *x509.CertificateRequest) time.Duration {
			if csr.Subject.CommonName != "dev-1" {
				t.Errorf("asked about %v, want dev-1", csr.Subject)
			}
			return wait
		}
	})
	dev := newDevice(t, "dev-1")
	dev.pass = w.password(t, w.owner, "dev-1")
	for range 2 {
		a := dev.post(t, w.ownerEST, "simpleenroll")
		if a.status != http.StatusAccepted || a.header.Get("Retry-After") != "2" {
			t.Errorf("%d %q, Retry-After %q, want 202 and 2", a.status, a.body, a.header.Get("Retry-After"))
		}
	}
	other := newDevice(t, "dev-1")
	other.pass = dev.pass
	if a := other.post(t, w.ownerEST, "simpleenroll"); a.status != http.StatusForbidden {
		t.Errorf("while one key waits, another got %d %q, want 403", a.status, a.body)
	}
	wait = 0
	dev.mustEnrol(t, w.ownerEST, "simpleenroll")
}

func TestEveryIssuanceAndRefusalIsLogged(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	dev := newDevice(t, "dev-1")
	dev.post(t, w.ownerEST, "simpleenroll")
	dev.pass = w.password(t, w.owner, "dev-1")
	dev.mustEnrol(t, w.ownerEST, "simpleenroll")
	w.close(t)
	log := w.log.String()
	for _, want := range []string{`msg="request refused"`, "status=401", `msg="certificate issued"`, "subject=\"CN=dev-1\"", "by=password", "profile=device"} {
		if !strings.Contains(log, want) {
			t.Errorf("%q is not in the log:\n%s", want, log)
		}
	}
	if strings.Contains(log, dev.pass) || strings.Count(log, "\n") != 2 {
		t.Errorf("want one line each, without the password:\n%s", log)
	}
}

func TestCloseAnswersWhatHasCome(t *testing.T) {
	inside, leave := make(chan struct{}), make(chan struct{})
	w := newWorld(t, t.TempDir(), func(c *Config) {
		c.Hold = func(*x509.CertificateRequest) time.Duration {
			close(inside)
			<-leave
			return 0
		}
	})
	dev := newDevice(t, "dev-1")
	dev.pass = w.password(t, w.owner, "dev-1")
	enrolled := make(chan answer)
	go func() { enrolled <- dev.post(t, w.ownerEST, "simpleenroll") }()
	<-inside
	closed := make(chan error)
	go func() { closed <- w.ownerEST.Close() }()
	<-w.ownerEST.ended // it takes no more
	close(leave)
	if a := <-enrolled; a.status != http.StatusOK {
		t.Errorf("%d %q, want 200", a.status, a.body)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

func TestAddresses(t *testing.T) {
	c, err := ca.Open(t.TempDir(), "Test")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for addr, want := range map[string]string{"127.0.0.1:0": "https://127.0.0.1:", "[::1]:0": "https://[::1]:", "0.0.0.0:0": "https://localhost:"} {
		s, err := Start(addr, Config{CA: c, Profile: ca.Device(0)})
		if err != nil {
			t.Errorf("%s: %v", addr, err)
			continue
		}
		if !strings.HasPrefix(s.URL(), want) {
			t.Errorf("at %s the URL is %s, want %s…", addr, s.URL(), want)
		}
		if _, err := Start(s.Addr().String(), Config{CA: c}); err == nil {
			t.Errorf("%s: two servers at one address", addr)
		}
		s.Close()
	}
}
