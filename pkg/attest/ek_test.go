package attest_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"birthmark/internal/swtpm"
	"birthmark/pkg/attest"
)

var (
	oidEKU = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}
	now    = time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC)
)

// A maker is a chip maker: a root, an authority under it, and another root that is
// somebody else's.
type maker struct {
	root, issuing, stranger *x509.Certificate
	issuingKey              *ecdsa.PrivateKey
}

func newMaker(tb testing.TB) *maker {
	tb.Helper()
	m := &maker{}
	rootKey, strangerKey := newKey(tb), newKey(tb)
	m.issuingKey = newKey(tb)
	m.root = parse(tb, sign(tb, authority("root"), nil, rootKey.Public(), rootKey))
	m.stranger = parse(tb, sign(tb, authority("root"), nil, strangerKey.Public(), strangerKey))
	m.issuing = parse(tb, sign(tb, authority("issuing"), m.root, m.issuingKey.Public(), rootKey))
	return m
}

func authority(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
}

// template is that of a good EK certificate.
func template(tb testing.TB) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(2),
		NotBefore:    now.AddDate(0, -1, 0), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageKeyAgreement,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{oidEKU},
		ExtraExtensions:    []pkix.Extension{san(tb, word(1, "id:494E5443"), word(2, "TPM"), word(3, "id:00010002"))},
	}
}

type attribute struct {
	Type  asn1.ObjectIdentifier
	Value string `asn1:"utf8"`
}

// word is one of the three about a TPM: 1 manufacturer, 2 model, 3 version.
func word(n int, text string) attribute {
	return attribute{asn1.ObjectIdentifier{2, 23, 133, 2, n}, text}
}

// san is a critical subject alternative name with one directory name, a set for
// each word.
func san(tb testing.TB, words ...attribute) pkix.Extension {
	tb.Helper()
	var sets [][]attribute
	for _, w := range words {
		sets = append(sets, []attribute{w})
	}
	return sanOf(tb, sets)
}

func sanOf(tb testing.TB, sets [][]attribute) pkix.Extension {
	tb.Helper()
	type attributeSET []attribute
	var rdns []attributeSET
	for _, s := range sets {
		rdns = append(rdns, s)
	}
	name := marshal(tb, rdns)
	return pkix.Extension{Id: oidSAN, Critical: true, Value: marshal(tb, []asn1.RawValue{{Class: 2, Tag: 4, IsCompound: true, Bytes: name}})}
}

func marshal(tb testing.TB, v any) []byte {
	tb.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// sign signs a certificate; a nil parent means itself.
func sign(tb testing.TB, template, parent *x509.Certificate, key crypto.PublicKey, by crypto.Signer) []byte {
	tb.Helper()
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, by)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

func parse(tb testing.TB, der []byte) *x509.Certificate {
	tb.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// issue signs an EK certificate as the maker would.
func (m *maker) issue(tb testing.TB, template *x509.Certificate, key crypto.PublicKey) []byte {
	tb.Helper()
	return sign(tb, template, m.issuing, key, m.issuingKey)
}

func TestAcceptsGoodCertificates(t *testing.T) {
	m := newMaker(t)
	key := newKey(t).Public()
	plain := m.issue(t, template(t), key)
	changed := func(change func(*x509.Certificate)) []byte {
		c := template(t)
		change(c)
		return m.issue(t, c, key)
	}
	for name, der := range map[string][]byte{
		"plain":                 plain,
		"padded with zeros":     append(slices.Clone(plain), make([]byte, 500)...),
		"padded with ones":      append(slices.Clone(plain), bytes.Repeat([]byte{0xff}, 500)...),
		"SAN not critical":      changed(func(c *x509.Certificate) { c.ExtraExtensions[0].Critical = false }),
		"with other key usages": changed(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }),
		"all words in one set": changed(func(c *x509.Certificate) {
			c.ExtraExtensions[0] = sanOf(t, [][]attribute{{word(1, "id:494E5443"), word(2, "TPM"), word(3, "id:00010002")}})
		}),
		"words of others beside": changed(func(c *x509.Certificate) {
			c.ExtraExtensions[0] = san(t, word(1, "id:494E5443"), word(2, "TPM"), word(3, "id:00010002"), word(99, "x"))
		}),
	} {
		ek, err := attest.VerifyEK(der, []*x509.Certificate{m.issuing}, []*x509.Certificate{m.stranger, m.root}, now)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if ek.Manufacturer != "id:494E5443" || ek.Vendor != "INTC" || ek.Model != "TPM" || ek.Version != "id:00010002" {
			t.Errorf("%s: got manufacturer %q (%q), model %q, version %q", name, ek.Manufacturer, ek.Vendor, ek.Model, ek.Version)
		}
		if !ek.Key.(*ecdsa.PublicKey).Equal(key) || !bytes.HasPrefix(der, ek.Certificate) || len(ek.Chain) != 2 {
			t.Errorf("%s: got another key or certificate, or a chain of %d", name, len(ek.Chain))
		}
	}
}

func TestRefusesBadCertificates(t *testing.T) {
	m := newMaker(t)
	key := newKey(t).Public()
	good := m.issue(t, template(t), key)
	changed := func(change func(*x509.Certificate)) []byte {
		c := template(t)
		change(c)
		return m.issue(t, c, key)
	}
	withSAN := func(e pkix.Extension) []byte {
		return changed(func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{e} })
	}
	ca := func(c *x509.Certificate) { c.IsCA = true }
	tiny, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forged := slices.Clone(good)
	forged[len(forged)-1] ^= 1
	selfSigned := newKey(t)

	for name, tt := range map[string]struct {
		der  []byte
		want string
	}{
		"nothing":           {nil, ""},
		"only padding":      {make([]byte, 1000), ""},
		"cut short":         {good[:len(good)-1], ""},
		"too long":          {append(slices.Clone(good), make([]byte, 8<<10)...), "at most 8192"},
		"two in one":        {append(slices.Clone(good), good...), "something else follows"},
		"not strict DER":    {loosen(t, good), ""},
		"another signature": {forged, "authority"},
		"signed by itself":  {sign(t, template(t), nil, selfSigned.Public(), selfSigned), "authority"},
		"no key usage":      {changed(func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }), "extended key usage"},
		"another key usage": {changed(func(c *x509.Certificate) { c.UnknownExtKeyUsage[0] = asn1.ObjectIdentifier{2, 23, 133, 8, 3} }), "extended key usage"},
		"any key usage": {changed(func(c *x509.Certificate) {
			c.UnknownExtKeyUsage, c.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
		}), "extended key usage"},
		"an authority's":   {changed(ca), "certificate authority"},
		"one that signs":   {changed(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }), "certificate authority"},
		"not yet valid":    {changed(func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) }), "not yet valid"},
		"expired":          {changed(func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Hour) }), "expired"},
		"on a small curve": {m.issue(t, template(t), tiny.Public()), "224 bits"},
		"something critical": {changed(func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}})
		}), "unhandled critical"},
		"no SAN":                   {changed(func(c *x509.Certificate) { c.ExtraExtensions = nil }), "no subject alternative name"},
		"SAN of a server":          {changed(func(c *x509.Certificate) { c.ExtraExtensions, c.DNSNames = nil, []string{"example.com"} }), "does not name"},
		"no manufacturer":          {withSAN(san(t, word(2, "TPM"), word(3, "id:1"))), "does not name"},
		"no model":                 {withSAN(san(t, word(1, "id:494E5443"), word(3, "id:1"))), "does not name"},
		"no version":               {withSAN(san(t, word(1, "id:494E5443"), word(2, "TPM"))), "does not name"},
		"two manufacturers":        {withSAN(san(t, word(1, "id:494E5443"), word(1, "id:414D4400"), word(2, "TPM"), word(3, "id:1"))), "twice"},
		"an empty model":           {withSAN(san(t, word(1, "id:494E5443"), word(2, ""), word(3, "id:1"))), "no word"},
		"a model that beeps":       {withSAN(san(t, word(1, "id:494E5443"), word(2, "\a"), word(3, "id:1"))), "no word"},
		"a model without end":      {withSAN(san(t, word(1, "id:494E5443"), word(2, strings.Repeat("x", 65)), word(3, "id:1"))), "no word"},
		"SAN with something after": {withSAN(pkix.Extension{Id: oidSAN, Critical: true, Value: append(san(t).Value, 5, 0)}), "malformed"},
	} {
		_, err := attest.VerifyEK(tt.der, []*x509.Certificate{m.issuing}, []*x509.Certificate{m.root}, now)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want it to say %q", name, err, tt.want)
		}
	}

	for name, tt := range map[string]struct {
		extra, roots []*x509.Certificate
		at           time.Time
		want         string
	}{
		"another root":                  {[]*x509.Certificate{m.issuing}, []*x509.Certificate{m.stranger}, now, "authority"},
		"no root":                       {[]*x509.Certificate{m.issuing, m.root}, nil, now, "no root certificate"},
		"no intermediate":               {nil, []*x509.Certificate{m.root}, now, "authority"},
		"the intermediate of a test":    {[]*x509.Certificate{m.stranger}, []*x509.Certificate{m.root}, now, "authority"},
		"intermediates without end":     {slices.Repeat([]*x509.Certificate{m.issuing}, 65), []*x509.Certificate{m.root}, now, "at most 64"},
		"after the intermediate's time": {[]*x509.Certificate{m.issuing}, []*x509.Certificate{m.root}, now.AddDate(11, 0, 0), "expired"},
		"no time":                       {[]*x509.Certificate{m.issuing}, []*x509.Certificate{m.root}, time.Time{}, "no time"},
	} {
		_, err := attest.VerifyEK(good, tt.extra, tt.roots, tt.at)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want it to say %q", name, err, tt.want)
		}
	}
}

// loosen writes a certificate's outer length with one byte more than it needs, which
// is BER and not DER.
func loosen(t *testing.T, der []byte) []byte {
	if der[0] != 0x30 || der[1] != 0x82 {
		t.Fatalf("a certificate that begins with %x", der[:4])
	}
	return append([]byte{0x30, 0x83, 0, der[2], der[3]}, der[4:]...)
}

// RSA keys of old TPMs are said to be for RSAES-OAEP only.
func TestAcceptsAnRSAKeyByItsOldName(t *testing.T) {
	m := newMaker(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der := rename(t, m, m.issue(t, template(t), key.Public()))
	ek, err := attest.VerifyEK(der, []*x509.Certificate{m.issuing}, []*x509.Certificate{m.root}, now)
	if err != nil || !key.PublicKey.Equal(ek.Key) {
		t.Errorf("got key %v, %v, want the RSA key", ek.Key, err)
	}
}

// rename turns rsaEncryption into id-RSAES-OAEP, which is as long, and signs again.
func rename(t *testing.T, m *maker, der []byte) []byte {
	t.Helper()
	var c struct {
		TBS       asn1.RawValue
		Algorithm asn1.RawValue
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &c); err != nil {
		t.Fatal(err)
	}
	encryption := marshal(t, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1})
	oaep := marshal(t, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7})
	c.TBS.FullBytes = bytes.Replace(c.TBS.FullBytes, encryption, oaep, 1)
	h := crypto.SHA256.New()
	h.Write(c.TBS.FullBytes)
	signature, err := m.issuingKey.Sign(rand.Reader, h.Sum(nil), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	c.Signature = asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}
	return marshal(t, c)
}

// Both certificates of a swtpm, as Debian's tools read them from NV, lead to the
// authority that swtpm made in its folder, and not to that of another one.
func TestAcceptsSwtpmsCertificates(t *testing.T) {
	one, other := manufacture(t), manufacture(t)
	roots, extra := readRoots(t, one)
	strangers, strangersExtra := readRoots(t, other)
	if len(roots) != 1 || len(extra) != 1 {
		t.Fatalf("got %d roots and %d others in swtpm's folder, want one of each", len(roots), len(extra))
	}
	tpm, err := swtpm.StartTCP(t.Context(), one)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tpm.Kill)
	for index, kind := range map[string]string{"0x01C00002": "*rsa.PublicKey", "0x01C00016": "*ecdsa.PublicKey"} {
		der, err := exec.CommandContext(t.Context(), "tpm2_nvread", "--tcti", tpm.TCTI(), index).Output()
		if err != nil {
			t.Fatal(err)
		}
		ek, err := attest.VerifyEK(der, extra, roots, time.Now())
		if err != nil {
			t.Fatalf("%s: %v", index, err)
		}
		if got := typeName(ek.Key); got != kind || ek.Model != "swtpm" || ek.Manufacturer == "" || ek.Version == "" {
			t.Errorf("%s: got a key of type %s, manufacturer %q, model %q, version %q", index, got, ek.Manufacturer, ek.Model, ek.Version)
		}
		if _, err := attest.VerifyEK(der, strangersExtra, strangers, time.Now()); err == nil {
			t.Errorf("%s: the certificate leads to the authority of another swtpm", index)
		}
	}
}

func typeName(key crypto.PublicKey) string {
	switch key.(type) {
	case *rsa.PublicKey:
		return "*rsa.PublicKey"
	case *ecdsa.PublicKey:
		return "*ecdsa.PublicKey"
	}
	return "another"
}

func manufacture(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := swtpm.Manufacture(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// readRoots reads the certificates, and not the keys, that swtpm left in ca/.
func readRoots(t *testing.T, dir string) (roots, extra []*x509.Certificate) {
	t.Helper()
	folder := fstest.MapFS{}
	for _, name := range []string{"cert.pem", "swtpm-localca-rootca-cert.pem"} {
		text, err := os.ReadFile(filepath.Join(dir, "ca", name))
		if err != nil {
			t.Fatal(err)
		}
		folder[name] = &fstest.MapFile{Data: text}
	}
	roots, extra, err := attest.ReadRoots(folder)
	if err != nil {
		t.Fatal(err)
	}
	return roots, extra
}

func TestReadsAFolderOfRoots(t *testing.T) {
	m := newMaker(t)
	inPEM := func(cs ...*x509.Certificate) (text []byte) {
		for _, c := range cs {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
		return text
	}
	roots, extra, err := attest.ReadRoots(fstest.MapFS{
		"both.pem":     {Data: append([]byte("from the maker's site\n"), inPEM(m.root, m.issuing)...)},
		"STRANGER.CER": {Data: m.stranger.Raw},
		"README":       {Data: []byte("no certificate")},
	})
	if err != nil || len(roots) != 2 || len(extra) != 1 || !extra[0].Equal(m.issuing) {
		t.Errorf("got %d roots and %d others, %v, want 2 and the intermediate", len(roots), len(extra), err)
	}
	for name, data := range map[string][]byte{
		"empty":        nil,
		"noise":        []byte("hello"),
		"half":         m.root.Raw[:100],
		"no PEM of it": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: m.root.RawSubjectPublicKeyInfo}),
		"broken PEM":   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.root.Raw[:100]}),
		"very long":    bytes.Repeat([]byte("x"), 1<<20),
	} {
		if _, _, err := attest.ReadRoots(fstest.MapFS{"a.pem": {Data: data}}); err == nil || !strings.Contains(err.Error(), "a.pem") {
			t.Errorf("%s: got %v, want an error about a.pem", name, err)
		}
	}
}

// Whatever a TPM holds in place of a certificate is refused; what is accepted begins
// with what was signed.
func FuzzVerifyEK(f *testing.F) {
	m := newMaker(f)
	key := newKey(f).Public()
	good := m.issue(f, template(f), key)
	f.Add(good)
	f.Add(append(slices.Clone(good), 0, 0, 0))
	f.Add([]byte{0x30, 0x80, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		// With its own issuer missing, nothing of the fuzzer's can be good.
		if _, err := attest.VerifyEK(data, nil, []*x509.Certificate{m.stranger}, now); err == nil {
			t.Errorf("accepted %x", data)
		}
	})
}
