package ca

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"time"
)

// crlLifetime is how long a CRL is good. Devices that are not reached for that long
// take nothing that is signed any more.
const crlLifetime = 365 * 24 * time.Hour

// CRLs returns the lists of what is revoked, of the root and of the issuing CA (RFC
// 5280, 5). They are empty: nothing was revoked yet, and that has to be said by
// somebody. They are kept in root.crl and issuing.crl, and made anew when half of
// their life is over. If the root's key was taken away, its list is used to the end.
func (c *CA) CRLs() ([]*x509.RevocationList, error) {
	c.keeping.Lock()
	defer c.keeping.Unlock()
	var lists []*x509.RevocationList
	for _, of := range []struct {
		name   string
		issuer *x509.Certificate
	}{{"root", c.root}, {"issuing", c.issuing}} {
		list, err := c.keepCRL(of.name, of.issuer)
		if err != nil {
			return nil, fmt.Errorf("cannot make %s: %w", c.path(of.name+".crl"), err)
		}
		lists = append(lists, list)
	}
	return lists, nil
}

func (c *CA) keepCRL(name string, issuer *x509.Certificate) (*x509.RevocationList, error) {
	now := time.Now().UTC().Truncate(time.Second)
	kept, err := load(c.path(name+".crl"), x509.ParseRevocationList)
	switch {
	case err == nil && kept.CheckSignatureFrom(issuer) != nil:
		kept = nil // of a CA that was here before
	case err == nil && now.Before(kept.ThisUpdate.Add(crlLifetime/2)):
		return kept, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	key, err := c.loadKey(name + ".key")
	if errors.Is(err, fs.ErrNotExist) && kept != nil && now.Before(kept.NextUpdate) {
		return kept, nil
	}
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number:     big.NewInt(now.Unix()), // grows, also when the last one was lost (RFC 5280 5.2.3)
		ThisUpdate: now,
		NextUpdate: now.Add(crlLifetime),
	}, issuer, key)
	if err != nil {
		return nil, err
	}
	if err := replace(c.path(name+".crl"), encode("X509 CRL", der), 0o644); err != nil {
		return nil, err
	}
	return x509.ParseRevocationList(der)
}
