package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"time"
)

// Server returns the certificate, with chain and key, of one of the lab's own
// servers, for localhost, 127.0.0.1, ::1 and hosts. It is kept in server-NAME.pem, in
// a form that other programs can read too, and made anew, with another key, when two
// thirds of its life are over or another host is wanted. A server asks at every
// handshake: it costs next to nothing.
func (c *CA) Server(name string, hosts ...string) (*tls.Certificate, error) {
	if err := CheckDeviceID(name); err != nil { // it is part of a path
		return nil, err
	}
	// The space keeps it apart from all devices.
	tmpl := &x509.Certificate{Subject: pkix.Name{CommonName: name + " server"}}
	for _, host := range append([]string{"localhost", "127.0.0.1", "::1"}, hosts...) {
		if ip := net.ParseIP(host); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, host)
		}
	}
	return c.keep("server-"+name+".pem", tmpl, server())
}

// Operator returns the certificate, with chain and key, of the lab's own operator. It
// is kept in operator.pem as those of servers are.
func (c *CA) Operator() (*tls.Certificate, error) {
	return c.keep("operator.pem", &x509.Certificate{Subject: pkix.Name{CommonName: OperatorName}}, Operator())
}

// Signer returns the certificate, with chain and key, of who signs releases with this
// CA. It is kept in signer.pem as those of servers are.
func (c *CA) Signer() (*tls.Certificate, error) {
	return c.keep("signer.pem", &x509.Certificate{Subject: pkix.Name{CommonName: "release signer"}}, signer())
}

// keep returns what is in a file, if it is still good for what tmpl says, or else
// puts something new there. Chain and key are in one file, so that no power cut can
// part them.
func (c *CA) keep(file string, tmpl *x509.Certificate, p Profile) (*tls.Certificate, error) {
	c.keeping.Lock()
	defer c.keeping.Unlock()
	if cert := c.kept[file]; cert != nil && good(cert.Leaf, tmpl) {
		return cert, nil
	}
	cert, err := c.loadKept(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot use %s: %w", c.path(file), err)
	}
	if err != nil || !good(cert.Leaf, tmpl) || cert.Leaf.CheckSignatureFrom(c.issuing) != nil {
		if cert, err = c.makeKept(file, tmpl, p); err != nil {
			return nil, fmt.Errorf("cannot make %s: %w", c.path(file), err)
		}
	}
	c.kept[file] = cert
	return cert, nil
}

// good reports whether a certificate is young enough, and for the hosts of tmpl.
func good(cert, tmpl *x509.Certificate) bool {
	young := cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) * 2 / 3)
	return time.Now().Before(young) && slices.Equal(cert.DNSNames, tmpl.DNSNames) &&
		slices.EqualFunc(cert.IPAddresses, tmpl.IPAddresses, net.IP.Equal)
}

func (c *CA) loadKept(file string) (*tls.Certificate, error) {
	text, err := os.ReadFile(c.path(file))
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(text, text)
	return &cert, err
}

func (c *CA) makeKept(file string, tmpl *x509.Certificate, p Profile) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf, err := c.record(tmpl, p, key.Public())
	if err != nil {
		return nil, err
	}
	text, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	if err := replace(c.path(file), append(encodeCertificates(leaf, c.issuing), text...), 0o600); err != nil {
		return nil, err
	}
	return c.loadKept(file)
}
