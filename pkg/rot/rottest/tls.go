package rottest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"testing"
	"time"

	"birthmark/pkg/rot"
)

const handshakeLimit = 30 * time.Second // longer than any machine needs

func keysAuthenticate(t *testing.T, open, _ func(*testing.T) rot.Root) {
	r := open(t)
	defer shut(t, r)
	for _, a := range Algorithms {
		k := create(t, r, a)
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			handshake, err := Handshake(k, version)
			if err == nil {
				err = handshake()
			}
			if err != nil {
				t.Errorf("%s, %s: %v", a, tls.VersionName(version), err)
			}
		}
		shut(t, k)
	}
}

// Handshake prepares a TLS client that authenticates with k, and a server that
// asks for that; what it returns does one handshake between them. A made-up
// authority certifies k, which does not need k itself.
func Handshake(k crypto.Signer, version uint16) (func() error, error) {
	authority, err := newAuthority()
	if err != nil {
		return nil, fmt.Errorf("cannot prepare a handshake: %w", err)
	}
	serverKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("cannot prepare a handshake: %w", err)
	}
	ours, err := authority.certify("device", k)
	if err != nil {
		return nil, fmt.Errorf("cannot prepare a handshake: %w", err)
	}
	theirs, err := authority.certify("server", serverKey)
	if err != nil {
		return nil, fmt.Errorf("cannot prepare a handshake: %w", err)
	}
	anchors := x509.NewCertPool()
	anchors.AddCert(authority.certificate)
	client := &tls.Config{Certificates: []tls.Certificate{ours}, RootCAs: anchors, ServerName: "server", MinVersion: version, MaxVersion: version}
	server := &tls.Config{Certificates: []tls.Certificate{theirs}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: anchors}
	return func() error { return shake(client, server) }, nil
}

// shake does one handshake over a connection in memory. Each side closes its end,
// so that neither waits for one that has given up.
func shake(client, server *tls.Config) error {
	near, far := net.Pipe()
	deadline := time.Now().Add(handshakeLimit)
	near.SetDeadline(deadline)
	far.SetDeadline(deadline)
	verdict := make(chan error, 1)
	go func() {
		defer far.Close()
		c := tls.Server(far, server)
		err := c.Handshake()
		if err == nil {
			_, err = c.Write([]byte{1}) // TLS 1.3: the server has the last word
		}
		verdict <- err
	}()
	c := tls.Client(near, client)
	_, err := c.Read(make([]byte, 1)) // shakes hands first
	near.Close()
	return errors.Join(err, <-verdict)
}

type authority struct {
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	return &authority{key, certificate}, err
}

func (a *authority) certify(name string, k crypto.Signer) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, k.Public(), a.key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}, err
}
