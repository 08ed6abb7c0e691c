// Package cms reads Cryptographic Message Syntax (RFC 5652), and guards the door
// through which other people's ASN.1 comes in.
//
// # Signatures
//
// [ReadSigned] reads a message that somebody signed, such as the signature of a
// firmware bundle, and [Trust.Verify] says whether he may:
//
//	anchor -(issues)-> pinned CA -(issues)-> signer -(signs)-> digest of the content
//
// These are two steps, since "it is damaged" and "it is of a stranger" are two
// answers; only both together mean anything. The first takes DER, all of it, at most
// [SignedLimit]; one signer, named by issuer and serial number; signed attributes,
// with contentType and messageDigest; RSA of 2048 to 8192 bits (PKCS #1 v1.5 or
// RSASSA-PSS) or ECDSA (P-256, P-384, P-521) with SHA-256, 384 or 512. What
// `rauc bundle` and `openssl cms -sign -binary` make is like that. What they never make
// is refused rather than understood: key identifiers, attributes that are not signed,
// embedded CRLs, other content than id-data. The second wants a certificate for
// exactly this purpose, from an issuing CA that is pinned, and a CRL for every link.
//
// Of DER, what [CheckDER] says is enforced, and the order of the signed attributes; the
// order of the certificates, which nothing depends on, is not.
//
// Two readers that understand one message in two ways have been the root of many a
// forgery. So a second one, go.mozilla.org/pkcs7, takes apart what CheckDER let through
// and has to find the same signer, content, certificates, digest and signature. That is
// why this room, which stands on the standard library otherwise, imports it. Its verdict
// is not asked: it accepts much that is refused here.
//
// [ReadAuthenticode] is the first step for another kind of message, the signature of a
// program for UEFI firmware. Who may sign programs says the firmware, and no Trust.
//
// # Certificates
//
// [Certificates] reads a certs-only message: the degenerate SignedData in which an
// EST server sends certificates (RFC 7030, 4.1.3 and 4.2.3). It promises nothing
// about them but that they are well formed: they are signed by nobody here, in no
// order, and whoever wants to believe one builds a chain.
//
// They come as DER, or as BER, which some CAs send: indefinite lengths, lengths
// longer than need be, strings in segments. There is one reader for both: the
// message is first rewritten as DER. A certificate is signed as DER (X.509, 6.2), so
// its signature holds after that, if it ever did.
//
// # Limits
//
// [CheckDER] is for everybody else: what has passed it may be given to
// encoding/asn1, or to any recursive reader, without fear for the stack.
//
// Time and memory are linear in the size of the message, which is limited to
// [SizeLimit], as is the number of elements in it; they nest [DepthLimit] deep and
// not deeper. What no message of
// this kind needs is refused rather than understood: tag numbers above 30, lengths
// of more than four octets, bytes after the end.
package cms

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
)

const (
	// SizeLimit is the most bytes that a message may have.
	SizeLimit = 256 << 10
	// DepthLimit is how deep elements may nest; a certificate in a message needs
	// about twelve.
	DepthLimit = 32

	certificateLimit = 64       // in one message, repetitions included
	elementLimit     = 32 << 10 // in one message; certificates have one in about ten bytes
)

// Identifier octets: class, form and number (X.690, 8.1.2).
const (
	tagInteger  = 0x02
	tagOID      = 0x06
	tagSequence = 0x30
	tagSet      = 0x31
	tagContext0 = 0xa0 // [0], constructed
	tagContext1 = 0xa1 // [1], constructed
)

// Object identifiers (RFC 5652, 4 and 5.1), as contents octets.
var (
	idData       = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01} // 1.2.840.113549.1.7.1
	idSignedData = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02} // 1.2.840.113549.1.7.2
)

// Certificates returns the certificates of a certs-only message, DER or BER, in the
// order in which they stand there, each once. There is at least one: a message
// without any is an error, since it is never what was asked for. CRLs in the
// message are passed over.
func Certificates(b []byte) ([]*x509.Certificate, error) {
	certs, err := certificates(b)
	if err != nil {
		return nil, fmt.Errorf("cannot read certs-only message: %w", err)
	}
	return certs, nil
}

func certificates(b []byte) ([]*x509.Certificate, error) {
	if len(b) > SizeLimit {
		return nil, fmt.Errorf("%d bytes, limit %d", len(b), SizeLimit)
	}
	// What comes out is a copy, so the certificates do not share memory with b.
	der, err := toDER(b)
	if err != nil {
		return nil, err
	}
	set, err := certificateSet(der)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for n := 1; len(set) > 0; n++ {
		if n > certificateLimit {
			return nil, fmt.Errorf("more than %d certificates", certificateLimit)
		}
		e, rest, err := split(set, false)
		if err != nil {
			return nil, err
		}
		// The other choices are attribute certificates and the like (10.2.2).
		if e.tag != tagSequence {
			return nil, fmt.Errorf("certificate %d is not of X.509 (tag %#02x)", n, e.tag)
		}
		cert, err := x509.ParseCertificate(set[:len(set)-len(rest)])
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", n, err)
		}
		if !slices.ContainsFunc(certs, cert.Equal) {
			certs = append(certs, cert)
		}
		set = rest
	}
	if certs == nil {
		return nil, errors.New("it holds no certificates")
	}
	return certs, nil
}

// certificateSet returns the contents of the certificates of a certs-only message
// (RFC 5652, 3 and 5.1):
//
//	ContentInfo ::= SEQUENCE {
//	  contentType  OBJECT IDENTIFIER,             id-signedData
//	  content      [0] EXPLICIT SEQUENCE {        SignedData
//	    version           INTEGER,                1, or 3
//	    digestAlgorithms  SET,                    usually empty
//	    encapContentInfo  SEQUENCE { OBJECT IDENTIFIER },  id-data, no content
//	    certificates      [0] IMPLICIT SET OPTIONAL,
//	    crls              [1] IMPLICIT SET OPTIONAL,
//	    signerInfos       SET } }                 empty
func certificateSet(der []byte) ([]byte, error) {
	var r reader
	info := r.open(&der, tagSequence, "ContentInfo")
	r.oid(&info, idSignedData, "contentType")
	content := r.open(&info, tagContext0, "content")
	r.end(info, "ContentInfo")
	signed := r.open(&content, tagSequence, "SignedData")
	r.end(content, "content")

	version := r.open(&signed, tagInteger, "version")
	r.open(&signed, tagSet, "digestAlgorithms")
	encap := r.open(&signed, tagSequence, "encapContentInfo")
	r.oid(&encap, idData, "eContentType")
	certs := r.optional(&signed, tagContext0, "certificates")
	r.optional(&signed, tagContext1, "crls")
	signers := r.open(&signed, tagSet, "signerInfos")
	r.end(signed, "SignedData")

	switch {
	case r.err != nil:
		return nil, r.err
	case len(version) != 1 || version[0] != 1 && version[0] != 3:
		return nil, fmt.Errorf("version %x, want 1 or 3", version)
	case len(encap) != 0:
		return nil, errors.New("it holds more than certificates: content")
	case len(signers) != 0:
		return nil, errors.New("it holds more than certificates: signatures")
	}
	return certs, nil
}

// A reader takes DER apart, element by element. What goes wrong first is kept in
// err; what is read after that is empty.
type reader struct{ err error }

// open takes the first element off b, which must have the given tag, and returns
// its contents.
func (r *reader) open(b *[]byte, tag byte, what string) []byte {
	if r.err != nil {
		return nil
	}
	e, rest, err := split(*b, false)
	if err == nil && e.tag != tag {
		err = fmt.Errorf("tag %#02x, want %#02x", e.tag, tag)
	}
	if err != nil {
		r.err = fmt.Errorf("%s: %w", what, err)
		return nil
	}
	*b = rest
	return e.contents
}

// optional is open for an element that may be absent.
func (r *reader) optional(b *[]byte, tag byte, what string) []byte {
	if len(*b) == 0 || (*b)[0] != tag {
		return nil
	}
	return r.open(b, tag, what)
}

// oid takes an object identifier off b, which must be id.
func (r *reader) oid(b *[]byte, id []byte, what string) {
	if got := r.open(b, tagOID, what); r.err == nil && !bytes.Equal(got, id) {
		r.err = fmt.Errorf("%s is another one than expected", what)
	}
}

// end wants all of b to be read.
func (r *reader) end(b []byte, what string) {
	if r.err == nil && len(b) != 0 {
		r.err = fmt.Errorf("%s holds more than it should", what)
	}
}
