package broker

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A target is a running broker.
type target struct {
	addr    string
	pki     *pki
	journal *buffer // of the embedded broker only
}

// onBoth runs a test with the embedded broker and with mosquitto.
func onBoth(t *testing.T, test func(t *testing.T, b *target, embedded bool)) {
	t.Run("embedded", func(t *testing.T) { test(t, startEmbedded(t, newPKI(t), nil), true) })
	t.Run("mosquitto", func(t *testing.T) { test(t, startMosquitto(t, newPKI(t)), false) })
}

func startEmbedded(t *testing.T, p *pki, onPublish func(client, topic string, payload []byte)) *target {
	t.Helper()
	b := &target{pki: p, journal: &buffer{}}
	started, err := Start(Options{
		Address: "127.0.0.1:0", Certificate: p.server, Roots: p.pool,
		OnPublish: onPublish, Journal: b.journal,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := started.Close(); err != nil {
			t.Error(err)
		}
	})
	b.addr = started.Addr().String()
	return b
}

// startMosquitto starts mosquitto on the files that this package writes.
func startMosquitto(t *testing.T, p *pki) *target {
	t.Helper()
	program, err := exec.LookPath("/usr/sbin/mosquitto") // not in everybody's PATH
	if err != nil {
		t.Fatalf("mosquitto is not installed: run make setup: %v", err)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	port := freePort(t)
	m := Mosquitto{Port: port, CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "cert.pem"),
		Key: filepath.Join(dir, "key.pem"), ACL: filepath.Join(dir, "acl"), Data: dir, User: me.Username}
	conf, err := MosquittoConfig(m)
	if err != nil {
		t.Fatal(err)
	}
	server := p.issue("localhost")
	key, err := x509.MarshalPKCS8PrivateKey(server.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	confFile := filepath.Join(dir, "mosquitto.conf")
	for path, text := range map[string]string{
		confFile: conf, m.ACL: ACL(),
		m.CA:   string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.root.Raw})),
		m.Cert: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate[0]})),
		m.Key:  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program, "-c", confFile)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	running := make(chan string, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var log strings.Builder
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			fmt.Fprintln(&log, lines.Text())
			if strings.HasSuffix(lines.Text(), " running") {
				running <- ""
			}
		}
		running <- "mosquitto ended: " + log.String()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		<-ended
		_ = cmd.Wait() // killed
	})
	select {
	case trouble := <-running:
		if trouble != "" {
			t.Fatal(trouble)
		}
	case <-time.After(patience):
		t.Fatalf("mosquitto does not run after %v", patience)
	}
	return &target{addr: fmt.Sprintf("127.0.0.1:%d", port), pki: p}
}

// freePort is a port that nobody listens on, for a program that cannot choose one.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// A buffer may be written and read at once.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// A pki is a CA that certifies anybody.
type pki struct {
	tb   testing.TB
	root *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newPKI(tb testing.TB) *pki {
	tb.Helper()
	p := &pki{tb: tb, pool: x509.NewCertPool()}
	c := &x509.Certificate{Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	p.root, p.key = p.sign(c)
	p.pool.AddCert(p.root)
	return p
}

// issue certifies a client or a server.
func (p *pki) issue(cn string) tls.Certificate {
	p.tb.Helper()
	leaf, key := p.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: cn}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{{127, 0, 0, 1}},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}
}

// server is a broker's certificate.
func (p *pki) server() (*tls.Certificate, error) {
	c := p.issue("localhost")
	return &c, nil
}

// sign makes a key and its certificate, self-signed for the root.
func (p *pki) sign(c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	p.tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.tb.Fatal(err)
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, parentKey := p.root, p.key
	if parent == nil {
		parent, parentKey = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, parentKey)
	if err != nil {
		p.tb.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		p.tb.Fatal(err)
	}
	return c, key
}
