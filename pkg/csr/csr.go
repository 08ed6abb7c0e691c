// Package csr writes certificate requests (PKCS #10, RFC 2986), and understands
// what a CA wishes to see in one. It does no I/O.
//
// [Build] makes a request from a [Request] and signs it with any [crypto.Signer].
// The subject comes from [CommonName], from [ParseDN], or with [Renewal] from the
// certificate that is to be renewed:
//
//	subject, err := csr.CommonName(id)
//	req := csr.Request{Subject: subject}
//	wish.Apply(&req) // wish: what ParseAttrs made of the CA's answer
//	der, err := csr.Build(req, key)
//
// A CA that wants proof that the request was made for the connection over which it
// comes gets it from [Challenge], at the last moment.
//
// Requests are put together here, and not by crypto/x509, because that knows only one
// shape of attribute, which those of RFC 2985 and of attestation do not have; and
// what is signed is what was given, byte for byte.
//
// [Attrs] are the wishes that an EST server tells before a request (CSR attributes:
// RFC 7030, 4.5, made precise by RFC 9908). They are wishes: [Attrs.Algorithm] names
// a kind of key only if we have it, and [Attrs.Apply] copies only what gives the
// device no power over others.
package csr

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"

	"birthmark/pkg/cms"
)

// A Request is what is asked for, besides the key.
type Request struct {
	Subject    []byte           // Name, DER
	Extensions []pkix.Extension // each once

	// renewal: names are those of another certificate, and nothing may be added.
	renewal bool
}

// Renewal asks for a successor of current: for the same names, byte for byte, so
// that also a CA that compares them so finds them equal (RFC 7030, 4.2.2). All
// else is for the CA to say.
func Renewal(current *x509.Certificate) Request {
	req := Request{Subject: current.RawSubject, renewal: true}
	for _, e := range current.Extensions {
		if e.Id.Equal(oidSubjectAltName) {
			req.Extensions = append(req.Extensions, e)
		}
	}
	return req
}

var oidExtensionRequest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14} // RFC 2985, 5.4.2

// RFC 2986, 4.1 and 4.2.
type (
	certificationRequest struct {
		Info      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	certificationRequestInfo struct {
		Version    int
		Subject    asn1.RawValue
		PublicKey  asn1.RawValue
		Attributes []attribute `asn1:"tag:0,set"`
	}
	attribute struct {
		Type   asn1.ObjectIdentifier
		Values []asn1.RawValue `asn1:"set"`
	}
)

// Build makes a request for key, signed by key, and returns it as DER. Keys are ECDSA
// on P-256 or P-384, or RSA of 2048 bits and more; the hash is the one that fits.
//
// What is returned has been parsed and verified once by crypto/x509. So a subject
// that is none, and a key that does not sign what it should, are found here and
// not by the CA.
func Build(req Request, key crypto.Signer) ([]byte, error) {
	der, err := build(req, key)
	if err == nil {
		err = check(der)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot make certificate request: %w", err)
	}
	return der, nil
}

func build(req Request, key crypto.Signer) ([]byte, error) {
	if err := cms.CheckDER(req.Subject); err != nil {
		return nil, fmt.Errorf("subject: %w", err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	info := certificationRequestInfo{Subject: asn1.RawValue{FullBytes: req.Subject}, PublicKey: asn1.RawValue{FullBytes: public}}
	if len(req.Extensions) > 0 {
		extensions, err := asn1.Marshal(req.Extensions)
		if err != nil {
			return nil, err
		}
		info.Attributes = []attribute{{oidExtensionRequest, []asn1.RawValue{{FullBytes: extensions}}}}
	}
	return sign(info, key)
}

func sign(info certificationRequestInfo, key crypto.Signer) ([]byte, error) {
	algorithm, hash, err := signatureOf(key.Public())
	if err != nil {
		return nil, err
	}
	signed, err := asn1.Marshal(info)
	if err != nil {
		return nil, err
	}
	h := hash.New()
	h.Write(signed)
	signature, err := key.Sign(rand.Reader, h.Sum(nil), hash)
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(certificationRequest{
		Info:      asn1.RawValue{FullBytes: signed},
		Algorithm: algorithm,
		Signature: asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)},
	})
}

func check(der []byte) error {
	parsed, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return err
	}
	return parsed.CheckSignature()
}

// signatureOf is how a key signs. Parameters are absent for ECDSA (RFC 5758, 3.2)
// and NULL for RSA (RFC 4055, 5).
func signatureOf(public crypto.PublicKey) (pkix.AlgorithmIdentifier, crypto.Hash, error) {
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		switch public.Curve {
		case elliptic.P256():
			return pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}, crypto.SHA256, nil
		case elliptic.P384():
			return pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}}, crypto.SHA384, nil
		}
		return pkix.AlgorithmIdentifier{}, 0, fmt.Errorf("no signature for keys on curve %s", public.Curve.Params().Name)
	case *rsa.PublicKey:
		if bits := public.N.BitLen(); bits < 2048 {
			return pkix.AlgorithmIdentifier{}, 0, fmt.Errorf("an RSA key of %d bits is too short", bits)
		}
		return pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: asn1.NullRawValue}, crypto.SHA256, nil
	}
	return pkix.AlgorithmIdentifier{}, 0, fmt.Errorf("no signature for keys of type %T", public)
}
