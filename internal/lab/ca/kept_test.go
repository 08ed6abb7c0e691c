package ca

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

func TestServerIsKeptUntilItIsOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := mustOpen(t, dir)
		server := func(hosts ...string) *tls.Certificate {
			t.Helper()
			cert, err := c.Server("est", hosts...)
			if err != nil {
				t.Fatal(err)
			}
			return cert
		}
		first := server()
		for _, host := range []string{"localhost", "127.0.0.1", "::1"} {
			if err := first.Leaf.VerifyHostname(host); err != nil {
				t.Error(err)
			}
		}
		if first.Leaf.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth || len(first.Leaf.ExtKeyUsage) != 1 || len(first.Certificate) != 2 {
			t.Errorf("extended key usages %v, chain of %d, want a server's and its CA's", first.Leaf.ExtKeyUsage, len(first.Certificate))
		}
		if CheckDeviceID(first.Leaf.Subject.CommonName) == nil {
			t.Errorf("the server's name %q could be a device's", first.Leaf.Subject.CommonName)
		}
		<-time.After(59 * 24 * time.Hour)
		c.Close()
		c = mustOpen(t, dir)
		if again := server(); !again.Leaf.Equal(first.Leaf) {
			t.Error("after 59 days and a restart there is another certificate")
		}
		<-time.After(2 * 24 * time.Hour)
		second := server()
		if second.Leaf.Equal(first.Leaf) || second.Leaf.PublicKey.(*ecdsa.PublicKey).Equal(first.Leaf.PublicKey) {
			t.Error("after 61 days of 90 the certificate or its key is still the same")
		}
		if third := server("lab.example", "192.0.2.1"); third.Leaf.VerifyHostname("lab.example") != nil || third.Leaf.VerifyHostname("192.0.2.1") != nil {
			t.Errorf("asked for another host, got %v and %v", third.Leaf.DNSNames, third.Leaf.IPAddresses)
		}
		if text, err := os.ReadFile(filepath.Join(dir, "server-est.pem")); err != nil {
			t.Error(err)
		} else if _, err := tls.X509KeyPair(text, text); err != nil {
			t.Errorf("another program cannot use the file: %v", err)
		}
		third := server()
		other := mustOpen(t, t.TempDir())
		if err := os.WriteFile(other.path("server-est.pem"), encodeCertificates(third.Leaf), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Server("est"); err == nil {
			t.Error("a file without a key is used")
		}
		if err := os.Rename(c.path("server-est.pem"), other.path("server-est.pem")); err != nil {
			t.Fatal(err)
		}
		if cert, err := other.Server("est"); err != nil || cert.Leaf.CheckSignatureFrom(other.Issuing()) != nil {
			t.Errorf("another CA's file: got %v, want a certificate of this one", err)
		}
		if _, err := c.Server("../est"); err == nil {
			t.Error("a server's file can lie outside of the CA's folder")
		}
	})
}

func TestOperatorIsAClient(t *testing.T) {
	c := mustOpen(t, t.TempDir())
	cert, err := c.Operator()
	if err != nil {
		t.Fatal(err)
	}
	if got := cert.Leaf; got.Subject.String() != "CN=operator" || got.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
		t.Errorf("got %v with extended key usages %v, want CN=operator, a client", got.Subject, got.ExtKeyUsage)
	}
	if len(cert.Leaf.IPAddresses) != 0 || cert.Leaf.VerifyHostname(net.IPv6loopback.String()) == nil {
		t.Error("an operator's certificate is for a host")
	}
}
