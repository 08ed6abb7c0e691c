package image

import (
	"cmp"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"slices"
)

// Sign returns a program for UEFI with an Authenticode signature, as Secure Boot
// verifies it (UEFI 2.10, 32.2.4; "Windows Authenticode Portable Executable Signature
// Format", Microsoft 2008). sbsign does the same, and puts the time of day into the
// signature; ours has no time, and RSA with PKCS #1 v1.5 no chance, so that the same
// program and key give the same bytes.
func Sign(program []byte, key Key) ([]byte, error) {
	pe, err := parsePE(program)
	if err != nil {
		return nil, err
	}
	image := pe.withoutSignature()
	content, err := asn1.Marshal(indirectData{
		Data: attributeValue{oidPEImage, asn1.RawValue{FullBytes: peImageData}},
		Digest: digestInfo{
			pkix.AlgorithmIdentifier{Algorithm: oidSHA256, Parameters: asn1.NullRawValue},
			image.hash(),
		},
	})
	if err != nil {
		return nil, err
	}
	signature, err := signedData(content, key)
	if err != nil {
		return nil, err
	}
	return image.withSignature(signature), nil
}

var (
	oidSignedData    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidContentType   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidMessageDigest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidSHA256        = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidRSA           = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidIndirectData  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 4}
	oidPEImage       = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 15}
)

// peImageData is SpcPeImageData as everybody writes it: no flags, and a link to a file
// without a name.
var peImageData = []byte{0x30, 0x09, 0x03, 0x01, 0x00, 0xa0, 0x04, 0xa2, 0x02, 0x80, 0x00}

type attributeValue struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

type digestInfo struct {
	Algorithm pkix.AlgorithmIdentifier
	Digest    []byte
}

// indirectData is SpcIndirectDataContent.
type indirectData struct {
	Data   attributeValue
	Digest digestInfo
}

type attribute struct {
	Type   asn1.ObjectIdentifier
	Values asn1.RawValue // SET
}

type signerInfo struct {
	Version         int
	Signer          issuerAndSerial
	DigestAlgorithm pkix.AlgorithmIdentifier
	Attributes      asn1.RawValue // [0] IMPLICIT SET OF Attribute
	Algorithm       pkix.AlgorithmIdentifier
	Signature       []byte
}

type issuerAndSerial struct {
	Issuer asn1.RawValue
	Serial *big.Int
}

type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue // [0] EXPLICIT
}

// signedData is a SignedData of PKCS #7 (RFC 2315) over content, a SEQUENCE: what is
// hashed is what is in it, without tag and length.
func signedData(content []byte, key Key) ([]byte, error) {
	var inner asn1.RawValue
	if _, err := asn1.Unmarshal(content, &inner); err != nil {
		return nil, err
	}
	digest := sha256.Sum256(inner.Bytes)
	var attributes []byte // in the order of DER: the shorter one first
	for _, a := range []struct {
		oid   asn1.ObjectIdentifier
		value any
	}{{oidContentType, oidIndirectData}, {oidMessageDigest, digest[:]}} {
		value, err := asn1.Marshal(a.value)
		if err != nil {
			return nil, err
		}
		der, err := asn1.Marshal(attribute{a.oid, set(asn1.ClassUniversal, asn1.TagSet, value)})
		if err != nil {
			return nil, err
		}
		attributes = append(attributes, der...)
	}
	// Signed as a SET, sent as [0] (RFC 2315, 9.3).
	signed, err := asn1.Marshal(set(asn1.ClassUniversal, asn1.TagSet, attributes))
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(signed)
	signature, err := rsa.SignPKCS1v15(rand.Reader, key.Private, crypto.SHA256, sum[:])
	if err != nil {
		return nil, err
	}
	sha := pkix.AlgorithmIdentifier{Algorithm: oidSHA256, Parameters: asn1.NullRawValue}
	data, err := asn1.Marshal(struct {
		Version      int
		Algorithms   []pkix.AlgorithmIdentifier `asn1:"set"`
		Content      contentInfo
		Certificates asn1.RawValue
		Signers      []signerInfo `asn1:"set"`
	}{
		Version:      1,
		Algorithms:   []pkix.AlgorithmIdentifier{sha},
		Content:      contentInfo{oidIndirectData, set(asn1.ClassContextSpecific, 0, content)},
		Certificates: set(asn1.ClassContextSpecific, 0, key.Certificate.Raw),
		Signers: []signerInfo{{
			Version:         1,
			Signer:          issuerAndSerial{asn1.RawValue{FullBytes: key.Certificate.RawIssuer}, key.Certificate.SerialNumber},
			DigestAlgorithm: sha,
			Attributes:      set(asn1.ClassContextSpecific, 0, attributes),
			Algorithm:       pkix.AlgorithmIdentifier{Algorithm: oidRSA, Parameters: asn1.NullRawValue},
			Signature:       signature,
		}},
	})
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(contentInfo{oidSignedData, set(asn1.ClassContextSpecific, 0, data)})
}

func set(class, tag int, content []byte) asn1.RawValue {
	return asn1.RawValue{Class: class, Tag: tag, IsCompound: true, Bytes: content}
}

// A Key signs programs.
type Key struct {
	Private     *rsa.PrivateKey
	Certificate *x509.Certificate
}

// A pe is a program in Microsoft's format ("PE Format", Microsoft).
type pe struct {
	bytes      []byte
	checksumAt int
	securityAt int // of the directory's entry: offset and length of the signature
	headers    int // their size
	sections   []section
}

type section struct{ at, size int }

func parsePE(b []byte) (pe, error) {
	le := binary.LittleEndian
	short := errors.New("it is no PE32+ program")
	if len(b) < 0x40 || string(b[:2]) != "MZ" {
		return pe{}, short
	}
	header := int(le.Uint32(b[0x3c:]))
	optional := header + 24
	if header < 0 || optional+112+5*8 > len(b) || string(b[header:header+4]) != "PE\x00\x00" || le.Uint16(b[optional:]) != 0x20b {
		return pe{}, short
	}
	if n := le.Uint32(b[optional+108:]); n < 5 {
		return pe{}, fmt.Errorf("it has %d data directories, want 5", n)
	}
	p := pe{bytes: b, checksumAt: optional + 64, securityAt: optional + 112 + 4*8, headers: int(le.Uint32(b[optional+60:]))}
	table := optional + int(le.Uint16(b[header+20:]))
	for range le.Uint16(b[header+6:]) {
		if table+40 > len(b) {
			return pe{}, short
		}
		s := section{int(le.Uint32(b[table+20:])), int(le.Uint32(b[table+16:]))}
		if s.at+s.size > len(b) {
			return pe{}, short
		}
		p.sections = append(p.sections, s)
		table += 40
	}
	if table > p.headers || p.headers > len(b) {
		return pe{}, short
	}
	slices.SortFunc(p.sections, func(x, y section) int { return cmp.Compare(x.at, y.at) })
	return p, nil
}

// withoutSignature is a copy without one, and without the times and sums that
// builders leave, its length a multiple of 8.
func (p pe) withoutSignature() pe {
	le := binary.LittleEndian
	b := p.bytes
	if at := int(le.Uint32(b[p.securityAt:])); at > 0 && at < len(b) {
		b = b[:at]
	}
	b = slices.Concat(b, make([]byte, -len(b)&7))
	for _, field := range []int{p.checksumAt, p.securityAt, p.securityAt + 4, int(le.Uint32(b[0x3c:])) + 8} {
		le.PutUint32(b[field:], 0)
	}
	p.bytes = b
	return p
}

// hash is over the headers, without what changes when the program is signed, over the
// sections by their place, and over what is left. Left is what is behind as many bytes
// as were hashed, even where there are gaps between sections: that is what EDK II does.
func (p pe) hash() []byte {
	h := sha256.New()
	h.Write(p.bytes[:p.checksumAt])
	h.Write(p.bytes[p.checksumAt+4 : p.securityAt])
	h.Write(p.bytes[p.securityAt+8 : p.headers])
	done := p.headers
	for _, s := range p.sections {
		h.Write(p.bytes[s.at : s.at+s.size])
		done += s.size
	}
	h.Write(p.bytes[min(done, len(p.bytes)):])
	return h.Sum(nil)
}

// withSignature is the program with a WIN_CERTIFICATE at its end.
func (p pe) withSignature(pkcs7 []byte) []byte {
	le := binary.LittleEndian
	size := 8 + len(pkcs7)
	cert := make([]byte, (size+7)&^7)
	le.PutUint32(cert, uint32(len(cert)))
	le.PutUint16(cert[4:], 0x0200) // revision 2
	le.PutUint16(cert[6:], 0x0002) // PKCS #7
	copy(cert[8:], pkcs7)
	b := append(p.bytes[:len(p.bytes):len(p.bytes)], cert...)
	le.PutUint32(b[p.securityAt:], uint32(len(p.bytes)))
	le.PutUint32(b[p.securityAt+4:], uint32(len(cert)))
	return b
}
