package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha256" // for crypto.Hash
	_ "crypto/sha512"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
)

const (
	rsaLeast = 2048 // bits
	rsaMost  = 8192 // bits; what crypto/tls takes, since every bit costs time
)

// An algorithm is a hash, and the identifiers of that hash alone and with what signs.
type algorithm struct {
	hash               crypto.Hash
	digest, rsa, ecdsa []byte // contents of OBJECT IDENTIFIERs
}

var algorithms = []algorithm{
	{crypto.SHA256, sha2(1), pkcs1(11), ecdsaWithSHA2(2)},
	{crypto.SHA384, sha2(2), pkcs1(12), ecdsaWithSHA2(3)},
	{crypto.SHA512, sha2(3), pkcs1(13), ecdsaWithSHA2(4)},
}

var (
	idRSA  = pkcs1(1)  // rsaEncryption: PKCS #1 v1.5, by the digest algorithm
	idMGF1 = pkcs1(8)  // id-mgf1
	idPSS  = pkcs1(10) // id-RSASSA-PSS
)

// 2.16.840.1.101.3.4.2.n (RFC 5754, 2), 1.2.840.113549.1.1.n (RFC 8017, A.2) and
// 1.2.840.10045.4.3.n (RFC 5754, 3.3).
func sha2(n byte) []byte          { return []byte{0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, n} }
func pkcs1(n byte) []byte         { return []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, n} }
func ecdsaWithSHA2(n byte) []byte { return []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, n} }

// digestAlgorithm reads the contents of an AlgorithmIdentifier of a hash.
func digestAlgorithm(identifier []byte) (crypto.Hash, error) {
	var r reader
	id := r.open(&identifier, tagOID, "digest algorithm")
	if r.err != nil {
		return 0, r.err
	}
	if !absentOrNull(identifier) {
		return 0, errors.New("the digest algorithm has parameters")
	}
	for _, a := range algorithms {
		if bytes.Equal(id, a.digest) {
			return a.hash, nil
		}
	}
	return 0, errors.New("the digest algorithm is not SHA-256, SHA-384 or SHA-512")
}

// absentOrNull reports whether an algorithm has no parameters, in either way to say so
// (RFC 5754, 2 and 3.2).
func absentOrNull(parameters []byte) bool {
	return len(parameters) == 0 || bytes.Equal(parameters, []byte{tagNull, 0})
}

// checkKey refuses keys that are too weak, and those that would take long.
func checkKey(public crypto.PublicKey) error {
	switch key := public.(type) {
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n < rsaLeast || n > rsaMost {
			return fmt.Errorf("an RSA key of %d bits, want %d to %d", n, rsaLeast, rsaMost)
		}
		return nil
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
		return fmt.Errorf("a key on the curve %s", key.Params().Name)
	}
	return fmt.Errorf("a key that is neither RSA nor ECDSA (%T)", public)
}

// verify verifies the signature over the attributes by a key, which [checkKey] let
// through. The algorithm has to be of that key, and of the hash of the content: one
// hash in a message is enough.
func (s *signerInfo) verify(public crypto.PublicKey) error {
	with := algorithms[slices.IndexFunc(algorithms, func(a algorithm) bool { return a.hash == s.hash })]
	h := s.hash.New()
	h.Write(s.attributes)
	sum := h.Sum(nil)

	switch key := public.(type) {
	case *rsa.PublicKey:
		switch {
		case bytes.Equal(s.algorithm, idPSS):
			salt, err := pssSalt(s.parameters, with, key.Size())
			if err != nil {
				return refuse("algorithm", "RSASSA-PSS: %w", err)
			}
			err = rsa.VerifyPSS(key, s.hash, sum, s.signature, &rsa.PSSOptions{SaltLength: salt, Hash: s.hash})
			if err != nil {
				return refuse("signature", "the signature is wrong: %w", err)
			}
			return nil
		case (bytes.Equal(s.algorithm, idRSA) || bytes.Equal(s.algorithm, with.rsa)) && absentOrNull(s.parameters):
			if err := rsa.VerifyPKCS1v15(key, s.hash, sum, s.signature); err != nil {
				return refuse("signature", "the signature is wrong: %w", err)
			}
			return nil
		}
	case *ecdsa.PublicKey:
		if bytes.Equal(s.algorithm, with.ecdsa) && len(s.parameters) == 0 {
			if !ecdsa.VerifyASN1(key, sum, s.signature) {
				return refuse("signature", "the signature is wrong")
			}
			return nil
		}
	}
	return refuse("algorithm", "the signature algorithm does not go with the key and %v", s.hash)
}

// pssSalt reads the parameters of RSASSA-PSS (RFC 4055, 3.1) and returns how long the
// salt is. Everything else in them follows from the hash; SHA-1 is their default, and
// so are 20 octets of salt:
//
//	SEQUENCE {
//	  hashAlgorithm     [0] EXPLICIT SEQUENCE,    the hash
//	  maskGenAlgorithm  [1] EXPLICIT SEQUENCE,    MGF1 with the hash
//	  saltLength        [2] EXPLICIT INTEGER }
//	  trailerField      [3]                       1, so it must not be there (X.690, 11.5)
func pssSalt(parameters []byte, with algorithm, keySize int) (int, error) {
	var r reader
	pss := r.open(&parameters, tagSequence, "parameters")
	r.end(parameters, "algorithm")
	hash := r.open(&pss, tagContext0, "hashAlgorithm")
	generator := r.open(&pss, tagContext1, "maskGenAlgorithm")
	length := r.open(&pss, tagContext0+2, "saltLength")
	r.end(pss, "parameters")

	id := r.open(&hash, tagSequence, "hashAlgorithm")
	r.end(hash, "hashAlgorithm")
	mgf := r.open(&generator, tagSequence, "maskGenAlgorithm")
	r.end(generator, "maskGenAlgorithm")
	r.oid(&mgf, idMGF1, "maskGenAlgorithm")
	inner := r.open(&mgf, tagSequence, "hash of MGF1")
	r.end(mgf, "maskGenAlgorithm")
	octets := r.open(&length, tagInteger, "saltLength")
	r.end(length, "saltLength")
	if r.err != nil {
		return 0, r.err
	}
	for _, identifier := range [][]byte{id, inner} {
		if h, err := digestAlgorithm(identifier); err != nil {
			return 0, err
		} else if h != with.hash {
			return 0, errors.New("its hashes are not that of the content")
		}
	}
	// At most two octets, the first of which may be a zero before a sign bit.
	if len(octets) == 0 || len(octets) > 2 || octets[0]&0x80 != 0 {
		return 0, errors.New("its salt has a length that none can have")
	}
	salt := 0
	for _, o := range octets {
		salt = salt<<8 | int(o)
	}
	// As long as the digest, which is the advice (RFC 8017, 9.1), or longer; what a
	// key has room for at most (9.1.1) is OpenSSL's default.
	if least, most := with.hash.Size(), keySize-with.hash.Size()-2; salt < least || salt > most {
		return 0, fmt.Errorf("a salt of %d octets, want %d to %d", salt, least, most)
	}
	return salt, nil
}

// signedWithSHA2 reports whether a certificate or a CRL is signed by an algorithm that
// a message may be signed by.
func signedWithSHA2(a x509.SignatureAlgorithm) bool {
	switch a {
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
		x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512:
		return true
	}
	return false
}
