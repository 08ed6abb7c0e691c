package tpm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
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
		public := unmarshal[tpm2.TPMTPublic](t, e.Public)
		if key, err := tpm2.Pub(*public); err != nil || !same(key, k.Public()) {
			t.Errorf("%s: the public area is another key's", name)
		}
		ak := unmarshal[tpm2.TPMTPublic](t, e.AK)
		if a := ak.ObjectAttributes; !a.Restricted || !a.FixedTPM || !a.SignEncrypt || a.Decrypt {
			t.Errorf("%s: the AK has attributes %+v", name, a)
		}
		wantAttested(t, e, public, nonce[:])
	}
	if !bytes.Equal(aks[0], aks[1]) {
		t.Error("two AKs")
	}
}

// wantAttested does what a registration authority does with evidence.
func wantAttested(t *testing.T, e rot.Evidence, public *tpm2.TPMTPublic, nonce []byte) {
	t.Helper()
	ak, err := tpm2.Pub(*unmarshal[tpm2.TPMTPublic](t, e.AK))
	if err != nil {
		t.Fatal(err)
	}
	s, err := unmarshal[tpm2.TPMTSignature](t, e.Signature).Signature.ECDSA()
	if err != nil {
		t.Fatal(err)
	}
	digest, integer := sha256.Sum256(e.Attest), func(b []byte) *big.Int { return new(big.Int).SetBytes(b) }
	if !ecdsa.Verify(ak.(*ecdsa.PublicKey), digest[:], integer(s.SignatureR.Buffer), integer(s.SignatureS.Buffer)) {
		t.Error("the AK's signature does not verify")
	}
	attest := unmarshal[tpm2.TPMSAttest](t, e.Attest)
	certified, err := attest.Attested.Certify()
	if err != nil {
		t.Fatal(err)
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		t.Fatal(err)
	}
	if attest.Magic != tpm2.TPMGeneratedValue || !bytes.Equal(attest.ExtraData.Buffer, nonce) || !bytes.Equal(certified.Name.Buffer, name.Buffer) {
		t.Errorf("got a statement with magic %#x, nonce %x, about %x", attest.Magic, attest.ExtraData.Buffer, certified.Name.Buffer)
	}
}

func unmarshal[T tpm2.Marshallable, P interface {
	*T
	tpm2.Unmarshallable
}](t *testing.T, b []byte) *T {
	t.Helper()
	v, err := tpm2.Unmarshal[T, P](b)
	if err != nil {
		t.Fatal(err)
	}
	return v
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
