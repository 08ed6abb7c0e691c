package source

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const address = "https://example.com/release.raucb" // a name in the certificate of httptest

func TestMain(m *testing.M) {
	// net/http looks at these once.
	os.Setenv("HTTPS_PROXY", "https://user:secret@proxy.test")
	os.Setenv("NO_PROXY", "example.com,example.org")
	os.Exit(m.Run())
}

// The certificate of httptest, and what verifies it.
var shown, trusted = func() (tls.Certificate, *x509.CertPool) {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	return s.TLS.Certificates[0], s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
}()

// random is a file of n bytes in which no two places look alike.
func random(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{}).Read(b)
	return b
}

// A memory is a network of one server: connections are wires, so a synctest bubble knows
// when all wait.
type memory struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once // closes done
	dials atomic.Int64
}

func (m *memory) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.done:
		return nil, net.ErrClosed
	}
}

func (m *memory) Close() error {
	m.once.Do(func() { close(m.done) })
	return nil
}

func (m *memory) Addr() net.Addr { return &net.TCPAddr{} }

func (m *memory) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	m.dials.Add(1)
	ours, theirs := wire()
	select {
	case m.conns <- theirs:
		return ours, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// connect is a network at whose other end serve takes the connections.
func connect(t *testing.T, serve func(net.Listener)) (*memory, Options) {
	m := &memory{conns: make(chan net.Conn), done: make(chan struct{})}
	go serve(m)
	t.Cleanup(func() { m.Close() })
	return m, Options{TLS: &tls.Config{RootCAs: trusted}, Dial: m.dial}
}

// serve answers with h, over TLS.
func serve(t *testing.T, h http.HandlerFunc) (*memory, Options) {
	s := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}
	t.Cleanup(func() { s.Close() })
	return connect(t, func(l net.Listener) {
		s.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{shown}}))
	})
}

// file answers as a good server does that has these bytes.
func file(data []byte) http.HandlerFunc { return version1(`"v1"`, data) }

func version1(etag string, data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", etag)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}
}

// hangUp ends the connection of an answer in the middle of it.
func hangUp(w http.ResponseWriter) {
	http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// short lets n bytes of an answer pass, and hangs up.
type short struct {
	http.ResponseWriter
	n int
}

func (s *short) Write(p []byte) (int, error) {
	if len(p) > s.n {
		s.ResponseWriter.Write(p[:s.n])
		hangUp(s.ResponseWriter)
	}
	s.n -= len(p)
	return s.ResponseWriter.Write(p)
}

func mustOpen(t *testing.T, opts Options) *Remote {
	t.Helper()
	r, err := HTTP(t.Context(), address, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// sum reads a source from the beginning to the end, in blocks of n bytes.
func sum(s Source, n int) ([32]byte, error) {
	h := sha256.New()
	_, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{io.NewSectionReader(s, 0, s.Size())}, make([]byte, n))
	return [32]byte(h.Sum(nil)), err
}
