package enroll

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
)

// bound opens a connection of its own for one request, and lets w.Bind make the
// request for it. The connection lives until ctx ends: nothing else uses it.
func (c *Client) bound(ctx context.Context, p *peer, w *wish) (*http.ClientConn, []byte, error) {
	var state tls.ConnectionState
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		TLSHandshakeDone: func(s tls.ConnectionState, _ error) { state = s },
	})
	conn, err := p.transport.NewClientConn(ctx, c.origin.Scheme, net.JoinHostPort(c.origin.Hostname(), portOf(c.origin)))
	if err != nil {
		return nil, nil, err
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	csr, err := w.bind(&state)
	if err != nil {
		return nil, nil, &callerError{err}
	}
	return conn, csr, nil
}

// bind makes the request for a connection. It must differ from CSR in nothing that
// the certificate is made of.
func (w *wish) bind(state *tls.ConnectionState) ([]byte, error) {
	binding, err := channelBinding(state)
	if err != nil {
		return nil, fmt.Errorf("cannot bind the request to its connection: %w", err)
	}
	der, err := w.Bind(binding)
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("cannot use the bound request: %w", err)
	}
	if !bytes.Equal(csr.RawSubjectPublicKeyInfo, w.csr.RawSubjectPublicKeyInfo) || !bytes.Equal(csr.RawSubject, w.csr.RawSubject) ||
		!bytes.Equal(altNames(csr.Extensions), altNames(w.csr.Extensions)) {
		return nil, errors.New("cannot use the bound request: its key or its name is not that of the request")
	}
	return der, nil
}

// channelBinding names a connection as both of its ends see it, and nobody between
// them could: tls-unique (RFC 7030, 3.5; RFC 5929, 3), which TLS 1.3 does not have, and
// there tls-exporter (RFC 9266, 2).
func channelBinding(state *tls.ConnectionState) (string, error) {
	binding := state.TLSUnique
	if state.Version >= tls.VersionTLS13 {
		var err error
		if binding, err = state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32); err != nil {
			return "", err
		}
	}
	if len(binding) == 0 {
		return "", errors.New("the connection has none")
	}
	return base64.StdEncoding.EncodeToString(binding), nil
}

// A callerError is about what the caller gave, found out too late to be one by its
// place.
type callerError struct{ error }

func (e *callerError) Unwrap() error { return e.error }

// unbound adds to a refusal of a bound request what is often the reason. libest says
// 401, others 403; a 401 with a challenge is about the password (RFC 9110, 11.6.1).
func unbound(a *answer, refused *RefusedError) *RefusedError {
	if a.status == http.StatusForbidden || a.status == http.StatusUnauthorized && schemes(a.header) == "" {
		refused.Reason += " (the request was bound to its connection, RFC 7030, 3.5: whatever ends TLS between here and the server breaks that)"
	}
	return refused
}
