package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"birthmark/pkg/rot"
	"birthmark/pkg/rot/soft"
	"birthmark/pkg/rot/tpm"
)

func TestEvidenceIsAboutTheKeyAndByTheAK(t *testing.T) {
	r := open(t, tpm.Config{Address: tpm.Start(t).Address()})
	nonce := sha256.Sum256([]byte("purpose"))
	var aks [][]byte
	for name, k := range map[string]rot.Key{"LDevID": create(t, r, rot.P256), "IDevID": idevid(t, r)} {
		e, err := r.Certify(t.Context(), k, nonce[:])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		aks = append(aks, e.AK)
		if err := attested(e, k.Public(), nonce[:]); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !bytes.Equal(aks[0], aks[1]) {
		t.Error("two AKs")
	}
}

// attested does what a registration authority does with evidence about a key.
func attested(e rot.Evidence, key crypto.PublicKey, nonce []byte) error {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](e.Public)
	if err != nil {
		return err
	}
	if got, err := tpm2.Pub(*public); err != nil || !same(got, key) {
		return fmt.Errorf("the public area is another key's (%w)", err)
	}
	akPublic, err := tpm2.Unmarshal[tpm2.TPMTPublic](e.AK)
	if err != nil {
		return err
	}
	if a := akPublic.ObjectAttributes; !a.Restricted || !a.FixedTPM || !a.SignEncrypt || a.Decrypt {
		return fmt.Errorf("the AK has attributes %+v", a)
	}
	ak, err := tpm2.Pub(*akPublic)
	if err != nil {
		return err
	}
	signature, err := tpm2.Unmarshal[tpm2.TPMTSignature](e.Signature)
	if err != nil {
		return err
	}
	rs, err := signature.Signature.ECDSA()
	if err != nil {
		return err
	}
	digest, integer := sha256.Sum256(e.Attest), func(b []byte) *big.Int { return new(big.Int).SetBytes(b) }
	if !ecdsa.Verify(ak.(*ecdsa.PublicKey), digest[:], integer(rs.SignatureR.Buffer), integer(rs.SignatureS.Buffer)) {
		return errors.New("the AK's signature does not verify")
	}
	attest, err := tpm2.Unmarshal[tpm2.TPMSAttest](e.Attest)
	if err != nil {
		return err
	}
	certified, err := attest.Attested.Certify()
	if err != nil {
		return err
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return err
	}
	if attest.Magic != tpm2.TPMGeneratedValue || !bytes.Equal(attest.ExtraData.Buffer, nonce) || !bytes.Equal(certified.Name.Buffer, name.Buffer) {
		return fmt.Errorf("a statement with magic %#x, nonce %x, about %x", attest.Magic, attest.ExtraData.Buffer, certified.Name.Buffer)
	}
	return nil
}

func TestRefusesToCertify(t *testing.T) {
	r := open(t, tpm.Config{Address: tpm.Start(t).Address()})
	k, err := soft.New().IDevID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Certify(t.Context(), k, nil); !errors.Is(err, rot.ErrNotOurs) {
		t.Errorf("a software key: got %v, want rot.ErrNotOurs", err)
	}
	if _, err := r.Certify(t.Context(), idevid(t, r), make([]byte, 33)); err == nil {
		t.Error("took 33 bytes of qualifying data")
	}
}
