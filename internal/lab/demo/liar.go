package demo

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"go.mozilla.org/pkcs7"

	"birthmark/internal/lab/ca"
)

// requestLimit is the most that the liar reads of a request, in bytes.
const requestLimit = 64 << 10

// A liar is an EST server with the owner's CA behind it, and with a key of its own:
// whoever asks for a certificate gets a perfect one, for the liar's key.
type liar struct {
	owner  *ca.CA
	server http.Server
	url    string
}

func startLiar(owner *ca.CA) (*liar, error) {
	cert, err := owner.Server("liar")
	if err != nil {
		return nil, err
	}
	socket, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*cert}})
	if err != nil {
		return nil, err
	}
	l := &liar{owner: owner, url: "https://" + socket.Addr().(*net.TCPAddr).String()}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/est/csrattrs", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("POST /.well-known/est/simpleenroll", l.enroll)
	l.server = http.Server{Handler: mux, ReadTimeout: patience, ErrorLog: log.New(io.Discard, "", 0)}
	go l.server.Serve(socket)
	return l, nil
}

func (l *liar) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return l.server.Shutdown(ctx)
}

func (l *liar) enroll(w http.ResponseWriter, r *http.Request) {
	answer, err := l.answer(io.LimitReader(r.Body, requestLimit))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/pkcs7-mime; smime-type=certs-only")
	w.Write([]byte(base64.StdEncoding.EncodeToString(answer)))
}

// answer is a certs-only message with a certificate for the name that is asked for.
func (l *liar) answer(body io.Reader) ([]byte, error) {
	asked, err := io.ReadAll(base64.NewDecoder(base64.StdEncoding, body))
	if err != nil {
		return nil, err
	}
	honest, err := x509.ParseCertificateRequest(asked)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: honest.RawSubject}, key)
	if err != nil {
		return nil, err
	}
	swapped, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	cert, err := l.owner.Issue(swapped, ca.Device(0))
	if err != nil {
		return nil, errors.Join(errors.New("cannot lie"), err)
	}
	return pkcs7.DegenerateCertificate(cert.Raw)
}
