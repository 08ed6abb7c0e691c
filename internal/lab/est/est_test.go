package est

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"birthmark/internal/lab/ca"
)

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
