package sdboot

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"birthmark/pkg/fota/sdboot/pe"
	"birthmark/pkg/fota/sdboot/pe/petest"
)

// A maker has what is needed to sign for Secure Boot: keys made by openssl, programs
// signed by sbsign.
type maker struct {
	testing.TB
	dir string
}

func newMaker(tb testing.TB) maker {
	m := maker{tb, tb.TempDir()}
	m.openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=db", "-days", "10", "-keyout", m.file("db.key"), "-out", m.file("db.pem"))
	m.openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=db", "-days", "10", "-keyout", m.file("foreign.key"), "-out", m.file("foreign.pem"))
	// A signer with a certificate of its own, issued by a CA.
	m.openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=CA", "-days", "10", "-keyout", m.file("ca.key"), "-out", m.file("ca.pem"))
	m.openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=signer", "-keyout", m.file("signer.key"), "-out", m.file("signer.csr"))
	m.openssl("x509", "-req", "-in", m.file("signer.csr"), "-CA", m.file("ca.pem"), "-CAkey", m.file("ca.key"), "-days", "1", "-out", m.file("signer.pem"))
	// One that db's key issued, which is no CA's: by its certificate it may not.
	m.put("leaf.ext", []byte("basicConstraints=critical,CA:FALSE\n"))
	m.openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=leaf", "-keyout", m.file("leaf.key"), "-out", m.file("leaf.csr"))
	m.openssl("x509", "-req", "-in", m.file("leaf.csr"), "-CA", m.file("ca.pem"), "-CAkey", m.file("ca.key"), "-days", "1", "-extfile", m.file("leaf.ext"), "-out", m.file("leaf.pem"))
	m.openssl("x509", "-req", "-in", m.file("signer.csr"), "-CA", m.file("leaf.pem"), "-CAkey", m.file("leaf.key"), "-days", "1", "-out", m.file("below.pem"))
	return m
}

func (m maker) file(name string) string { return filepath.Join(m.dir, name) }

func (m maker) put(name string, b []byte) {
	m.Helper()
	if err := os.WriteFile(m.file(name), b, 0o600); err != nil {
		m.Fatal(err)
	}
}

func (m maker) openssl(args ...string) { m.Helper(); m.run("openssl", args...) }

func (m maker) run(name string, args ...string) {
	m.Helper()
	if out, err := exec.CommandContext(m.Context(), name, args...).CombinedOutput(); err != nil {
		m.Fatalf("%s: %v: %s", name, err, out)
	}
}

// sign is a program with one more signature.
func (m maker) sign(program []byte, key, cert string, more ...string) []byte {
	m.Helper()
	m.put("program", program)
	m.run("sbsign", slices.Concat([]string{"--key", m.file(key), "--cert", m.file(cert), "--output", m.file("signed")}, more, []string{m.file("program")})...)
	b, err := os.ReadFile(m.file("signed"))
	if err != nil {
		m.Fatal(err)
	}
	return b
}

func (m maker) cert(name string) *x509.Certificate {
	m.Helper()
	b, err := os.ReadFile(m.file(name))
	if err != nil {
		m.Fatal(err)
	}
	block, _ := pem.Decode(b)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		m.Fatal(err)
	}
	return c
}

// signatures is an EFI_SIGNATURE_LIST.
func signatures(kind [16]byte, all ...[]byte) []byte {
	size := 16 + len(all[0])
	b := kind[:]
	for _, n := range []int{28 + size*len(all), 0, size} {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	for _, data := range all {
		b = append(append(b, make([]byte, 16)...), data...)
	}
	return b
}

func digestOf(tb testing.TB, program []byte) []byte {
	tb.Helper()
	sum, err := pe.Digest(bytes.NewReader(program), int64(len(program)))
	if err != nil {
		tb.Fatal(err)
	}
	return sum[:]
}

// realUKI is what a build makes: systemd's stub with sections put in by objcopy.
func (m maker) realUKI() []byte {
	m.Helper()
	m.put("osrel", []byte("IMAGE_VERSION=2.0.0\n"))
	m.put("cmdline", []byte("init=/sbin/init"))
	m.put("linux", bytes.Repeat([]byte("kernel "), 30000))
	m.run("objcopy", "--add-section", ".osrel="+m.file("osrel"), "--change-section-vma", ".osrel=0x20000",
		"--add-section", ".cmdline="+m.file("cmdline"), "--change-section-vma", ".cmdline=0x30000",
		"--add-section", ".linux="+m.file("linux"), "--change-section-vma", ".linux=0x2000000",
		"/usr/lib/systemd/boot/efi/linuxx64.efi.stub", m.file("uki"))
	b, err := os.ReadFile(m.file("uki"))
	if err != nil {
		m.Fatal(err)
	}
	return b
}

// TestSecureBoot: what firmware would refuse is refused, what it would start is not.
func TestSecureBoot(t *testing.T) {
	m := newMaker(t)
	uki := petest.UKI("2.0.0")
	signed := m.sign(uki, "db.key", "db.pem")
	foreign := m.sign(uki, "foreign.key", "foreign.pem")
	issued := m.sign(uki, "signer.key", "signer.pem", "--addcert", m.file("ca.pem"))
	alone := m.sign(uki, "signer.key", "signer.pem")
	twice := m.sign(signed, "foreign.key", "foreign.pem")
	below := m.sign(uki, "signer.key", "below.pem", "--addcert", m.file("leaf.pem"))
	tampered := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 1
		return b
	}
	linux := bytes.Index(signed, []byte("the kernel of"))

	x := func(names ...string) (b []byte) {
		for _, name := range names {
			b = append(b, signatures(kindX509, m.cert(name).Raw)...)
		}
		return b
	}
	tbs := m.cert("db.pem").RawTBSCertificate
	sum256, sum384, sum512 := sha256.Sum256(tbs), sha512.Sum384(tbs), sha512.Sum512(tbs)
	noTime := make([]byte, 16)
	for _, c := range []struct {
		name    string
		uki     []byte
		db, dbx []byte // nil for none
		code    string
	}{
		{"signed by a key in db", signed, x("db.pem"), nil, ""},
		{"a real one, signed by a key in db", m.sign(m.realUKI(), "db.key", "db.pem"), x("db.pem"), nil, ""},
		{"signed by one of several in db", signed, x("foreign.pem", "ca.pem", "db.pem"), nil, ""},
		{"signed by a key that a CA in db issued", issued, x("ca.pem"), nil, ""},
		{"signed so, without the CA's certificate", alone, x("ca.pem"), nil, ""},
		{"signed by two, one of them known", twice, x("db.pem"), nil, ""},
		{"signed by two, the other one known", twice, x("foreign.pem"), nil, ""},
		{"not signed, its digest in db", uki, signatures(kindSHA256, make([]byte, 32), digestOf(t, uki)), nil, ""},
		{"signed by a stranger, its digest in db", foreign, signatures(kindSHA256, digestOf(t, uki)), nil, ""},
		{"another one in dbx", signed, x("db.pem"), slices.Concat(signatures(kindSHA256, make([]byte, 32)), x("foreign.pem", "ca.pem")), ""},
		{"lists of kinds that nobody knows", signed, slices.Concat(signatures([16]byte{1}, []byte("what")), x("db.pem")), signatures([16]byte{2}, digestOf(t, uki)), ""},

		{"not signed", uki, x("db.pem"), nil, "unsigned"},
		{"signed by a stranger of the same name", foreign, x("db.pem"), nil, "foreign"},
		{"signed, and db empty", signed, []byte{}, nil, "foreign"},
		{"signed, and no db", signed, nil, nil, "foreign"},
		{"signed by a CA's signer, and only the CA's other one in db", issued, x("leaf.pem"), nil, "foreign"},
		{"issued by one in db that is no CA", below, x("leaf.pem"), nil, "foreign"},
		{"the digest of another one in db", uki, signatures(kindSHA256, make([]byte, 32)), nil, "unsigned"},
		{"its digest in a list of another kind", uki, signatures(kindX509SHA256, digestOf(t, uki)), nil, "unsigned"},
		{"a section tampered with", tampered(signed, linux), x("db.pem"), nil, "signature"},
		{"a header tampered with", tampered(signed, petest.HeaderAt+8), x("db.pem"), nil, "signature"},
		{"a signature tampered with", tampered(signed, len(signed)-20), x("db.pem"), nil, "signature"},
		{"one signature of two tampered with", tampered(twice, len(twice)-20), x("db.pem"), nil, "signature"},
		{"the signature of another one", transplant(t, m.sign(petest.UKI("2.0.1"), "db.key", "db.pem"), uki), x("db.pem"), nil, "signature"},

		{"its digest in dbx", signed, x("db.pem"), signatures(kindSHA256, make([]byte, 32), digestOf(t, uki)), "revoked"},
		{"its digest in db and in dbx", uki, signatures(kindSHA256, digestOf(t, uki)), signatures(kindSHA256, digestOf(t, uki)), "revoked"},
		{"its signer in dbx", signed, x("db.pem"), x("db.pem"), "revoked"},
		{"its signer's digest in dbx", signed, x("db.pem"), signatures(kindX509SHA256, slices.Concat(sum256[:], noTime)), "revoked"},
		{"its signer's other digest in dbx", signed, x("db.pem"), signatures(kindX509SHA384, slices.Concat(sum384[:], noTime)), "revoked"},
		{"its signer's longest digest in dbx", signed, x("db.pem"), signatures(kindX509SHA512, slices.Concat(sum512[:], noTime)), "revoked"},
		{"its signer's CA in dbx, its signer in db", alone, x("signer.pem"), x("ca.pem"), "revoked"},
		{"its signer's CA in dbx and in the message", issued, x("signer.pem"), x("ca.pem"), "revoked"},
		{"one of two signers in dbx", twice, x("db.pem"), x("foreign.pem"), "revoked"},
	} {
		d := newDevice(t)
		d.set(secureBootState, []byte{1})
		for x, list := range map[variable][]byte{allowedList: c.db, forbiddenList: c.dbx} {
			if list != nil {
				d.set(x, list)
			}
		}
		_, err := d.loader().Stage(t.Context(), bytes.NewReader(c.uki), int64(len(c.uki)), "2.0.0")
		if (err == nil) != (c.code == "") || refusedFor(err) != c.code {
			t.Errorf("%s: got %v, want a refusal for %q", c.name, err, c.code)
		}
		if c.code != "" {
			d.wantFiles(running)
		}
	}

	// Off, it is off.
	for name, b := range map[string][]byte{"not signed": uki, "signed by a stranger": foreign} {
		d := newDevice(t)
		d.set(allowedList, x("db.pem"))
		if _, err := d.loader().Stage(t.Context(), bytes.NewReader(b), int64(len(b)), "2.0.0"); err != nil {
			t.Errorf("%s, without Secure Boot: %v", name, err)
		}
	}
	// Lists that cannot be read are trouble, not a refusal.
	for x := range map[variable]bool{allowedList: true, forbiddenList: true} {
		d := newDevice(t)
		d.set(secureBootState, []byte{1})
		d.set(x, []byte("no list"))
		_, err := d.loader().Stage(t.Context(), bytes.NewReader(signed), int64(len(signed)), "2.0.0")
		if err == nil || refusedFor(err) != "" {
			t.Errorf("%s that cannot be read: got %v", x.name, err)
		}
	}
}

// transplant gives the signatures of one program to another of the same size.
func transplant(tb testing.TB, from, to []byte) []byte {
	tb.Helper()
	if len(from) <= len(to) || len(to)%8 != 0 {
		tb.Fatal("cannot transplant")
	}
	b := append(bytes.Clone(to), from[len(to):]...)
	copy(b[petest.SecurityAt:], from[petest.SecurityAt:petest.SecurityAt+8])
	return b
}

func TestSignatureListsAreReadStrictly(t *testing.T) {
	good := signatures(kindSHA256, make([]byte, 32), make([]byte, 32))
	with := func(at int, v uint32) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint32(b[at:], v)
		return b
	}
	if l, err := parseSignatures(slices.Concat(good, signatures(kindX509, []byte("cert")))); err != nil || len(l[kindSHA256]) != 2 || len(l[kindX509]) != 1 {
		t.Errorf("got %v, %v, want two digests and a certificate", l, err)
	}
	for name, b := range map[string][]byte{
		"a list cut short":           good[:len(good)-1],
		"a header cut short":         good[:27],
		"a byte behind a list":       append(bytes.Clone(good), 0),
		"a list of no size":          with(16, 0),
		"a list of all numbers":      with(16, 0xffffffff),
		"a header of all numbers":    with(20, 0xffffffff),
		"a header that does not fit": with(20, 1),
		"signatures of no size":      with(24, 0),
		"signatures without data":    with(24, 16),
		"signatures of all numbers":  with(24, 0xffffffff),
		"signatures that do not fit": with(24, 47),
	} {
		if l, err := parseSignatures(b); err == nil {
			t.Errorf("%s: read as %v", name, l)
		}
	}
}

func FuzzSignatureLists(f *testing.F) {
	f.Add(signatures(kindSHA256, make([]byte, 32)))
	f.Add(signatures(kindX509, []byte("cert")))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := parseSignatures(b)
		if err != nil {
			return
		}
		n := 0
		for _, all := range l {
			for _, data := range all {
				n += len(data)
			}
		}
		if n > len(b) {
			t.Errorf("%d bytes of lists hold %d", len(b), n)
		}
		l.certificates()
	})
}

// FuzzCheck: whatever is to be started, it is refused or found good, and nothing else.
func FuzzCheck(f *testing.F) {
	f.Add(petest.UKI("2.0.0"))
	d := newDevice(f)
	d.set(secureBootState, []byte{1})
	l := d.loader()
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := l.Check(bytes.NewReader(b), int64(len(b)), "2.0.0"); refusedFor(err) == "" {
			t.Errorf("got %v, want a refusal: db is empty", err)
		}
	})
}

// What cannot be read is no refusal.
func TestCheckInTrouble(t *testing.T) {
	uki := petest.UKI("2.0.0")
	d := newDevice(t)
	d.set(secureBootState, []byte{1})
	l := d.loader()
	for n := range uki {
		if err := l.Check(bytes.NewReader(uki[:n]), int64(len(uki)), "2.0.0"); !errors.Is(err, io.ErrUnexpectedEOF) || refusedFor(err) != "" {
			t.Fatalf("a file that ends after %d of %d bytes: got %v, want %v", n, len(uki), err, io.ErrUnexpectedEOF)
		}
	}
}
