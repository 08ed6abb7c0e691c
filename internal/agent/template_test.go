package agent_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509/pkix"
	"encoding/asn1"
	"strings"
	"testing"

	"birthmark/internal/agent/agenttest"
	"birthmark/internal/config"
	"birthmark/internal/lab"
	"birthmark/internal/lab/est"
)

// ownersTemplate lets the owner's CA say what a request is to look like
// (RFC 9908, 3.4): a name with a hole for the device's id, a kind of key, a proof.
func ownersTemplate(t *testing.T) {
	curve, err := asn1.Marshal(asn1.ObjectIdentifier{1, 3, 132, 0, 34}) // P-384
	if err != nil {
		t.Fatal(err)
	}
	wish, err := est.Template{
		Subject:    []est.TemplateName{{Type: asn1.ObjectIdentifier{2, 5, 4, 10}, Value: "Acme"}, {Type: asn1.ObjectIdentifier{2, 5, 4, 3}}},
		Key:        &pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}, Parameters: asn1.RawValue{FullBytes: curve}},
		Extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 37}}},
		Challenge:  true,
	}.CSRAttrs()
	if err != nil {
		t.Fatal(err)
	}
	bench := agenttest.StartLab(t, func(o *lab.Options) {
		o.EST = func(whose string, conf *est.Config) {
			if whose == lab.Owner {
				conf.CSRAttrs = wish
			}
		}
	})
	p := newPatient(t, bench, "dev-filled")
	p.start()
	p.awaitService()
	p.stop()
	d := agenttest.CheckState(t, p.cfg.Device.State, p.tpm.Address())
	chain, err := config.ParseCertificates([]byte(d.Owner.Chain))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := chain[0].Subject.String(), "CN=dev-filled,O=Acme"; got != want {
		t.Errorf("the certificate is for %s, want %s", got, want)
	}
	if key, ok := chain[0].PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P384() {
		t.Errorf("the key is %T, want one on P-384", chain[0].PublicKey)
	}
}

// TestWishesThatCannotBeReadAreAFaultOfTheAnswer: the CA's operator has to mend them,
// so the device says so, and asks again slowly.
func TestWishesThatCannotBeReadAreAFaultOfTheAnswer(t *testing.T) {
	bench := agenttest.StartLab(t, func(o *lab.Options) {
		o.EST = func(_ string, conf *est.Config) { conf.CSRAttrs = []byte{0x30, 0x03, 0x02, 0x01, 0x00} }
	})
	p := newPatient(t, bench, "dev-puzzled")
	p.start()
	e := p.log.await(t, "step failed, will be tried again")
	if said, want := e["err"].(string), "the answer cannot be used: cannot read CSR attributes"; !strings.HasPrefix(said, want) {
		t.Errorf("it said %q, want %q", said, want)
	}
	p.stop()
}
