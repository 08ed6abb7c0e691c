package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

const (
	rsaBitsMin = 2048
	rsaBitsMax = 4096
)

// readPublic reads the public area of a key. Its Name is computed here: the
// answer is not authenticated, but it has to be about one key.
func (r *Root) readPublic(h tpm2.TPMHandle) (*tpm2.TPMTPublic, tpm2.TPM2BName, error) {
	answer, err := execute(r, tpm2.ReadPublic{ObjectHandle: h})
	if err != nil {
		return nil, tpm2.TPM2BName{}, err
	}
	public, err := answer.OutPublic.Contents()
	if err != nil {
		return nil, tpm2.TPM2BName{}, broken(err)
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return nil, tpm2.TPM2BName{}, broken(err)
	}
	if !bytes.Equal(name.Buffer, answer.Name.Buffer) {
		return nil, tpm2.TPM2BName{}, broken(errors.New("a public area that does not have its Name"))
	}
	return public, *name, nil
}

// confirm asks again for what readPublic said, in the session: the TPM computes
// its part of the HMAC with the Name of what it really has there.
func (r *Root) confirm(h tpm2.NamedHandle) error {
	_, err := execute(r, tpm2.ReadPublic{ObjectHandle: h}, r.session.authorize("", out))
	return err
}

// isAbsent tells whether there is nothing at the handle of a readPublic.
func isAbsent(err error) bool { return errors.Is(err, tpm2.TPMRCHandle) }

// isTransient tells whether a handle goes away with FlushContext.
func isTransient(h tpm2.TPMHandle) bool { return h>>24 == 0x80 }

// publicKey converts a public area. Package crypto may panic on points beside
// their curve, so these are refused here.
func publicKey(public *tpm2.TPMTPublic) (crypto.PublicKey, error) {
	key, err := tpm2.Pub(*public)
	if err != nil {
		return nil, err
	}
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		if _, err := key.ECDH(); err != nil {
			return nil, err
		}
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n < rsaBitsMin || n > rsaBitsMax || key.N.Bit(0) == 0 {
			return nil, fmt.Errorf("an RSA modulus of %d bits", n)
		}
	default:
		return nil, fmt.Errorf("a key of type %T", key)
	}
	return key, nil
}

// attributes names the set bits of a TPMA_OBJECT (TPM 2.0 Part 2, 8.3) that say
// something about a signing key's safety.
func attributes(a tpm2.TPMAObject) []string {
	var names []string
	for _, bit := range []struct {
		set  bool
		name string
	}{
		{a.FixedTPM, "fixedTPM"},
		{a.FixedParent, "fixedParent"},
		{a.SensitiveDataOrigin, "sensitiveDataOrigin"},
		{a.UserWithAuth, "userWithAuth"},
		{a.AdminWithPolicy, "adminWithPolicy"},
		{a.NoDA, "noDA"},
		{a.Restricted, "restricted"},
		{a.Decrypt, "decrypt"},
		{a.SignEncrypt, "sign"},
	} {
		if bit.set {
			names = append(names, bit.name)
		}
	}
	return names
}

// isSigner tells whether a public area is that of a key that was made in a TPM,
// stays there and signs what it is given.
func isSigner(public *tpm2.TPMTPublic) bool {
	a := public.ObjectAttributes
	return a.FixedTPM && a.FixedParent && a.SensitiveDataOrigin && a.SignEncrypt && !a.Restricted && !a.Decrypt
}
