package cms

import (
	"bytes"
	"crypto"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
)

const (
	// SignedLimit is the most bytes that a signed message may have, its content
	// included: what RAUC gives the signature of a bundle.
	SignedLimit = 64 << 10

	signedCertificateLimit = 16
)

// A Refusal says why a message or its signer is not believed. Code is one word a
// reason, for programs, which stays the same over releases. [ReadSigned] has
//
//	size trailing der structure version type crls     the message as a whole
//	certificates key                                  what it carries
//	signers sid signer unsigned                       who signed, by its own account
//	algorithm attributes ambiguous                    how
//	signature digest                                  it is not true
//
// and [Trust.Verify]
//
//	anchors issuers                                   nobody is trusted at all
//	keyusage eku                                      the signer may not sign this
//	issuer untrusted expired key algorithm            nobody trusted says who that is
//	crl stale revoked                                 or may have taken it back
type Refusal struct {
	Code string
	Err  error // the reason, for people
}

func (r *Refusal) Error() string { return r.Err.Error() }

func (r *Refusal) Unwrap() error { return r.Err }

func refuse(code, format string, args ...any) error {
	return &Refusal{code, fmt.Errorf(format, args...)}
}

// Signed is a message whose one signature is right by the key in the signer's
// certificate. Who that is has to be asked of a [Trust].
type Signed struct {
	// Content is what was signed, if the message holds it; nil if the signature is
	// detached, and then only [Signed.Check] says whether it is of some content.
	Content []byte
	Hash    crypto.Hash // of the content: SHA-256, 384 or 512
	Digest  []byte      // signed; of Content, if there is one

	Signer       *x509.Certificate
	Certificates []*x509.Certificate // all in the message, in its order; none is vouched for
}

// Check holds the digest of some content, by s.Hash, against the signed one.
func (s *Signed) Check(digest []byte) error {
	if subtle.ConstantTimeCompare(digest, s.Digest) != 1 {
		return refuse("digest", "the content is not what was signed: its digest is another")
	}
	return nil
}

// ReadSigned reads a SignedData with one signer, in DER, and verifies that signature.
// Nothing that it returns shares memory with der. Its error is a *[Refusal].
func ReadSigned(der []byte) (*Signed, error) { return readSigned(der, plainData) }

// A kind of content is what a message says that it is about, and what that is in ASN.1.
type kind struct {
	id   []byte // contents of an OBJECT IDENTIFIER
	tag  byte
	name string
}

var plainData = kind{idData, tagOctetString, "plain data"}

func readSigned(der []byte, about kind) (*Signed, error) {
	if len(der) > SignedLimit {
		return nil, refuse("size", "%d bytes, limit %d", len(der), SignedLimit)
	}
	if err := CheckDER(der); errors.Is(err, errTrailing) {
		return nil, refuse("trailing", "%w", err)
	} else if err != nil {
		return nil, refuse("der", "%w", err)
	}
	der = bytes.Clone(der)
	parts, err := takeApart(der, about)
	if err != nil {
		return nil, err
	}
	info, err := readSignerInfo(parts.signer, about)
	if err != nil {
		return nil, err
	}
	if h, err := digestAlgorithm(parts.digestAlgorithm); err != nil || h != info.hash {
		return nil, refuse("algorithm", "the digest algorithm of the message is not that of its signer")
	}
	s := &Signed{Content: parts.content, Hash: info.hash, Digest: info.digest}
	if s.Certificates, err = signedCertificates(parts.certificates); err != nil {
		return nil, err
	}
	if s.Signer, err = info.find(s.Certificates); err != nil {
		return nil, err
	}
	if err := agree(der, s, info); err != nil {
		return nil, err
	}
	if err := info.verify(s.Signer.PublicKey); err != nil {
		return nil, err
	}
	if s.Content == nil {
		return s, nil
	}
	h := s.Hash.New()
	h.Write(s.Content)
	if err := s.Check(h.Sum(nil)); err != nil {
		return nil, err
	}
	return s, nil
}

// The parts of a signed message.
type parts struct {
	digestAlgorithm []byte // contents of the one AlgorithmIdentifier
	content         []byte // nil if the message has none
	certificates    []byte // one after the other
	signer          []byte // contents of the one SignerInfo
}

// takeApart reads the message around its signer (RFC 5652, 3, 5.1 and 5.2):
//
//	ContentInfo ::= SEQUENCE {
//	  contentType  OBJECT IDENTIFIER,             id-signedData
//	  content      [0] EXPLICIT SEQUENCE {        SignedData
//	    version           INTEGER,                1
//	    digestAlgorithms  SET,                    that of the signer
//	    encapContentInfo  SEQUENCE {
//	      eContentType    OBJECT IDENTIFIER,      id-data, or another kind
//	      eContent        [0] EXPLICIT OCTET STRING OPTIONAL },
//	    certificates      [0] IMPLICIT SET,
//	    signerInfos       SET } }                 one
func takeApart(der []byte, about kind) (p parts, err error) {
	var r reader
	info := r.open(&der, tagSequence, "ContentInfo")
	contentType := r.open(&info, tagOID, "contentType")
	content := r.open(&info, tagContext0, "content")
	r.end(info, "ContentInfo")
	if r.err == nil && !bytes.Equal(contentType, idSignedData) {
		return p, refuse("type", "it is not signed data")
	}
	signed := r.open(&content, tagSequence, "SignedData")
	r.end(content, "content")

	version := r.open(&signed, tagInteger, "version")
	digests := r.open(&signed, tagSet, "digestAlgorithms")
	encap := r.open(&signed, tagSequence, "encapContentInfo")
	eContentType := r.open(&encap, tagOID, "eContentType")
	if len(encap) > 0 {
		octets := r.open(&encap, tagContext0, "eContent")
		p.content = r.open(&octets, about.tag, "eContent")
		r.end(octets, "eContent")
	}
	r.end(encap, "encapContentInfo")
	p.certificates = r.optional(&signed, tagContext0, "certificates")
	// They would be CRLs of the sender's choice.
	if len(signed) > 0 && signed[0] == tagContext1 {
		return p, refuse("crls", "it carries CRLs")
	}
	signers := r.open(&signed, tagSet, "signerInfos")
	r.end(signed, "SignedData")
	if r.err != nil {
		return p, &Refusal{"structure", r.err}
	}
	// Version 3 has other content, or a signer that is named in another way.
	if !bytes.Equal(version, []byte{1}) {
		return p, refuse("version", "version %x of SignedData, want 1", version)
	}
	if !bytes.Equal(eContentType, about.id) {
		return p, refuse("type", "its content is not %s", about.name)
	}
	if len(signers) == 0 {
		return p, refuse("signers", "nobody signed it")
	}
	p.signer = r.open(&signers, tagSequence, "SignerInfo")
	if len(signers) > 0 {
		return p, refuse("signers", "more than one signed it")
	}
	p.digestAlgorithm = r.open(&digests, tagSequence, "digestAlgorithms")
	r.end(digests, "digestAlgorithms")
	if r.err != nil {
		return p, &Refusal{"structure", r.err}
	}
	return p, nil
}

// signedCertificates reads the certificates of a signed message. Every key among them
// has to be one that may be computed with, since a chain may be tried through any.
func signedCertificates(set []byte) (certs []*x509.Certificate, err error) {
	for n := 1; len(set) > 0; n++ {
		if n > signedCertificateLimit {
			return nil, refuse("certificates", "more than %d certificates", signedCertificateLimit)
		}
		e, rest, err := split(set, false)
		if err != nil || e.tag != tagSequence {
			return nil, refuse("certificates", "certificate %d is not of X.509 (tag %#02x)", n, e.tag)
		}
		cert, err := x509.ParseCertificate(set[:len(set)-len(rest)])
		if err != nil {
			return nil, refuse("certificates", "certificate %d: %w", n, err)
		}
		if slices.ContainsFunc(certs, cert.Equal) {
			return nil, refuse("certificates", "certificate %d is there twice", n)
		}
		if err := checkKey(cert.PublicKey); err != nil {
			return nil, refuse("key", "certificate %d: %w", n, err)
		}
		certs, set = append(certs, cert), rest
	}
	if certs == nil {
		return nil, refuse("certificates", "it holds no certificates")
	}
	return certs, nil
}
