package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"slices"
)

// A draft is a signed message in its parts, as DER, before it is signed. What a forger
// may change in it is signed nevertheless: it is his own key, or the signer's mistake.
type draft struct {
	// SignedData
	contentType, version, digests, eContentType []byte
	content                                     []byte
	detached                                    bool
	certs                                       [][]byte
	crls                                        []byte
	more                                        []byte // after the SignerInfo
	after, afterContent                         []byte // where nothing should be
	wrap                                        func([]byte) []byte

	// SignerInfo
	infoVersion, sid, digestAlgorithm []byte
	attributes                        [][]byte // in the order of DER, unless keepOrder
	keepOrder                         bool
	signatureAlgorithm                []byte
	sign                              func(attributes []byte) []byte
	unsigned                          []byte

	// What the device makes of it.
	shown []byte // as the content of a detached signature
	trust *Trust
}

const manifest = "[update]\ncompatible=a device\n"

// draftOf is a good message, signed by a party of the house, with SHA-256.
func draftOf(signer *party) *draft {
	content := []byte(manifest)
	d := &draft{
		contentType:     tlv(tagOID, idSignedData),
		version:         tlv(tagInteger, []byte{1}),
		digests:         tlv(tagSet, identifier(sha2(1))),
		eContentType:    tlv(tagOID, idData),
		content:         content,
		shown:           content,
		certs:           [][]byte{signer.cert.Raw, house().firmware.cert.Raw},
		infoVersion:     tlv(tagInteger, []byte{1}),
		digestAlgorithm: identifier(sha2(1)),
		attributes: [][]byte{
			attribute(idContentType, tlv(tagOID, idData)),
			attribute(idSigningTime, tlv(tagUTCTime, []byte("260531120000Z"))),
			attribute(idMessageDigest, tlv(tagOctetString, sum(crypto.SHA256, content))),
		},
		trust: trust(),
	}
	d.by(signer)
	return d
}

const tagUTCTime = 0x17

var idSigningTime = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x05}

// by makes a party the signer, who is named and signs.
func (d *draft) by(signer *party) {
	d.certs[0] = signer.cert.Raw
	d.sid = tlv(tagSequence, signer.cert.RawIssuer, tlv(tagInteger, integer(signer.cert.SerialNumber)))
	d.signatureAlgorithm = identifier(ecdsaWithSHA2(2))
	if _, ok := signer.key.Public().(*rsa.PublicKey); ok {
		d.signatureAlgorithm = identifier(idRSA, []byte{tagNull, 0})
	}
	d.signWith(signer, crypto.SHA256)
}

func (d *draft) signWith(signer *party, opts crypto.SignerOpts) {
	d.sign = func(attributes []byte) []byte {
		signature, err := signer.key.Sign(rand.Reader, sum(opts.HashFunc(), attributes), opts)
		must(err)
		return signature
	}
}

// set replaces the attribute with the same type, or adds one.
func (d *draft) set(id []byte, values ...[]byte) {
	whole := attribute(id, values...)
	i := slices.IndexFunc(d.attributes, func(a []byte) bool { return bytes.Contains(a, tlv(tagOID, id)) })
	if i < 0 {
		d.attributes = append(d.attributes, whole)
	} else {
		d.attributes[i] = whole
	}
}

func (d *draft) drop(id []byte) {
	d.attributes = slices.DeleteFunc(d.attributes, func(a []byte) bool { return bytes.Contains(a, tlv(tagOID, id)) })
}

// der signs the draft.
func (d *draft) der() []byte {
	attributes := slices.Clone(d.attributes)
	if !d.keepOrder {
		slices.SortFunc(attributes, bytes.Compare)
	}
	set := slices.Concat(attributes...)
	signature := tlv(tagOctetString, d.sign(tlv(tagSet, set)))
	info := tlv(tagSequence, d.infoVersion, d.sid, d.digestAlgorithm, tlv(tagContext0, set), d.signatureAlgorithm, signature, d.unsigned)
	return d.around(tlv(tagSet, info, d.more))
}

// around is the message with given SignerInfos.
func (d *draft) around(infos []byte) []byte {
	var content, certs []byte
	if !d.detached {
		content = tlv(tagContext0, tlv(tagOctetString, d.content), d.afterContent)
	}
	if d.certs != nil {
		certs = tlv(tagContext0, d.certs...)
	}
	signed := tlv(tagSequence, d.version, d.digests, tlv(tagSequence, d.eContentType, content), certs, d.crls, infos, d.after)
	der := tlv(tagSequence, d.contentType, tlv(tagContext0, signed))
	if d.wrap != nil {
		return d.wrap(der)
	}
	return der
}

// judge is what a device does with a message: both steps, and in between the digest of
// the content where that is elsewhere. It returns the code of the step that refuses.
func judge(der, shown []byte, trust *Trust) (stage string, err error) {
	s, err := ReadSigned(der)
	if err != nil {
		return "cms", err
	}
	if s.Content == nil {
		if err := s.Check(sum(s.Hash, shown)); err != nil {
			return "cms", err
		}
	}
	if _, err := trust.Verify(s); err != nil {
		return "chain", err
	}
	return "", nil
}

func identifier(id []byte, parameters ...[]byte) []byte {
	return tlv(tagSequence, append([][]byte{tlv(tagOID, id)}, parameters...)...)
}

func attribute(id []byte, values ...[]byte) []byte {
	return tlv(tagSequence, tlv(tagOID, id), tlv(tagSet, values...))
}

func sum(h crypto.Hash, b []byte) []byte {
	w := h.New()
	w.Write(b)
	return w.Sum(nil)
}

// pss is the algorithm with its parameters, of which those that are nil are left out.
func pss(hash, mgf, salt, trailer []byte) []byte {
	var parameters []byte
	for i, p := range [][]byte{hash, mgf, salt, trailer} {
		if p != nil {
			parameters = append(parameters, tlv(tagContext0+byte(i), p)...)
		}
	}
	return identifier(idPSS, tlv(tagSequence, parameters))
}

func mgf1(hash []byte) []byte { return identifier(idMGF1, identifier(hash)) }

// byPSS has an RSA key sign with RSASSA-PSS.
func (d *draft) byPSS(signer *party, salt int) {
	d.by(signer)
	d.signatureAlgorithm = pss(identifier(sha2(1)), mgf1(sha2(1)), tlv(tagInteger, []byte{byte(salt)}), nil)
	d.signWith(signer, &rsa.PSSOptions{SaltLength: salt, Hash: crypto.SHA256})
}

// verifies reports whether a signature is right by a certificate's key.
func verifies(cert *x509.Certificate, signed, signature []byte) bool {
	return ecdsa.VerifyASN1(cert.PublicKey.(*ecdsa.PublicKey), sum(crypto.SHA256, signed), signature)
}
