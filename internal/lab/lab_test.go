package lab

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.mozilla.org/pkcs7"

	"birthmark/internal/lab/ca"
)

func up(t *testing.T, o Options) *Lab {
	t.Helper()
	l, err := Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// TestPaperTrail goes the way of a device: a password gets it a certificate of the
// maker, that one a certificate of the owner, and that one into the broker. Every
// short cut is refused.
func TestPaperTrail(t *testing.T) {
	l := up(t, Options{Dir: t.TempDir()})
	password, err := l.NewPassword(Maker, "dev-1")
	if err != nil {
		t.Fatal(err)
	}
	born, status := enroll(t, l, l.MakerURL(), Maker, credential{password: password})
	if status != http.StatusOK {
		t.Fatalf("the maker answers %d to a password of its own, want 200", status)
	}
	owned, status := enroll(t, l, l.OwnerURL(), Owner, credential{cert: born})
	if status != http.StatusOK {
		t.Fatalf("the owner answers %d to a certificate of the maker, want 200", status)
	}
	if _, status := enroll(t, l, l.OwnerURL(), Owner, credential{password: password}); status != http.StatusUnauthorized {
		t.Errorf("the owner answers %d to the maker's password, want 401", status)
	}
	if _, status := enroll(t, l, l.MakerURL(), Maker, credential{cert: owned}); status == http.StatusOK {
		t.Error("the maker certifies who shows a certificate of the owner")
	}
	if err := connect(t, l, owned); err != nil {
		t.Errorf("the broker refuses a certificate of the owner: %v", err)
	}
	if err := connect(t, l, born); err == nil {
		t.Error("the broker lets in a certificate of the maker")
	}
	operator, err := tls.LoadX509KeyPair(l.folder.path("operator", "cert.pem"), l.folder.path("operator", "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := connect(t, l, &operator); err != nil {
		t.Errorf("the broker refuses the operator: %v", err)
	}
	for whose, want := range map[string]string{Maker: "CN=dev-1", Owner: "CN=operator"} {
		issued, err := os.ReadFile(filepath.Join(l.Dir(), whose, "issued.jsonl"))
		if err != nil || !strings.Contains(string(issued), want) {
			t.Errorf("%s/issued.jsonl does not tell of %s, but %s (%v)", whose, want, issued, err)
		}
	}
}

// A credential is what a device shows an EST server.
type credential struct {
	password string
	cert     *tls.Certificate
}

// enroll asks for a certificate for dev-1.
func enroll(t *testing.T, l *Lab, url, whose string, c credential) (*tls.Certificate, int) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "dev-1"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	conf := &tls.Config{RootCAs: rootOf(t, l, whose)}
	if c.cert != nil {
		conf.Certificates = []tls.Certificate{*c.cert}
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}}
	body := strings.NewReader(base64.StdEncoding.EncodeToString(csr))
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/.well-known/est/"+whose+"/simpleenroll", body)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/pkcs10")
	if c.password != "" {
		request.SetBasicAuth("dev-1", c.password)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, response.StatusCode
	}
	der, err := io.ReadAll(base64.NewDecoder(base64.StdEncoding, response.Body))
	if err != nil {
		t.Fatal(err)
	}
	p7, err := pkcs7.Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	leaf := slices.IndexFunc(p7.Certificates, func(c *x509.Certificate) bool { return key.PublicKey.Equal(c.PublicKey) })
	if leaf < 0 {
		t.Fatal("no certificate for the key in the answer")
	}
	issuing := map[string]*ca.CA{Maker: l.folder.maker, Owner: l.folder.owner}[whose].Issuing()
	return &tls.Certificate{Certificate: [][]byte{p7.Certificates[leaf].Raw, issuing.Raw}, PrivateKey: key}, http.StatusOK
}

// rootOf is a root as a device is configured with it.
func rootOf(t *testing.T, l *Lab, whose string) *x509.CertPool {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(l.Dir(), "device", whose+"-root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		t.Fatalf("no certificate in %s-root.pem", whose)
	}
	return pool
}

// connect gets as far as the broker's first answer to a party with a certificate.
func connect(t *testing.T, l *Lab, cert *tls.Certificate) error {
	t.Helper()
	conn, err := tls.Dial("tcp", strings.TrimPrefix(l.BrokerURL(), "mqtts://"), &tls.Config{
		RootCAs: rootOf(t, l, Owner), Certificates: []tls.Certificate{*cert},
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	id := leaf.Subject.CommonName
	hello := []byte{0x10, byte(12 + len(id)), 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, byte(len(id))} // CONNECT, MQTT 3.1.1 section 3.1
	if _, err := conn.Write(append(hello, id...)); err != nil {
		return err
	}
	answer := make([]byte, 4)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return err
	}
	if !bytes.Equal(answer, []byte{0x20, 2, 0, 0}) { // CONNACK, accepted
		return errors.New("refused")
	}
	return nil
}

// TestRestart holds that a lab goes on where it stopped.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	first := up(t, Options{Dir: dir})
	config := read(t, dir, "device/birthmark.toml")
	password, err := first.NewPassword(Maker, "dev-1")
	if err != nil {
		t.Fatal(err)
	}
	born, _ := enroll(t, first, first.MakerURL(), Maker, credential{password: password})
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	before := first.folder.ports
	second := up(t, Options{Dir: dir})
	if got := second.folder.ports; got != before {
		t.Errorf("got ports %v, want those of before, %v", got, before)
	}
	if got := read(t, dir, "device/birthmark.toml"); got != config {
		t.Errorf("got another configuration for devices:\n%s", got)
	}
	owned, status := enroll(t, second, second.OwnerURL(), Owner, credential{cert: born})
	if status != http.StatusOK {
		t.Fatalf("the owner answers %d to a certificate from before the restart, want 200", status)
	}
	if err := connect(t, second, owned); err != nil {
		t.Error(err)
	}
	if _, status := enroll(t, second, second.MakerURL(), Maker, credential{password: password}); status == http.StatusOK {
		t.Error("after a restart the password is good for a second key")
	}
	if n := strings.Count(read(t, dir, "owner/issued.jsonl"), "CN=operator"); n != 1 {
		t.Errorf("the operator has %d certificates after a restart, want 1", n)
	}
}

func read(t *testing.T, elem ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestOneFolderOneLab: the second is refused and does no harm to the first.
func TestOneFolderOneLab(t *testing.T) {
	l := up(t, Options{Dir: t.TempDir()})
	if _, err := Up(t.Context(), Options{Dir: l.Dir()}); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v, want ErrInUse", err)
	}
	if _, err := l.NewPassword(Owner, "dev-1"); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	up(t, Options{Dir: l.Dir()})
}

// TestPortTaken: a lab that cannot have one of its ports is not up at all, nothing
// of it is left, and it takes no other port.
func TestPortTaken(t *testing.T) {
	dir := t.TempDir()
	l := up(t, Options{Dir: dir})
	p := l.folder.ports
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, port := range []int{p.Maker, p.Owner, p.Broker} {
		thief, err := net.Listen("tcp", address(port))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Up(t.Context(), Options{Dir: dir}); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), address(port)) {
			t.Errorf("got %v, want a word about %s", err, address(port))
		}
		thief.Close()
	}
	if l := up(t, Options{Dir: dir}); l.folder.ports != p {
		t.Errorf("got ports %v, want %v", l.folder.ports, p)
	}
}

// TestNoBroker leaves its port to mosquitto, which finds all that it needs beside a
// lab that is up, and without one.
func TestNoBroker(t *testing.T) {
	dir := t.TempDir()
	conf, url, err := Mosquitto(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	text := read(t, conf)
	l := up(t, Options{Dir: dir, NoBroker: true})
	if got := l.BrokerURL(); got != url {
		t.Errorf("the lab says the broker is at %s, mosquitto.conf says %s", got, url)
	}
	conf, _, err = Mosquitto(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, conf); got != text {
		t.Errorf("beside a lab that is up the file is another one:\n%s", got)
	}
	for line := range strings.Lines(text) {
		word, path, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !strings.HasSuffix(word, "file") && !strings.HasSuffix(word, "location") {
			continue
		}
		if _, err := os.Stat(path); err != nil || !filepath.IsAbs(path) {
			t.Errorf("%s: %v", word, err)
		}
	}
	broker, err := net.Listen("tcp", strings.TrimPrefix(url, "mqtts://"))
	if err != nil {
		t.Fatalf("the broker's port is not free: %v", err)
	}
	broker.Close()
}

func TestPasswords(t *testing.T) {
	dir := t.TempDir()
	if _, err := NewPassword(dir, Maker, "dev-1"); !errors.Is(err, ErrNoLab) {
		t.Errorf("in an empty folder: got %v, want ErrNoLab", err)
	}
	up(t, Options{Dir: dir})
	var refused *ca.RefusedError
	for _, id := range []string{"operator", "../dev-1", "", "dev 1"} {
		if _, err := NewPassword(dir, Maker, id); !errors.As(err, &refused) {
			t.Errorf("device %q: got %v, want a RefusedError", id, err)
		}
	}
	if _, err := NewPassword(dir, "device", "dev-1"); err == nil {
		t.Error("a password of nobody's CA was made")
	}
}
