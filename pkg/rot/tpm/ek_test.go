package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	gotpm "github.com/google/go-tpm/tpm2/transport"

	"birthmark/internal/swtpm/swtpmtest"
)

// A chip is what its maker put into a TPM, with go-tpm alone.
type chip struct {
	tb   testing.TB
	conn gotpm.TPM
}

// ek makes the key of a template and returns its public part; at a handle, if
// that is not 0, it stays.
func (c chip) ek(template tpm2.TPMTPublic, at tpm2.TPMHandle) crypto.PublicKey {
	c.tb.Helper()
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(template)}.Execute(c.conn)
	if err != nil {
		c.tb.Fatal(err)
	}
	if at != 0 {
		_, err := tpm2.EvictControl{
			Auth: tpm2.TPMRHOwner, ObjectHandle: tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}, PersistentHandle: at,
		}.Execute(c.conn)
		if err != nil {
			c.tb.Fatal(err)
		}
	}
	if _, err := (tpm2.FlushContext{FlushHandle: made.ObjectHandle}).Execute(c.conn); err != nil {
		c.tb.Fatal(err)
	}
	public, err := made.OutPublic.Contents()
	if err != nil {
		c.tb.Fatal(err)
	}
	key, err := publicKey(public)
	if err != nil {
		c.tb.Fatal(err)
	}
	return key
}

// index defines an NV index and fills it, unless data is nil.
func (c chip) index(at tpm2.TPMHandle, size int, data []byte, may tpm2.TPMANV) {
	c.tb.Helper()
	may.OwnerWrite, may.OwnerRead, may.NoDA = true, true, true
	define := tpm2.NVDefineSpace{
		AuthHandle: tpm2.TPMRHOwner,
		PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{NVIndex: at, NameAlg: tpm2.TPMAlgSHA256, Attributes: may, DataSize: uint16(size)}),
	}
	if _, err := define.Execute(c.conn); err != nil {
		c.tb.Fatal(err)
	}
	for offset := 0; offset < len(data); offset += nvChunk {
		public, err := tpm2.NVReadPublic{NVIndex: at}.Execute(c.conn)
		if err != nil {
			c.tb.Fatal(err)
		}
		_, err = tpm2.NVWrite{
			AuthHandle: tpm2.TPMRHOwner, NVIndex: tpm2.NamedHandle{Handle: at, Name: public.NVName},
			Data:   tpm2.TPM2BMaxNVBuffer{Buffer: data[offset:min(len(data), offset+nvChunk)]},
			Offset: uint16(offset),
		}.Execute(c.conn)
		if err != nil {
			c.tb.Fatal(err)
		}
	}
}

var readable = tpm2.TPMANV{AuthRead: true}

// ekCertificate lets a made-up chip maker certify a key.
func ekCertificate(t *testing.T, key crypto.PublicKey) []byte {
	t.Helper()
	maker, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key, maker)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// The TCG's list (EK Credential Profile, B.3 and B.4): where the certificate
// lies, and which key it is for.
func TestEveryKindOfEK(t *testing.T) {
	for _, want := range []struct {
		name        string
		certificate tpm2.TPMHandle
		hash        tpm2.TPMAlgID // of Name and policy
		aes         tpm2.TPMKeyBits
		curve       tpm2.TPMECCCurve // 0 for RSA
		bits        tpm2.TPMKeyBits  // of RSA
		unique      int              // bytes that are zero
		auth        bool             // an empty authorization value will do
	}{
		{"L-1", 0x01C00002, tpm2.TPMAlgSHA256, 128, 0, 2048, 256, false},
		{"L-2", 0x01C0000A, tpm2.TPMAlgSHA256, 128, tpm2.TPMECCNistP256, 0, 32, false},
		{"H-1", 0x01C00012, tpm2.TPMAlgSHA256, 128, 0, 2048, 0, true},
		{"H-2", 0x01C00014, tpm2.TPMAlgSHA256, 128, tpm2.TPMECCNistP256, 0, 0, true},
		{"H-3", 0x01C00016, tpm2.TPMAlgSHA384, 256, tpm2.TPMECCNistP384, 0, 0, true},
		{"H-4", 0x01C00018, tpm2.TPMAlgSHA512, 256, tpm2.TPMECCNistP521, 0, 0, true},
		{"H-6", 0x01C0001C, tpm2.TPMAlgSHA384, 256, 0, 3072, 0, true},
		{"H-7", 0x01C0001E, tpm2.TPMAlgSHA384, 256, 0, 4096, 0, true},
	} {
		at := slices.IndexFunc(ekTemplates, func(have ekTemplate) bool { return have.name == want.name })
		if at < 0 {
			t.Errorf("%s is missing", want.name)
			continue
		}
		have := ekTemplates[at]
		if have.certificate != want.certificate || have.public.NameAlg != want.hash || have.persistent>>16 != 0x8101 {
			t.Errorf("%s: got certificate at %#x, key at %#x, hash %v, want %+v", want.name, have.certificate, have.persistent, have.public.NameAlg, want)
		}
		a := have.public.ObjectAttributes
		if got := attributes(a); !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin || !a.AdminWithPolicy || !a.Restricted || !a.Decrypt ||
			a.SignEncrypt || a.NoDA || a.UserWithAuth != want.auth {
			t.Errorf("%s: got attributes %v, want userWithAuth %t and those of an EK", want.name, got, want.auth)
		}
		policies := map[tpm2.TPMAlgID][]byte{tpm2.TPMAlgSHA256: policyB256, tpm2.TPMAlgSHA384: policyB384, tpm2.TPMAlgSHA512: policyB512}
		policy := policies[want.hash]
		if !want.auth {
			policy = policyA(crypto.SHA256)
		}
		if !bytes.Equal(have.public.AuthPolicy.Buffer, policy) {
			t.Errorf("%s: got policy %x, want %x", want.name, have.public.AuthPolicy.Buffer, policy)
		}
		var symmetric tpm2.TPMTSymDefObject
		if want.curve != 0 {
			parms, err := have.public.Parameters.ECCDetail()
			if err != nil {
				t.Fatal(err)
			}
			unique, err := have.public.Unique.ECC()
			if err != nil {
				t.Fatal(err)
			}
			symmetric = parms.Symmetric
			if parms.CurveID != want.curve || !bytes.Equal(unique.X.Buffer, make([]byte, want.unique)) || !bytes.Equal(unique.Y.Buffer, make([]byte, want.unique)) {
				t.Errorf("%s: got curve %v, unique %x, %x, want %v and %d zeros", want.name, parms.CurveID, unique.X.Buffer, unique.Y.Buffer, want.curve, want.unique)
			}
		} else {
			parms, err := have.public.Parameters.RSADetail()
			if err != nil {
				t.Fatal(err)
			}
			unique, err := have.public.Unique.RSA()
			if err != nil {
				t.Fatal(err)
			}
			symmetric = parms.Symmetric
			if parms.KeyBits != want.bits || !bytes.Equal(unique.Buffer, make([]byte, want.unique)) {
				t.Errorf("%s: got %d bits, unique %x, want %d bits and %d zeros", want.name, parms.KeyBits, unique.Buffer, want.bits, want.unique)
			}
		}
		if aes, err := symmetric.KeyBits.AES(); err != nil || *aes != want.aes {
			t.Errorf("%s: got AES of %v bits, %v, want %d", want.name, aes, err, want.aes)
		}
	}
}

// policyA is PolicySecret(endorsement), TPM 2.0 Part 3, 23.4.
func policyA(h crypto.Hash) []byte {
	start := make([]byte, h.Size())
	secret := extend(h, start, binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMCCPolicySecret)), binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHEndorsement)))
	return extend(h, secret) // with an empty policyRef
}

// extend hashes what follows to a policy's digest.
func extend(h crypto.Hash, digest []byte, more ...[]byte) []byte {
	sum := h.New()
	sum.Write(digest)
	for _, m := range more {
		sum.Write(m)
	}
	return sum.Sum(nil)
}

// PolicyB follows from the profile's PolicyC, B.6.
func TestPolicyBIsEither(t *testing.T) {
	for h, tt := range map[crypto.Hash]struct{ b, c []byte }{
		crypto.SHA256: {policyB256, unhex("3767e2edd43ff45a3a7e1eaefcef78643dca964632e7aad82c673a30d8633fde")},
		crypto.SHA384: {policyB384, unhex("d6032ce61f2fb3c240eb3cf6a33237ef2b6a16f4293c22b455e261cffd217ad5b4947c2d73e63005eed2dc2b3593d165")},
		crypto.SHA512: {policyB512, unhex("589ee1e146544716e8deafe6db247b01b81e9f9c7dd16b814aa159138749105fba5388dd1dea702f35240c184933121e" +
			"2c61b8f50d3ef91393a49a38c3f73fc8")},
	} {
		got := extend(h, make([]byte, h.Size()), binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMCCPolicyOR)), policyA(h), tt.c)
		if !bytes.Equal(got, tt.b) {
			t.Errorf("%v: got %x, want %x", h, got, tt.b)
		}
	}
}

// Every kind of key that a chip maker can have made is found by its certificate.
func TestFindsTheKeyOfEveryKindOfCertificate(t *testing.T) {
	for _, template := range ekTemplates {
		if template.name == swtpmLacks {
			continue
		}
		t.Run(template.name, func(t *testing.T) {
			s := clean(t, swtpmtest.StartBare(t))
			conn, done := Direct(t, s)
			c := chip{t, conn}
			key := c.ek(template.public, 0)
			der := ekCertificate(t, key)
			c.index(template.certificate, len(der), der, readable)
			done()
			r := openTest(t, s)
			if id := r.Identity(); id.EK != keyHash(key) || !bytes.Equal(id.EKCertificate, der) {
				t.Errorf("got EK %s with a certificate of %d bytes, want %s with %d", id.EK, len(id.EKCertificate), keyHash(key), len(der))
			}
			r.Close()
		})
	}
}

// swtpmLacks is the kind that Debian's swtpm cannot make. When the test below fails,
// the one above can try it, too.
const swtpmLacks = "H-7"

func TestSwtpmHasNoRSA4096(t *testing.T) {
	conn, done := Direct(t, Start(t))
	defer done()
	template := ekTemplates[len(ekTemplates)-1]
	_, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(template.public)}.Execute(conn)
	if template.name != swtpmLacks || !errors.Is(err, tpm2.TPMRCValue) {
		t.Errorf("%s: got %v, want TPM_RC_VALUE", template.name, err)
	}
}

func TestTakesOnlyCertificatesThatFit(t *testing.T) {
	best, next := ekTemplates[0], ekTemplates[1]
	for name, spoil := range map[string]func(c chip, good []byte){
		"another chip's": func(c chip, good []byte) {
			other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			der := ekCertificate(t, other.Public())
			c.index(best.certificate, len(der), der, readable)
		},
		"another kind's": func(c chip, good []byte) {
			der := ekCertificate(t, c.ek(ekTemplates[3].public, 0))
			c.index(best.certificate, len(der), der, readable)
		},
		"noise":         func(c chip, good []byte) { c.index(best.certificate, 100, make([]byte, 100), readable) },
		"half of it":    func(c chip, good []byte) { c.index(best.certificate, 100, good[:100], readable) },
		"never written": func(c chip, good []byte) { c.index(best.certificate, len(good), nil, readable) },
		"not for us":    func(c chip, good []byte) { c.index(best.certificate, len(good), good, tpm2.TPMANV{}) },
	} {
		t.Run(name, func(t *testing.T) {
			s := clean(t, swtpmtest.StartBare(t))
			conn, done := Direct(t, s)
			c := chip{t, conn}
			spoil(c, ekCertificate(t, c.ek(best.public, 0)))
			key := c.ek(next.public, 0)
			der := ekCertificate(t, key)
			c.index(next.certificate, len(der), der, readable)
			done()
			if id := openTest(t, s).Identity(); id.EK != keyHash(key) || !bytes.Equal(id.EKCertificate, der) {
				t.Errorf("got EK %s with a certificate of %d bytes, want that of the next index, %s", id.EK, len(id.EKCertificate), keyHash(key))
			}
		})
	}
}

// Chip makers reserve more room than a certificate needs, and fill it with zeros
// or ones. A long one has to be read in pieces.
func TestCutsWhatIsBehindACertificate(t *testing.T) {
	for name, padding := range map[string][]byte{
		"zeros": make([]byte, 300),
		"ones":  bytes.Repeat([]byte{0xff}, 300),
		"a lot": make([]byte, 1500), // swtpm's largest index has 2048 bytes
	} {
		s := clean(t, swtpmtest.StartBare(t))
		conn, done := Direct(t, s)
		c := chip{t, conn}
		der := ekCertificate(t, c.ek(ekTemplates[0].public, 0))
		c.index(ekTemplates[0].certificate, len(der)+len(padding), slices.Concat(der, padding), readable)
		done()
		r := openTest(t, s)
		if got := r.Identity().EKCertificate; !bytes.Equal(got, der) {
			t.Errorf("%s: got a certificate of %d bytes, want %d", name, len(got), len(der))
		}
		r.Close()
	}
}

// A key that is kept ready is used; one that only stands at its place is not.
func TestTakesTheKeyThatIsKeptReadyIfItIsTheOne(t *testing.T) {
	for name, kept := range map[string]ekTemplate{"the one": ekTemplates[0], "another": ekTemplates[1]} {
		s := clean(t, swtpmtest.StartBare(t))
		conn, done := Direct(t, s)
		c := chip{t, conn}
		key := c.ek(ekTemplates[0].public, 0)
		der := ekCertificate(t, key)
		c.index(ekTemplates[0].certificate, len(der), der, readable)
		c.ek(kept.public, ekTemplates[0].persistent)
		done()
		r := openTest(t, s)
		if got := r.Identity().EK; got != keyHash(key) {
			t.Errorf("%s: got EK %s, want %s", name, got, keyHash(key))
		}
		r.Close()
	}
}

// A chip without any certificate has an identity all the same, and is known again.
func TestDoesWithoutACertificate(t *testing.T) {
	s := clean(t, swtpmtest.StartBare(t))
	conn, done := Direct(t, s)
	key := chip{t, conn}.ek(ekTemplates[0].public, 0)
	done()
	r := openTest(t, s)
	first := r.Identity()
	if first.EK != keyHash(key) || first.EKCertificate != nil {
		t.Errorf("got EK %s with a certificate of %d bytes, want %s with none", first.EK, len(first.EKCertificate), keyHash(key))
	}
	r.Close()
	r, err := Open(t.Context(), Config{Address: s.Address(), Known: first})
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
}

// Some certificates are no strict DER, and some name the key RSAES-OAEP; their key
// is found all the same.
func TestReadsOldCertificates(t *testing.T) {
	modulus := new(big.Int).Lsh(big.NewInt(1), 2047)
	modulus.SetBit(modulus, 0, 1)
	pkcs1, err := asn1.Marshal(struct {
		N *big.Int
		E int
	}{modulus, 65537})
	if err != nil {
		t.Fatal(err)
	}
	oaep := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
	type algorithm struct{ ID asn1.ObjectIdentifier }
	type spki struct {
		Algorithm algorithm
		Key       asn1.BitString
	}
	type tbs struct {
		Version                   int `asn1:"explicit,tag:0"`
		Serial                    int
		Signature                 algorithm
		Issuer, Validity, Subject struct{}
		SPKI                      spki
	}
	der, err := asn1.Marshal(struct {
		TBS       tbs
		Algorithm algorithm
		Signature asn1.BitString
	}{tbs{Version: 2, Serial: -1, Signature: algorithm{oaep}, SPKI: spki{algorithm{oaep}, asn1.BitString{Bytes: pkcs1, BitLength: 8 * len(pkcs1)}}},
		algorithm{oaep}, asn1.BitString{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x509.ParseCertificate(der); err == nil {
		t.Error("package x509 reads it, too: it shows nothing")
	}
	got, key, err := parseCertificate(der)
	if err != nil || !bytes.Equal(got, der) {
		t.Fatalf("got %d bytes, %v, want %d", len(got), err, len(der))
	}
	if keyHash(key) == "" {
		t.Errorf("got a key of type %T", key)
	}
}
