package ca

import (
	"crypto/x509"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

func mustCRLs(tb testing.TB, c *CA) [2]*x509.RevocationList {
	tb.Helper()
	lists, err := c.CRLs()
	if err != nil {
		tb.Fatal(err)
	}
	return [2]*x509.RevocationList(lists)
}

func TestCRLsOfBothCAs(t *testing.T) {
	c := mustOpen(t, t.TempDir())
	for i, issuer := range []*x509.Certificate{c.Root(), c.Issuing()} {
		list := mustCRLs(t, c)[i]
		if err := list.CheckSignatureFrom(issuer); err != nil || len(list.RevokedCertificateEntries) != 0 {
			t.Errorf("%s: %v, and %d are revoked, want a list of none", issuer.Subject, err, len(list.RevokedCertificateEntries))
		}
		if got := list.NextUpdate.Sub(list.ThisUpdate); got != crlLifetime {
			t.Errorf("%s: good for %v, want %v", issuer.Subject, got, crlLifetime)
		}
	}
}

func TestCRLsAreKeptUntilHalfTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := mustOpen(t, t.TempDir())
		first := mustCRLs(t, c)
		time.Sleep(crlLifetime/2 - time.Hour)
		if got := mustCRLs(t, c); got[0].Number.Cmp(first[0].Number) != 0 || got[1].Number.Cmp(first[1].Number) != 0 {
			t.Error("lists that are young were made anew")
		}
		time.Sleep(2 * time.Hour)
		second := mustCRLs(t, c)
		for i := range second {
			if second[i].Number.Cmp(first[i].Number) <= 0 || !second[i].ThisUpdate.Equal(time.Now()) {
				t.Errorf("list %d: number %v of %v, want a later one than %v, of now", i, second[i].Number, second[i].ThisUpdate, first[i].Number)
			}
		}
	})
}

// TestCRLWithoutTheRootsKey: the key may be away while its last list is good.
func TestCRLWithoutTheRootsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := mustOpen(t, t.TempDir())
		first := mustCRLs(t, c)
		if err := os.Remove(c.path("root.key")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(crlLifetime - time.Hour)
		got := mustCRLs(t, c)
		if got[0].Number.Cmp(first[0].Number) != 0 || got[1].Number.Cmp(first[1].Number) <= 0 {
			t.Errorf("got lists %v and %v, want the root's %v and a later one than %v", got[0].Number, got[1].Number, first[0].Number, first[1].Number)
		}
		time.Sleep(2 * time.Hour)
		if lists, err := c.CRLs(); err == nil {
			t.Errorf("got %v, want an error: the root's list is over, and its key away", lists)
		}
	})
}

func TestCRLOfAnotherCAIsReplaced(t *testing.T) {
	c, other := mustOpen(t, t.TempDir()), mustOpen(t, t.TempDir())
	mustCRLs(t, other)
	if err := os.Rename(other.path("issuing.crl"), c.path("issuing.crl")); err != nil {
		t.Fatal(err)
	}
	if err := mustCRLs(t, c)[1].CheckSignatureFrom(c.Issuing()); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(c.path("root.crl"), []byte("-----"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CRLs(); err == nil {
		t.Error("a damaged list is no error")
	}
}

// TestSignerSignsCode: a release has a year at least until its signer's certificate ends.
func TestSignerSignsCode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := mustOpen(t, t.TempDir())
		signer := func() *x509.Certificate {
			cert, err := c.Signer()
			if err != nil {
				t.Fatal(err)
			}
			return cert.Leaf
		}
		first := signer()
		if len(first.ExtKeyUsage) != 1 || first.ExtKeyUsage[0] != x509.ExtKeyUsageCodeSigning || first.KeyUsage != x509.KeyUsageDigitalSignature || first.IsCA {
			t.Errorf("got usages %v and %b, CA %v; want a signer of code alone", first.ExtKeyUsage, first.KeyUsage, first.IsCA)
		}
		for range 5 * 12 {
			time.Sleep(30 * 24 * time.Hour)
			if left := time.Until(signer().NotAfter); left < 364*24*time.Hour {
				t.Fatalf("a signer is used %v before its end", left)
			}
		}
		if first.Equal(signer()) {
			t.Error("after five years there is the same signer")
		}
	})
}
