// Package est is the EST server of the lab (RFC 7030, as clarified by RFC 8951): it
// stands before one CA of package ca, a maker's or an owner's, and decides who may
// have a certificate.
//
//	cacerts, csrattrs   anybody
//	simpleenroll        a device that shows a certificate of a CA in [Config.Clients], or
//	                    gives its one-time password (HTTP Basic, its id as user name)
//	simplereenroll      a device that shows a certificate of this CA
//
// under /.well-known/est/ and /.well-known/est/LABEL/, for any label, over TLS 1.2 and
// 1.3 and HTTP/1.1. Whoever asks may only ask for itself: the common name of the
// request must be that of the certificate or of the password, and in simplereenroll
// subject and subjectAltName must be those of the certificate, byte for byte (RFC 7030
// 4.2.2). A password is bound to the key of the first request that it is used for,
// durably, before anything is issued. A request that was answered once and is made
// again by simpleenroll gets the same answer.
//
// A maker's server has the profile ca.Birth and no Clients; its certificates have no
// end, so it refuses simplereenroll. An owner's has ca.Device, and the maker's CA among
// its Clients.
//
// The client's certificate is not verified in the handshake but here, so that a device
// whose certificate has ended reads a reason, not an alert. The handshake still proves
// that it holds the key.
//
// A challengePassword in a request must be the channel binding of its connection (RFC
// 7030 3.5: tls-unique; with TLS 1.3 tls-exporter, RFC 9266), and must be there if
// [Config.CSRAttrs] names it.
//
// Refusals are one line of text/plain: 400 for what nobody could have, 401 without or
// with a wrong password, 403 for what this client may not have, 404, 405, 413 and 415.
// What is not offered: fullcmc; and serverkeygen, since keys are made on the device.
package est

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"birthmark/internal/lab/ca"
)

const (
	headerLimit = 16 << 10 // bytes of a request's header
	// A client is somewhere on a slow line, but not for ever.
	headerTimeout = 10 * time.Second // TLS handshake, or header
	timeout       = 30 * time.Second // whole request, or whole answer
	idleTimeout   = time.Minute
	closeTimeout  = 5 * time.Second
)

// A Config says whose server it is.
type Config struct {
	CA      *ca.CA
	Profile ca.Profile // of the certificates that are issued
	// Clients are CAs, roots or below, whose clients may use simpleenroll.
	Clients []*x509.Certificate
	// Hosts are names and addresses by which clients reach the server, besides those
	// of the loopback interface.
	Hosts []string
	// CSRAttrs is the answer to csrattrs, DER; a [Template] makes one. Without it there is
	// none (204): every key that the CA takes is welcome.
	CSRAttrs []byte
	// Hold, if set, is asked before a certificate is issued. If it returns more than
	// 0, the client is told to come back with the same request after that time (202).
	// Several requests may ask at once.
	Hold func(*x509.CertificateRequest) time.Duration
	// Log gets a line for every certificate that is issued and every refusal; nil for
	// slog.Default.
	Log *slog.Logger
}

// A Server is an EST server that runs.
type Server struct {
	listener net.Listener
	http     *http.Server
	ended    chan struct{}
	err      error // set when ended is closed
}

// Start starts a server at a TCP address, such as "127.0.0.1:0".
func Start(addr string, conf Config) (*Server, error) {
	certificate := func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return conf.CA.Server("est", conf.Hosts...) }
	if _, err := certificate(nil); err != nil { // better now than in a handshake
		return nil, fmt.Errorf("cannot start the EST server: %w", err)
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("cannot start the EST server: %w", err)
	}
	h := newHandler(conf)
	s := &Server{listener: listener, ended: make(chan struct{}), http: &http.Server{
		Handler: h,
		TLSConfig: &tls.Config{
			MinVersion:     tls.VersionTLS12,
			GetCertificate: certificate,
			ClientAuth:     tls.RequestClientCert,
			// A device comes once in two months: a ticket would be of no use to it.
			SessionTicketsDisabled: true,
			// strongSwan 5.9.8 reads an answer in two reads, of a record each.
			DynamicRecordSizingDisabled: true,
		},
		Protocols:                    new(http.Protocols),
		DisableGeneralOptionsHandler: true,
		MaxHeaderBytes:               headerLimit,
		ReadHeaderTimeout:            headerTimeout,
		ReadTimeout:                  timeout,
		WriteTimeout:                 timeout,
		IdleTimeout:                  idleTimeout,
		ErrorLog:                     slog.NewLogLogger(h.log.Handler(), slog.LevelWarn),
	}}
	s.http.Protocols.SetHTTP1(true)
	go func() {
		defer close(s.ended)
		if err := s.http.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
			s.err = err
		}
	}()
	return s, nil
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// URL is what a client on this machine is configured with, https://HOST:PORT.
func (s *Server) URL() string {
	host, port, err := net.SplitHostPort(s.Addr().String())
	if ip := net.ParseIP(host); err != nil || ip == nil || ip.IsUnspecified() {
		host = "localhost"
	}
	return "https://" + net.JoinHostPort(host, port)
}

// Close answers the requests that have come, for a few seconds at most, and ends the
// server.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	<-s.ended
	if err = errors.Join(err, s.err); err != nil {
		return fmt.Errorf("cannot end the EST server well: %w", err)
	}
	return nil
}
