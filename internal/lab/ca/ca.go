// Package ca is a certificate authority in a folder: a root, an issuing CA under
// it, and a record of everything that was issued. The lab has three, which know
// nothing of each other: a maker's, for birth certificates (IDevID), an owner's, for
// everyday ones (LDevID), and one for who signs firmware.
//
//	root -(signs)-> issuing CA -(signs)-> devices, operators, servers, signers
//
// [Open] makes what is missing, [CA.Issue] answers a certificate request,
// [CA.Renew] one for a successor, [CA.Server], [CA.Operator] and [CA.Signer] keep
// certificates whose key is made here. [Passwords] are how a device without any
// certificate shows that it is expected.
//
// What is promised:
//
//   - A certificate that anybody has seen is in the record: it is on disk before
//     [CA.Issue] returns, and the record is only ever appended to.
//   - A request that is made again gets the certificate that it got before, also
//     after a restart, for as long as that is valid: a device that lost the answer
//     to a power cut does not cause a second one.
//   - A password is good for the first key that it was used for, and no other.
//
// Files, all replaced or appended to so that a power cut leaves the old or the new:
//
//	root.pem, root.key        self-signed; the key is only needed to make issuing.pem,
//	                          and may be taken away afterwards
//	issuing.pem, issuing.key  signs everything else
//	issued.jsonl              one line a certificate, see [Record]; locked (flock(2))
//	                          from Open to Close, so that one process issues
//	server-NAME.pem           certificate, issuing CA and key of a server of the lab
//	operator.pem, signer.pem  the same of the lab's own operator, and of who signs code
//	root.crl, issuing.crl     what is revoked, if [CA.CRLs] was asked
//	passwords/ID.json         a one-time password, salted and hashed
//
// Keys are P-256, in files that only their owner can read. That is enough for
// demonstrations, tests and small fleets, and for nothing that must resist whoever
// reads the disk. Certificates and CRLs follow RFC 5280; nothing can be revoked yet.
package ca

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// A CA issues certificates. It is safe for concurrent use.
type CA struct {
	dir           string
	root, issuing *x509.Certificate
	key           *ecdsa.PrivateKey // issuing's
	journal       *journal

	mu      sync.Mutex
	issued  map[request]issued    // what is valid and may be asked for again
	pending map[request]*issuance // what is being issued

	keeping sync.Mutex                  // held while a kept certificate is looked at
	kept    map[string]*tls.Certificate // by file
}

// Open opens the CA in the folder dir. What is missing of its folder, keys and
// certificates is made, with subjects that begin with name; what is there stays,
// whatever its name. It is an error if another process has the CA open.
func Open(dir, name string) (*CA, error) {
	c, err := open(dir, name)
	if err != nil {
		return nil, fmt.Errorf("cannot open the CA in %s: %w", dir, err)
	}
	return c, nil
}

func open(dir, name string) (_ *CA, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := syncFolder(filepath.Dir(dir)); err != nil && !errors.Is(err, os.ErrPermission) {
		return nil, err
	}
	c := &CA{
		dir:     dir,
		issued:  map[request]issued{},
		pending: map[request]*issuance{},
		kept:    map[string]*tls.Certificate{},
	}
	// The journal is first: its lock also protects the making of the keys.
	now := time.Now()
	if c.journal, err = openJournal(filepath.Join(dir, "issued.jsonl"), func(r *Record) error { return c.remember(r, now) }); err != nil {
		return nil, err
	}
	if err := c.loadAuthorities(name); err != nil {
		c.journal.close()
		return nil, err
	}
	return c, nil
}

// Root is the trust anchor.
func (c *CA) Root() *x509.Certificate { return c.root }

// Issuing is the CA certificate that everything is issued under.
func (c *CA) Issuing() *x509.Certificate { return c.issuing }

// Chain is what stands above an issued certificate: the issuing CA, then the root.
func (c *CA) Chain() []*x509.Certificate { return []*x509.Certificate{c.issuing, c.root} }

// Passwords are the one-time passwords of this CA.
func (c *CA) Passwords() Passwords { return PasswordsIn(c.dir) }

// Close waits for what is being recorded, and lets another process open the CA.
func (c *CA) Close() error {
	if err := c.journal.close(); err != nil {
		return fmt.Errorf("cannot close the CA in %s: %w", c.dir, err)
	}
	return nil
}
