package est

import (
	"bufio"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"birthmark/internal/lab/ca"
)

// Each row is one way to cheat, or to err, at the owner's server.
func TestRefusals(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	dev := newDevice(t, "dev-1")
	dev.pass = w.password(t, w.maker, "dev-1")
	idevid := dev.mustEnrol(t, w.makerEST, "simpleenroll")
	enrolled := dev.holding(t, idevid)
	ldevid := enrolled.mustEnrol(t, w.ownerEST, "simpleenroll")
	operator, err := w.owner.Operator()
	if err != nil {
		t.Fatal(err)
	}
	server, err := w.owner.Server("est")
	if err != nil {
		t.Fatal(err)
	}
	password := w.password(t, w.owner, "dev-2")
	used := w.password(t, w.owner, "dev-3")
	first := newDevice(t, "dev-3")
	first.pass = used
	first.mustEnrol(t, w.ownerEST, "simpleenroll")

	for _, tc := range []struct {
		name   string
		dev    device // its key is made here
		op     string
		status int
		want   string
	}{
		{"nothing shown", device{id: "dev-2"}, "simpleenroll", 401, "neither"},
		{"a wrong password", device{id: "dev-2", pass: password + "x"}, "simpleenroll", 401, "wrong password"},
		{"another device's password", device{id: "dev-1", pass: password}, "simpleenroll", 401, "wrong password"},
		{"a password of the maker", device{id: "dev-1", pass: dev.pass}, "simpleenroll", 401, "wrong password"},
		{"a used password", device{id: "dev-3", pass: used}, "simpleenroll", 403, "another key"},
		{"another device's name, by password", device{id: "dev-2", pass: password, tmpl: named("dev-1")}, "simpleenroll", 403, `for "dev-1", the password is of "dev-2"`},
		{"another device's name, by certificate", device{cert: shown(dev.key, idevid), tmpl: named("dev-2")}, "simpleenroll", 403, `for "dev-2", the certificate is of "dev-1"`},
		{"the operator's name", device{id: "dev-2", pass: password, tmpl: named("operator")}, "simpleenroll", 400, "not the name of a device"},
		{"a name that is no topic level", device{id: "dev-2", pass: password, tmpl: named("dev/2")}, "simpleenroll", 400, "device id"},

		{"an enrolment by LDevID", device{id: "dev-1", cert: shown(enrolled.key, ldevid)}, "simpleenroll", 403, "unknown authority"},
		{"an enrolment by self-signed certificate", device{id: "dev-1", cert: selfSigned(t, "dev-1", time.Hour)}, "simpleenroll", 403, "unknown authority"},
		{"an enrolment by a CA that calls itself the maker's", device{id: "dev-1", cert: forged(t, w.maker)}, "simpleenroll", 403, "signed by unknown authority"},

		{"a renewal by nobody", device{id: "dev-1"}, "simplereenroll", 403, "no client certificate"},
		{"a renewal by password", device{id: "dev-2", pass: password}, "simplereenroll", 403, "no client certificate"},
		{"a renewal by IDevID", device{id: "dev-1", cert: shown(dev.key, idevid)}, "simplereenroll", 403, "unknown authority"},
		{"a renewal by another CA's certificate", device{id: "dev-1", cert: selfSigned(t, "dev-1", time.Hour)}, "simplereenroll", 403, "unknown authority"},
		{"a renewal by a server", device{id: "dev-1", cert: server}, "simplereenroll", 403, "incompatible key usage"},
		{"a renewal of the operator", device{id: "operator", cert: operator}, "simplereenroll", 400, "not the name of a device"},
		{"a renewal under another name", device{id: "dev-2", cert: shown(enrolled.key, ldevid)}, "simplereenroll", 403, `for "dev-2"`},
		{"a renewal with a longer subject", device{cert: shown(enrolled.key, ldevid), tmpl: &x509.CertificateRequest{
			Subject: pkix.Name{CommonName: "dev-1", Organization: []string{"x"}}}}, "simplereenroll", 403, "subject and subjectAltName"},
		{"a renewal with another alternative name", device{cert: shown(enrolled.key, ldevid), tmpl: &x509.CertificateRequest{
			Subject: pkix.Name{CommonName: "dev-1"}, DNSNames: []string{"x"}}}, "simplereenroll", 403, "subject and subjectAltName"},
	} {
		tc.dev.key = newDevice(t, "").key
		checkRefusal(t, tc.name, tc.dev.post(t, w.ownerEST, tc.op), tc.status, tc.want)
	}

	// A birth certificate has no successor, and no other certificate opens the maker's
	// door.
	next := dev.holding(t, idevid)
	checkRefusal(t, "a renewal at the maker's", next.post(t, w.makerEST, "simplereenroll"), 400, "not renewed")
	checkRefusal(t, "an enrolment by IDevID at the maker's", next.post(t, w.makerEST, "simpleenroll"), 403, "unknown authority")

	// What was refused has used up nothing.
	good := newDevice(t, "dev-2")
	good.pass = password
	good.mustEnrol(t, w.ownerEST, "simpleenroll")
}

func checkRefusal(tb testing.TB, name string, a answer, status int, want string) {
	tb.Helper()
	if a.status != status || !strings.Contains(a.body, want) {
		tb.Errorf("%s: got %d %q, want %d with %q", name, a.status, a.body, status, want)
	}
	if strings.Count(a.body, "\n") != 1 || !strings.HasSuffix(a.body, "\n") || !strings.HasPrefix(a.header.Get("Content-Type"), "text/plain") {
		tb.Errorf("%s: got %q of type %s, want one line of text", name, a.body, a.header.Get("Content-Type"))
	}
	if basic := strings.HasPrefix(a.header.Get("WWW-Authenticate"), "Basic "); basic != (a.status == 401) {
		tb.Errorf("%s: %d with WWW-Authenticate %q", name, a.status, a.header.Get("WWW-Authenticate"))
	}
}

// selfSigned is a certificate that ends after life, which may be over.
func selfSigned(tb testing.TB, cn string, life time.Duration) *tls.Certificate {
	tb.Helper()
	key := newDevice(tb, cn).key
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: cn}, NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(life),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// forged is a certificate under a CA whose certificate says what c's does, but for
// the key.
func forged(tb testing.TB, c *ca.CA) *tls.Certificate {
	tb.Helper()
	caKey, key := newDevice(tb, "").key, newDevice(tb, "").key
	authority := *c.Root()
	authority.PublicKey = caKey.Public()
	caDER, err := x509.CreateCertificate(rand.Reader, &authority, &authority, caKey.Public(), caKey)
	if err != nil {
		tb.Fatal(err)
	}
	parent, err := x509.ParseCertificate(caDER)
	if err != nil {
		tb.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "dev-1"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), caKey)
	if err != nil {
		tb.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, caDER}, PrivateKey: key}
}

// A certificate that has ended is a reason to read, not a broken handshake.
func TestAnEndedCertificateIsToldSo(t *testing.T) {
	ended := selfSigned(t, "dev-1", -time.Hour)
	cert, err := x509.ParseCertificate(ended.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, t.TempDir(), func(c *Config) { c.Clients = []*x509.Certificate{cert} })
	dev := newDevice(t, "dev-1")
	dev.cert = ended
	checkRefusal(t, "an ended certificate", dev.post(t, w.ownerEST, "simpleenroll"), 403, "has expired")

	// A password still opens the door.
	dev.pass = w.password(t, w.owner, "dev-1")
	dev.mustEnrol(t, w.ownerEST, "simpleenroll")
}

func TestRequestsThatAreNone(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	dev := newDevice(t, "dev-1")
	dev.pass = w.password(t, w.owner, "dev-1")
	der := dev.csr(t)
	good := base64.StdEncoding.EncodeToString(der)
	tampered := append([]byte(nil), der...)
	tampered[len(tampered)-1] ^= 1
	for _, tc := range []struct {
		name      string
		mediaType string
		body      string
		status    int
		want      string
	}{
		{"no type", "", good, 415, "application/pkcs10"},
		{"another type", "application/x-www-form-urlencoded", good, 415, "application/pkcs10"},
		{"a type that is none", "application/pkcs10; =", good, 415, "application/pkcs10"},
		{"nothing", "application/pkcs10", "", 400, "no PKCS #10"},
		{"PEM", "application/pkcs10", "-----BEGIN CERTIFICATE REQUEST-----\n" + good + "\n-----END CERTIFICATE REQUEST-----\n", 400, "without PEM's"},
		{"DER", "application/pkcs10", string(der), 400, "not base64"},
		{"half of it", "application/pkcs10", good[:len(good)/8*4], 400, "no PKCS #10"},
		{"something after it", "application/pkcs10", base64.StdEncoding.EncodeToString(append(der[:len(der):len(der)], 0)), 400, "no PKCS #10"},
		{"a NUL in the middle", "application/pkcs10", good[:8] + "\x00" + good[8:], 400, "not base64"},
		{"a broken signature", "application/pkcs10", base64.StdEncoding.EncodeToString(tampered), 400, ""},
		{"too much", "application/pkcs10", strings.Repeat("A", bodyLimit+1), 413, "more than 65536 bytes"},
	} {
		req := request(t, http.MethodPost, w.ownerEST.URL()+root+"simpleenroll", strings.NewReader(tc.body))
		req.Header.Set("Content-Type", tc.mediaType)
		checkRefusal(t, tc.name, dev.do(t, w.ownerEST, req), tc.status, tc.want)
		if tc.name == "too much" { // and does not say so
			req := request(t, http.MethodPost, w.ownerEST.URL()+root+"simpleenroll", struct{ *strings.Reader }{strings.NewReader(tc.body)})
			req.Header.Set("Content-Type", tc.mediaType)
			checkRefusal(t, "too much, chunked", dev.do(t, w.ownerEST, req), tc.status, tc.want)
		}
	}
}

// A client that asks before it sends hears no before it has sent anything.
func TestTooMuchIsRefusedUnread(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	dev := newDevice(t, "dev-1")
	conn, err := tls.Dial("tcp", w.ownerEST.Addr().String(), dev.tls(w.owner.Root()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	req := request(t, http.MethodPost, w.ownerEST.URL()+root+"simpleenroll", nil)
	req.SetBasicAuth("dev-1", w.password(t, w.owner, "dev-1"))
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: %s\r\nContent-Type: application/pkcs10\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n",
		req.URL.Path, req.Header.Get("Authorization"), bodyLimit+1)
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.Contains(line, "413") {
		t.Errorf("got %q, %v, want 413", line, err)
	}
}

func TestPathsAndMethods(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	dev := newDevice(t, "dev-1")
	for _, tc := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"GET", "/", 404, ""},
		{"GET", "/.well-known/est", 404, ""},
		{"GET", root, 404, ""},
		{"GET", root + "cacerts/", 404, ""},
		{"GET", root + "CACERTS", 404, ""},
		{"GET", root + "a/b/cacerts", 404, ""},
		{"GET", root + "/cacerts", 404, ""},
		{"GET", "/.well-known//est/cacerts", 404, ""},
		{"GET", root + "csrattrs/cacerts", 404, ""},
		{"GET", root + "serverkeygen", 404, ""},
		{"POST", root + "fullcmc", 404, ""},
		{"POST", root + "cacerts", 405, "GET"},
		{"PUT", root + "csrattrs", 405, "GET"},
		{"GET", root + "simpleenroll", 405, "POST"},
		{"HEAD", root + "label/simplereenroll", 405, "POST"},
	} {
		a := dev.do(t, w.ownerEST, request(t, tc.method, w.ownerEST.URL()+tc.path, nil))
		if tc.method != "HEAD" {
			checkRefusal(t, tc.method+" "+tc.path, a, tc.status, "")
		}
		if got := a.header.Get("Allow"); a.status != tc.status || got != tc.allow {
			t.Errorf("%s %s: %d, Allow %q, want %d, %q", tc.method, tc.path, a.status, got, tc.status, tc.allow)
		}
	}
	if a := dev.do(t, w.ownerEST, request(t, "HEAD", w.ownerEST.URL()+root+"cacerts", nil)); a.status != 200 || a.body != "" {
		t.Errorf("HEAD cacerts: %d %q, want 200 and nothing", a.status, a.body)
	}
}

// A CA that cannot record issues nothing, and does not tell the world why.
func TestACAThatCannotAnswer(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	dev := newDevice(t, "dev-1")
	dev.pass = w.password(t, w.owner, "dev-1")
	w.owner.Close()
	a := dev.post(t, w.ownerEST, "simpleenroll")
	if a.status != http.StatusInternalServerError || a.body != "the CA cannot answer now\n" {
		t.Errorf("got %d %q, want 500 without details", a.status, a.body)
	}
}
