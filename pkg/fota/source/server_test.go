package source

import (
	"bytes"
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
	"testing"
	"time"

	"birthmark/internal/wire"
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

// connect is a network at whose other end serve takes the connections.
func connect(t *testing.T, serve func(net.Listener)) (*wire.Network, Options) {
	n := wire.Listen()
	go serve(n)
	t.Cleanup(func() { n.Close() })
	return n, Options{TLS: &tls.Config{RootCAs: trusted}, Dial: n.Dial}
}

// serve answers with h, over TLS.
func serve(t *testing.T, h http.HandlerFunc) (*wire.Network, Options) {
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
