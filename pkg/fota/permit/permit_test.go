package permit

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"time"

	"birthmark/pkg/clock"
	"birthmark/pkg/cms"
	"birthmark/pkg/fota"
	bt "birthmark/pkg/fota/bundle/bundletest"
)

const line = `{"permit":"downgrade","compatible":"acme-gw","device":"*","version":"1.0.0+sv2","until":"2099-12-31T00:00:00Z"}` + "\n"

var until = time.Date(2099, 12, 31, 0, 0, 0, 0, time.UTC)

func version(t testing.TB, s string) fota.Version {
	t.Helper()
	v, err := fota.ParseVersion(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// owner is one with a CA, and those who trust it.
func owner(t testing.TB) (*bt.PKI, *cms.Trust) {
	t.Helper()
	pki := bt.NewPKI(t, "P-256", "P-256")
	now := clock.Host()
	trust := &cms.Trust{Anchors: []*x509.Certificate{pki.Root.Cert}, Issuers: []*x509.Certificate{pki.Issuing.Cert}, Now: now.Now(), Build: now.Verify}
	for _, ca := range []*bt.Signer{pki.Root, pki.Issuing} {
		crl, err := cms.ReadCRL(bt.CRL(t, ca, nil))
		if err != nil {
			t.Fatal(err)
		}
		trust.CRLs = append(trust.CRLs, crl)
	}
	return pki, trust
}

func armored(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func TestAPermitSaysWhatTheOwnerSigned(t *testing.T) {
	pki, trust := owner(t)
	p := New("acme-gw", Any, version(t, "1.0.0+sv2"), until)
	text, err := p.Text()
	if err != nil || string(text) != line {
		t.Errorf("got %s, %v, want %s", text, err, line)
	}
	for what, content := range map[string][]byte{"a line": text, "without its end": bytes.TrimSpace(text)} {
		got, chain, err := Open(armored("CMS", bt.Message{Content: content, By: pki.Signer}.Sign(t)), trust)
		if err != nil || got != p {
			t.Errorf("%s: got %+v, %v, want %+v", what, got, err, p)
		}
		if len(chain) != 3 || !chain[0].Equal(pki.Signer.Cert) || !chain[1].Equal(pki.Issuing.Cert) || !chain[2].Equal(pki.Root.Cert) {
			t.Errorf("%s: the chain has %d certificates, want the signer's, its CA's and the anchor", what, len(chain))
		}
	}
}

func TestWhatIsNoPermit(t *testing.T) {
	pki, trust := owner(t)
	stranger := bt.NewPKI(t, "P-384", "P-384")
	sign := func(text string) []byte {
		return armored("CMS", bt.Message{Content: []byte(text), By: pki.Signer}.Sign(t))
	}
	change := func(old, new string) []byte { return sign(strings.Replace(line, old, new, 1)) }
	good := bt.Message{Content: []byte(line), By: pki.Signer}
	for _, c := range []struct {
		what   string
		signed []byte
		stage  fota.Stage
		code   string
	}{
		{"nothing", nil, fota.StagePolicy, "permit"},
		{"DER", good.Sign(t), fota.StagePolicy, "permit"},
		{"another type of PEM", armored("PKCS7", good.Sign(t)), fota.StagePolicy, "permit"},
		{"two messages", bytes.Repeat(sign(line), 2), fota.StagePolicy, "permit"},
		{"something before it", append([]byte("x\n"), sign(line)...), fota.StagePolicy, "permit"},
		{"too much", append(sign(line), bytes.Repeat([]byte("\n"), Limit)...), fota.StagePolicy, "permit"},
		{"a detached signature", armored("CMS", bt.Message{Content: []byte(line), By: pki.Signer, Detached: true}.Sign(t)), fota.StagePolicy, "permit"},
		{"another content than was signed", armored("CMS", bt.Message{Content: []byte(line), Shown: []byte(strings.Replace(line, "acme-gw", "acme-tv", 1)), By: pki.Signer}.Sign(t)), fota.StageCMS, "digest"},
		{"a stranger's", armored("CMS", bt.Message{Content: []byte(line), By: stranger.Signer}.Sign(t)), fota.StageChain, "issuer"},
		{"text", sign("take it\n"), fota.StagePolicy, "permit"},
		{"another kind", change(`"downgrade"`, `"upgrade"`), fota.StagePolicy, "permit"},
		{"no kind", change(`"permit":"downgrade",`, ``), fota.StagePolicy, "permit"},
		{"for nobody", change(`"acme-gw"`, `""`), fota.StagePolicy, "permit"},
		{"a device with another name", change(`"*"`, `"gw-17"`), fota.StagePolicy, "permit"},
		{"a device in capitals", change(`"*"`, `"`+strings.Repeat("AB", 32)+`"`), fota.StagePolicy, "permit"},
		{"no release", change(`"1.0.0+sv2"`, `""`), fota.StagePolicy, "permit"},
		{"another spelling of one", change(`1.0.0+sv2`, `1.0+sv2`), fota.StagePolicy, "permit"},
		{"another zone", change(`00:00:00Z`, `00:00:00+01:00`), fota.StagePolicy, "permit"},
		{"parts of a second", change(`00:00:00Z`, `00:00:00.5Z`), fota.StagePolicy, "permit"},
		{"a member more", change(`{`, `{"x":1,`), fota.StagePolicy, "permit"},
		{"a member twice", change(`{`, `{"device":"*",`), fota.StagePolicy, "permit"},
		{"a member in capitals", change(`"device"`, `"Device"`), fota.StagePolicy, "permit"},
		{"another order", change(`"permit":"downgrade","compatible":"acme-gw"`, `"compatible":"acme-gw","permit":"downgrade"`), fota.StagePolicy, "permit"},
		{"a space", change(`,`, `, `), fota.StagePolicy, "permit"},
	} {
		_, _, err := Open(c.signed, trust)
		var r *fota.Refusal
		if !errors.As(err, &r) || r.Stage != c.stage || r.Code != c.code {
			t.Errorf("%s: got %v, want a refusal at %s, %s", c.what, err, c.stage, c.code)
		}
	}
}

func TestForWhomAndUntilWhen(t *testing.T) {
	mine, other := strings.Repeat("ab", 32), strings.Repeat("cd", 32)
	for _, c := range []struct {
		what               string
		compatible, device string // of the permit
		left               time.Duration
		ok                 bool
	}{
		{"any device of the kind", "acme-gw", Any, time.Hour, true},
		{"this device", "acme-gw", mine, time.Hour, true},
		{"its last second", "acme-gw", Any, time.Second, true},
		{"another kind", "acme-tv", Any, time.Hour, false},
		{"another device", "acme-gw", other, time.Hour, false},
		{"no time any more", "acme-gw", Any, 0, false},
	} {
		now := until.Add(-c.left)
		err := New(c.compatible, c.device, version(t, "1.0.0+sv2"), until).Check("acme-gw", mine, now)
		if (err == nil) != c.ok {
			t.Errorf("%s: got %v, want it to be taken: %t", c.what, err, c.ok)
		}
	}
	if err := New("acme-gw", mine, version(t, "1.0.0+sv2"), until).Check("acme-gw", "", until.Add(-time.Hour)); err == nil {
		t.Error("a device without a name took a permit for one that has one")
	}
}

func FuzzPermit(f *testing.F) {
	f.Add([]byte(line))
	f.Add([]byte(strings.Replace(line, "acme-gw", "<acmé>", 1)))
	f.Add([]byte(`{"permit":"downgrade"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := parse(text)
		if err != nil {
			return
		}
		again, err := p.Text()
		if err != nil || !bytes.Equal(bytes.TrimSpace(again), bytes.TrimSuffix(text, []byte("\n"))) {
			t.Errorf("%q was read, and is written as %q, %v", text, again, err)
		}
	})
}
