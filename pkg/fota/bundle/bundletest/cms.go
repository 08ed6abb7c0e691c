package bundletest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1" // what no device accepts has to be made, too
	_ "crypto/sha512"
	"encoding/asn1"
	"slices"
	"testing"
)

// Object identifiers (RFC 5652, 4 and 11; RFC 5754; RFC 4055).
var (
	OIDData        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	OIDSignedData  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	OIDEnveloped   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}
	OIDContentType = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	OIDDigest      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	OIDRSA         = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	OIDPSS         = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}
	OIDMGF1        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 8}
	OIDMD5         = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 5}

	digests = map[crypto.Hash]asn1.ObjectIdentifier{
		crypto.SHA1:   {1, 3, 14, 3, 2, 26},
		crypto.SHA224: {2, 16, 840, 1, 101, 3, 4, 2, 4},
		crypto.SHA256: {2, 16, 840, 1, 101, 3, 4, 2, 1},
		crypto.SHA384: {2, 16, 840, 1, 101, 3, 4, 2, 2},
		crypto.SHA512: {2, 16, 840, 1, 101, 3, 4, 2, 3},
	}
	ecdsaWith = map[crypto.Hash]asn1.ObjectIdentifier{
		crypto.SHA1:   {1, 2, 840, 10045, 4, 1},
		crypto.SHA224: {1, 2, 840, 10045, 4, 3, 1},
		crypto.SHA256: {1, 2, 840, 10045, 4, 3, 2},
		crypto.SHA384: {1, 2, 840, 10045, 4, 3, 3},
		crypto.SHA512: {1, 2, 840, 10045, 4, 3, 4},
	}
)

// A Message is a SignedData as `rauc bundle` makes it, and whatever else somebody might
// make. Content and By are needed; every other field bends something.
type Message struct {
	Content []byte
	By      *Signer

	Detached     bool                  // the content is not in it
	Shown        []byte                // another content is in it than was signed
	OuterType    asn1.ObjectIdentifier // of the message; OIDSignedData
	Type         asn1.ObjectIdentifier // of the content; OIDData
	Hash         crypto.Hash           // SHA-256
	DigestOID    asn1.ObjectIdentifier // said to be the digest's
	SignatureOID asn1.ObjectIdentifier // said to be the signature's
	PSS          bool                  // by RSASSA-PSS
	Certificates [][]byte              // DER; the signer's and those above
	Version      int                   // of the message; 1
	NoAttributes bool
	Attributes   func(own [][]byte) [][]byte   // DER of each
	Signature    func(signature []byte) []byte // changes it
	Signers      func(own []byte) [][]byte     // DER of each SignerInfo
	Unsigned     [][]byte                      // attributes
	CRLs         [][]byte                      // in the message
	SignerID     func(own []byte) []byte       // DER
}

// Sign returns the message in DER.
func (m Message) Sign(t testing.TB) []byte {
	t.Helper()
	m.defaults()
	content := [][]byte{OID(m.Type)}
	if !m.Detached {
		content = append(content, TLV(0xa0, TLV(0x04, m.Shown)))
	}
	signers := [][]byte{m.SignerInfo(t)}
	if m.Signers != nil {
		signers = m.Signers(signers[0])
	}
	parts := [][]byte{
		Int(m.Version),
		TLV(0x31, TLV(0x30, OID(m.DigestOID))),
		TLV(0x30, content...),
		TLV(0xa0, m.Certificates...),
	}
	if m.CRLs != nil {
		parts = append(parts, TLV(0xa1, m.CRLs...))
	}
	parts = append(parts, TLV(0x31, signers...))
	return TLV(0x30, OID(m.OuterType), TLV(0xa0, TLV(0x30, parts...)))
}

// defaults fills in what `rauc bundle` does.
func (m *Message) defaults() {
	if m.Hash == 0 {
		m.Hash = crypto.SHA256
	}
	if m.Type == nil {
		m.Type = OIDData
	}
	if m.OuterType == nil {
		m.OuterType = OIDSignedData
	}
	if m.DigestOID == nil {
		m.DigestOID = digests[m.Hash]
	}
	if m.Version == 0 {
		m.Version = 1
	}
	if m.Certificates == nil {
		m.Certificates = [][]byte{m.By.Cert.Raw}
		for _, c := range m.By.Above {
			m.Certificates = append(m.Certificates, c.Raw)
		}
	}
	if m.Shown == nil {
		m.Shown = m.Content
	}
}

func (m Message) attributes() []byte {
	attributes := [][]byte{
		Attribute(OIDContentType, OID(m.Type)),
		Attribute(OIDDigest, TLV(0x04, sum(m.Hash, m.Content))),
	}
	if m.Attributes != nil {
		attributes = m.Attributes(attributes)
	}
	return slices.Concat(attributes...)
}

// SignedAttributes is what the signature is over: a SET in DER.
func (m Message) SignedAttributes() []byte {
	m.defaults()
	return TLV(0x31, m.attributes())
}

func sum(h crypto.Hash, b []byte) []byte {
	hash := h.New()
	hash.Write(b)
	return hash.Sum(nil)
}

// RawSignature is the octets of the signature alone.
func (m Message) RawSignature(t testing.TB) []byte {
	t.Helper()
	m.defaults()
	signed := m.SignedAttributes()
	if m.NoAttributes {
		signed = m.Content
	}
	var options crypto.SignerOpts = m.Hash
	if m.PSS {
		options = &rsa.PSSOptions{SaltLength: m.Hash.Size(), Hash: m.Hash}
	}
	signature, err := m.By.Key.Sign(rand.Reader, sum(m.Hash, signed), options)
	if err != nil {
		t.Fatalf("cannot sign: %v", err)
	}
	return signature
}

// SignerInfo is what the message says about its signer, DER.
func (m Message) SignerInfo(t testing.TB) []byte {
	t.Helper()
	m.defaults()
	algorithm := TLV(0x30, OID(OIDRSA), []byte{0x05, 0x00})
	switch _, isRSA := m.By.Key.Public().(*rsa.PublicKey); {
	case m.PSS:
		hash := TLV(0x30, OID(digests[m.Hash]))
		algorithm = TLV(0x30, OID(OIDPSS), TLV(0x30, TLV(0xa0, hash),
			TLV(0xa1, TLV(0x30, OID(OIDMGF1), hash)), TLV(0xa2, Int(m.Hash.Size()))))
	case !isRSA:
		algorithm = TLV(0x30, OID(ecdsaWith[m.Hash]))
	}
	if m.SignatureOID != nil {
		algorithm = TLV(0x30, OID(m.SignatureOID))
	}
	signature := m.RawSignature(t)
	if m.Signature != nil {
		signature = m.Signature(signature)
	}
	number, err := asn1.Marshal(m.By.Cert.SerialNumber)
	if err != nil {
		t.Fatal(err)
	}
	id := TLV(0x30, m.By.Cert.RawIssuer, number)
	if m.SignerID != nil {
		id = m.SignerID(id)
	}
	parts := [][]byte{Int(1), id, TLV(0x30, OID(m.DigestOID))}
	if !m.NoAttributes {
		parts = append(parts, TLV(0xa0, m.attributes()))
	}
	parts = append(parts, algorithm, TLV(0x04, signature))
	if m.Unsigned != nil {
		parts = append(parts, TLV(0xa1, m.Unsigned...))
	}
	return TLV(0x30, parts...)
}

// Attribute is one with a single value.
func Attribute(kind asn1.ObjectIdentifier, value []byte) []byte {
	return TLV(0x30, OID(kind), TLV(0x31, value))
}

// TLV is an element of DER, its contents joined.
func TLV(tag byte, contents ...[]byte) []byte {
	n := 0
	for _, c := range contents {
		n += len(c)
	}
	b := []byte{tag}
	switch {
	case n < 1<<7:
		b = append(b, byte(n))
	case n < 1<<8:
		b = append(b, 0x81, byte(n))
	case n < 1<<16:
		b = append(b, 0x82, byte(n>>8), byte(n))
	default:
		b = append(b, 0x83, byte(n>>16), byte(n>>8), byte(n))
	}
	for _, c := range contents {
		b = append(b, c...)
	}
	return b
}

// OID is an OBJECT IDENTIFIER in DER.
func OID(id asn1.ObjectIdentifier) []byte {
	b, err := asn1.Marshal(id)
	if err != nil {
		panic(err) // a constant of this package, or of a test
	}
	return b
}

// Int is a small INTEGER in DER.
func Int(n int) []byte { return TLV(0x02, []byte{byte(n)}) }
