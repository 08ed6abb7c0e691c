package rottest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256" // for crypto.Hash.New
	_ "crypto/sha512"
	"errors"
	"fmt"
	"testing"

	"birthmark/pkg/rot"
)

// keysSign asks for every signature that crypto/tls and crypto/x509 ask of a key.
func keysSign(t *testing.T, open, _ func(*testing.T) rot.Root) {
	r := open(t)
	defer shut(t, r)
	for _, a := range Algorithms {
		k := create(t, r, a)
		for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			options := []crypto.SignerOpts{hash}
			if a == rot.RSA2048 {
				for _, salt := range []int{rsa.PSSSaltLengthEqualsHash, rsa.PSSSaltLengthAuto, hash.Size()} {
					options = append(options, &rsa.PSSOptions{SaltLength: salt, Hash: hash})
				}
			}
			for _, o := range options {
				if err := Verify(k, "message", o); err != nil {
					t.Errorf("%s with %v, %T: %v", a, hash, o, err)
				}
			}
		}
		shut(t, k)
	}
}

// Verify lets a key sign a message and returns an error if it refuses, or if its
// own public key does not verify what it signed.
func Verify(k crypto.Signer, message string, opts crypto.SignerOpts) error {
	h := opts.HashFunc().New()
	h.Write([]byte(message))
	digest := h.Sum(nil)
	signature, err := k.Sign(rand.Reader, digest, opts)
	if err != nil {
		return err
	}
	switch key := k.Public().(type) {
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(key, digest, signature) {
			return errors.New("the ECDSA signature does not verify")
		}
		return nil
	case *rsa.PublicKey:
		if pss, ok := opts.(*rsa.PSSOptions); ok {
			return rsa.VerifyPSS(key, pss.Hash, digest, signature, pss)
		}
		return rsa.VerifyPKCS1v15(key, opts.HashFunc(), digest, signature)
	default:
		return fmt.Errorf("a public key of type %T", key)
	}
}

func wantSigns(t *testing.T, k rot.Key) {
	t.Helper()
	if err := Verify(k, "message", crypto.SHA256); err != nil {
		t.Error(err)
	}
}
