package cms

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"math/big"
)

const (
	tagNull       = 0x05
	tagUnsigned   = tagContext1 // unsignedAttrs of a SignerInfo
	tagKeyID      = 0x80        // subjectKeyIdentifier, [0] primitive
	tagAttributes = tagContext0 // signedAttrs
)

// Attributes (RFC 5652, 11).
var (
	idContentType   = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x03} // 1.2.840.113549.1.9.3
	idMessageDigest = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x04} // 1.2.840.113549.1.9.4
)

// A signerInfo is what a message says of its signer, and the signature.
type signerInfo struct {
	issuer []byte // Name, whole
	serial []byte // contents

	hash       crypto.Hash
	attributes []byte // as they are signed
	digest     []byte // messageDigest among them

	algorithm  []byte // of the signature: contents of an OBJECT IDENTIFIER
	parameters []byte // of that, whole
	signature  []byte
}

// readSignerInfo reads the contents of a SignerInfo (RFC 5652, 5.3):
//
//	version             INTEGER,                 1
//	sid                 SEQUENCE { Name, INTEGER },
//	digestAlgorithm     SEQUENCE,
//	signedAttrs         [0] IMPLICIT SET,
//	signatureAlgorithm  SEQUENCE,
//	signature           OCTET STRING
//
// The signer may also be named by a key identifier, and attributes may follow that are
// not signed. Both are refused. Nothing that signs firmware needs them, the second
// reader does not know the former, and anybody may add the latter.
func readSignerInfo(b []byte, about kind) (*signerInfo, error) {
	var r reader
	version := r.open(&b, tagInteger, "version of SignerInfo")
	if len(b) > 0 && b[0] == tagKeyID {
		return nil, refuse("sid", "the signer is named by a key identifier, want issuer and serial number")
	}
	if r.err == nil && !bytes.Equal(version, []byte{1}) {
		return nil, refuse("version", "version %x of SignerInfo, want 1", version)
	}
	var s signerInfo
	sid := r.open(&b, tagSequence, "sid")
	name := sid
	r.open(&sid, tagSequence, "issuer")
	s.issuer = name[:len(name)-len(sid)]
	s.serial = r.open(&sid, tagInteger, "serialNumber")
	r.end(sid, "sid")
	hash := r.open(&b, tagSequence, "digestAlgorithm")
	// Without attributes a signature is over the content itself, and one over
	// attributes could be shown as one over content that looks like them.
	if r.err == nil && (len(b) == 0 || b[0] != tagAttributes) {
		return nil, refuse("attributes", "nothing is signed but the content: no signed attributes")
	}
	attributes := r.open(&b, tagAttributes, "signedAttrs")
	s.parameters = r.open(&b, tagSequence, "signatureAlgorithm")
	s.algorithm = r.open(&s.parameters, tagOID, "signatureAlgorithm")
	s.signature = r.open(&b, tagOctetString, "signature")
	if r.err == nil && len(b) > 0 && b[0] == tagUnsigned {
		return nil, refuse("unsigned", "it has attributes that are not signed")
	}
	r.end(b, "SignerInfo")
	if r.err != nil {
		return nil, &Refusal{"structure", r.err}
	}
	var err error
	if s.hash, err = digestAlgorithm(hash); err != nil {
		return nil, refuse("algorithm", "%w", err)
	}
	if s.digest, err = readAttributes(attributes, about); err != nil {
		return nil, err
	}
	if len(s.digest) != s.hash.Size() {
		return nil, refuse("attributes", "messageDigest has %d bytes, want %d", len(s.digest), s.hash.Size())
	}
	// The signature is over an ordinary SET (5.4).
	s.attributes = append(appendHeader(nil, tagSet, len(attributes)), attributes...)
	return &s, nil
}

// readAttributes reads signed attributes and returns the messageDigest among them.
// They are DER, so in the order of a SET OF (RFC 5652, 5.4; X.690, 11.6), which is
// ascending: a reader that would sort them signs the same bytes. Attributes of types
// that are not looked for, such as signingTime, which the signer may choose, have to
// be well formed only.
func readAttributes(set []byte, about kind) (digest []byte, err error) {
	seen := map[string]bool{}
	var before []byte
	for len(set) > 0 {
		var r reader
		rest := set
		attribute := r.open(&rest, tagSequence, "attribute")
		id := r.open(&attribute, tagOID, "type of an attribute")
		values := r.open(&attribute, tagSet, "values of an attribute")
		r.end(attribute, "attribute")
		if r.err == nil && len(values) == 0 {
			return nil, refuse("attributes", "an attribute has no value")
		}
		whole := set[:len(set)-len(rest)]
		switch {
		case r.err != nil:
		case seen[string(id)]:
			return nil, refuse("attributes", "an attribute is there twice")
		case bytes.Compare(before, whole) > 0:
			return nil, refuse("attributes", "the signed attributes are not in the order of DER")
		case bytes.Equal(id, idContentType):
			got := r.open(&values, tagOID, "contentType")
			r.end(values, "contentType")
			if r.err == nil && !bytes.Equal(got, about.id) {
				return nil, refuse("attributes", "contentType is not that of the content")
			}
		case bytes.Equal(id, idMessageDigest):
			digest = r.open(&values, tagOctetString, "messageDigest")
			r.end(values, "messageDigest")
		}
		if r.err != nil {
			return nil, &Refusal{"attributes", r.err}
		}
		seen[string(id)] = true
		before, set = whole, rest
	}
	if !seen[string(idContentType)] || !seen[string(idMessageDigest)] {
		return nil, refuse("attributes", "contentType or messageDigest is not among the signed attributes")
	}
	return digest, nil
}

// find returns the certificate of the signer, of which there must be one.
func (s *signerInfo) find(certs []*x509.Certificate) (signer *x509.Certificate, err error) {
	for _, c := range certs {
		if !bytes.Equal(c.RawIssuer, s.issuer) || !bytes.Equal(integer(c.SerialNumber), s.serial) {
			continue
		}
		if signer != nil {
			return nil, refuse("signer", "two certificates could be the signer's")
		}
		signer = c
	}
	if signer == nil {
		return nil, refuse("signer", "the signer's certificate is not in the message")
	}
	return signer, nil
}

// integer is the contents of a positive INTEGER in DER (X.690, 8.3).
func integer(n *big.Int) []byte {
	b := n.Bytes()
	if len(b) == 0 || b[0]&0x80 != 0 {
		b = append([]byte{0}, b...)
	}
	return b
}
