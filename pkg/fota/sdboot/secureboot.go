package sdboot

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"birthmark/pkg/cms"
	"birthmark/pkg/fota"
	"birthmark/pkg/fota/sdboot/pe"
)

// Kinds of signature lists (UEFI 2.10, 32.4.1). What a list of another kind holds allows
// nothing and forbids nothing, in firmware that does not know the kind either.
var (
	kindSHA256     = guid("c1c41626-504c-4092-aca9-41f936934328") // digests of programs
	kindX509       = guid("a5c059a1-94e4-4aa7-87b5-ab155c2bf072") // certificates
	kindX509SHA256 = guid("3bd2a492-96c0-4079-b420-fcf98ef103ed") // digests of what is signed in certificates
	kindX509SHA384 = guid("7076876e-80c2-4ee6-aad2-28b349a6865b")
	kindX509SHA512 = guid("446dbf63-2502-4cda-bcfa-2465d2b0fe9d")
)

// A signatureList is one of db or dbx: what it lists, by kind.
type signatureList map[[16]byte][][]byte

// parseSignatures reads EFI_SIGNATURE_LISTs, one after another:
//
//	SignatureType        GUID
//	SignatureListSize    uint32    with this header
//	SignatureHeaderSize  uint32
//	SignatureSize        uint32    of each
//	                     header
//	                     signatures, each a GUID that tells whose it is, and data
func parseSignatures(b []byte) (signatureList, error) {
	const header, owner = 28, 16
	lists := signatureList{}
	for len(b) > 0 {
		if len(b) < header {
			return nil, errors.New("it ends within a list")
		}
		le := binary.LittleEndian
		kind := [16]byte(b)
		size, skip, each := int64(le.Uint32(b[16:])), int64(le.Uint32(b[20:])), int64(le.Uint32(b[24:]))
		if size > int64(len(b)) || each <= owner || header+skip > size || (size-header-skip)%each != 0 {
			return nil, fmt.Errorf("a list has %d bytes, a header of %d and signatures of %d", size, skip, each)
		}
		for at := header + skip; at < size; at += each {
			lists[kind] = append(lists[kind], b[at+owner:at+each])
		}
		b = b[size:]
	}
	return lists, nil
}

func (s signatureList) has(kind [16]byte, data []byte) bool {
	return slices.ContainsFunc(s[kind], func(b []byte) bool { return bytes.Equal(b, data) })
}

// certificates are those of a list that can be read; firmware cannot use others.
func (s signatureList) certificates() (certs []*x509.Certificate) {
	for _, der := range s[kindX509] {
		if c, err := x509.ParseCertificate(der); err == nil {
			certs = append(certs, c)
		}
	}
	return certs
}

// hasHashOf reports whether a list has the digest of what is signed in a certificate. The
// time from which on that counts follows it; without time stamps, which are not asked
// for, it always counts.
func (s signatureList) hasHashOf(c *x509.Certificate) bool {
	const timeSize = 16
	sum256, sum384, sum512 := sha256.Sum256(c.RawTBSCertificate), sha512.Sum384(c.RawTBSCertificate), sha512.Sum512(c.RawTBSCertificate)
	for kind, sum := range map[[16]byte][]byte{kindX509SHA256: sum256[:], kindX509SHA384: sum384[:], kindX509SHA512: sum512[:]} {
		for _, b := range s[kind] {
			if len(b) == len(sum)+timeSize && bytes.Equal(b[:len(sum)], sum) {
				return true
			}
		}
	}
	return false
}

// lists are what firmware believes, and what it refuses all the same.
type lists struct{ allowed, forbidden signatureList }

// lists reads them; there are none to be asked if Secure Boot is off.
func (v variables) lists() (*lists, error) {
	on, err := v.secureBoot()
	if err != nil || !on {
		return nil, err
	}
	var l lists
	for x, list := range map[variable]*signatureList{allowedList: &l.allowed, forbiddenList: &l.forbidden} {
		b, err := v.read(x, dataLimit)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if *list, err = parseSignatures(b); err != nil {
			return nil, fmt.Errorf("cannot read the variable %s: %w", x.name, err)
		}
	}
	return &l, nil
}

// check decides as UEFI 2.10, 32.5.3.3, does: what is forbidden is refused, be it allowed
// or not; and of what is left, one signature or the digest has to be allowed. It is
// stricter in that every signature has to be right: one that cannot be read could be of
// somebody who is forbidden.
func (l *lists) check(f *pe.File) error {
	digest, err := f.Digest()
	if err != nil {
		return err
	}
	if l.forbidden.has(kindSHA256, digest[:]) {
		return fota.Refuse(fota.StageBoot, "revoked", "its digest is in dbx")
	}
	allowed := l.allowed.has(kindSHA256, digest[:])
	signer := "nobody"
	for _, message := range f.Signatures() {
		s, err := cms.ReadAuthenticode(message)
		if err == nil {
			err = s.Check(digest[:])
		}
		if err != nil {
			return fota.Refuse(fota.StageBoot, "signature", "%w", err)
		}
		for _, c := range s.Certificates {
			if l.forbidden.has(kindX509, c.Raw) || l.forbidden.hasHashOf(c) {
				return fota.Refuse(fota.StageBoot, "revoked", "the certificate of %q is in dbx", c.Subject)
			}
		}
		if leads(s.Signer, l.forbidden.certificates(), s.Certificates, chainLimit) {
			return fota.Refuse(fota.StageBoot, "revoked", "who vouches for %q is in dbx", s.Signer.Subject)
		}
		allowed = allowed || leads(s.Signer, l.allowed.certificates(), s.Certificates, chainLimit)
		signer = s.Signer.Subject.String()
	}
	switch {
	case allowed:
		return nil
	case len(f.Signatures()) == 0:
		return fota.Refuse(fota.StageBoot, "unsigned", "nobody signed it, and Secure Boot is on")
	}
	return fota.Refuse(fota.StageBoot, "foreign", "db does not know who signed it, %q", signer)
}

const chainLimit = 4 // certificates between one in db and the signer's, both counted

// leads reports whether a certificate is one of some, or was issued by one, perhaps
// through others in between. Firmware looks neither at dates nor at purposes, but at who
// may issue certificates.
func leads(c *x509.Certificate, to, through []*x509.Certificate, limit int) bool {
	if slices.ContainsFunc(to, c.Equal) {
		return true
	}
	if limit == 1 {
		return false
	}
	issued := func(by *x509.Certificate) bool {
		return bytes.Equal(by.RawSubject, c.RawIssuer) && !by.Equal(c) && c.CheckSignatureFrom(by) == nil
	}
	return slices.ContainsFunc(to, issued) ||
		slices.ContainsFunc(through, func(by *x509.Certificate) bool { return issued(by) && leads(by, to, through, limit-1) })
}

// guid is one of this file's constants as UEFI writes it: the first three numbers have
// their low byte first.
func guid(text string) (g [16]byte) {
	b, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil || len(b) != len(g) {
		panic("no GUID: " + text)
	}
	for i, from := range []int{3, 2, 1, 0, 5, 4, 7, 6} {
		g[i] = b[from]
	}
	copy(g[8:], b[8:])
	return g
}
