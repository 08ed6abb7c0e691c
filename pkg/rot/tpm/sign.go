package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// scheme says how the TPM has to sign a digest. For ECDSA the digest may come back
// shorter.
func (k *Key) scheme(digest []byte, opts crypto.SignerOpts) ([]byte, tpm2.TPMTSigScheme, error) {
	var none tpm2.TPMTSigScheme
	hash := opts.HashFunc()
	id, ok := hashID(hash)
	if !ok {
		return nil, none, fmt.Errorf("hash %v, can only use SHA-256, SHA-384 and SHA-512", hash)
	}
	if len(digest) != hash.Size() {
		return nil, none, fmt.Errorf("a digest of %d bytes, %v has %d", len(digest), hash, hash.Size())
	}
	switch key := k.key.(type) {
	case *ecdsa.PublicKey:
		digest, id = shorten(digest, id, (key.Curve.Params().N.BitLen()+7)/8)
		return digest, hashScheme(tpm2.TPMAlgECDSA, id), nil
	default:
		pss, ok := opts.(*rsa.PSSOptions)
		if !ok {
			return digest, hashScheme(tpm2.TPMAlgRSASSA, id), nil
		}
		// A TPM cannot be told the length of the salt. FIPS 186-4 asks for that of
		// the hash, and Create makes sure that this one obeys.
		if s := pss.SaltLength; s != rsa.PSSSaltLengthAuto && s != rsa.PSSSaltLengthEqualsHash && s != hash.Size() {
			return nil, none, fmt.Errorf("a PSS salt of %d bytes: the TPM's is as long as the hash", s)
		}
		return digest, hashScheme(tpm2.TPMAlgRSAPSS, id), nil
	}
}

// shorten cuts a digest to the size of the curve's order. ECDSA does that itself
// (FIPS 186-5, 6.4.1), so the signature is the same; but now it is one that chips
// without SHA-384 and SHA-512 can make.
func shorten(digest []byte, id tpm2.TPMAlgID, size int) ([]byte, tpm2.TPMAlgID) {
	if len(digest) <= size {
		return digest, id
	}
	if size == crypto.SHA256.Size() {
		return digest[:size], tpm2.TPMAlgSHA256
	}
	return digest[:crypto.SHA384.Size()], tpm2.TPMAlgSHA384
}

func hashID(h crypto.Hash) (tpm2.TPMAlgID, bool) {
	switch h {
	case crypto.SHA256:
		return tpm2.TPMAlgSHA256, true
	case crypto.SHA384:
		return tpm2.TPMAlgSHA384, true
	case crypto.SHA512:
		return tpm2.TPMAlgSHA512, true
	}
	return 0, false
}

func hashScheme(scheme, hash tpm2.TPMAlgID) tpm2.TPMTSigScheme {
	return tpm2.TPMTSigScheme{Scheme: scheme, Details: tpm2.NewTPMUSigScheme(scheme, &tpm2.TPMSSchemeHash{HashAlg: hash})}
}

// signatureBytes converts a signature into the form that package crypto uses.
func signatureBytes(s tpm2.TPMTSignature) ([]byte, error) {
	switch s.SigAlg {
	case tpm2.TPMAlgECDSA:
		e, err := s.Signature.ECDSA()
		if err != nil {
			return nil, err
		}
		return asn1.Marshal(struct{ R, S *big.Int }{
			new(big.Int).SetBytes(e.SignatureR.Buffer),
			new(big.Int).SetBytes(e.SignatureS.Buffer),
		})
	case tpm2.TPMAlgRSASSA:
		e, err := s.Signature.RSASSA()
		if err != nil {
			return nil, err
		}
		return e.Sig.Buffer, nil
	case tpm2.TPMAlgRSAPSS:
		e, err := s.Signature.RSAPSS()
		if err != nil {
			return nil, err
		}
		return e.Sig.Buffer, nil
	}
	return nil, errors.New("a signature of an unknown kind")
}
