package pe_test

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"birthmark/pkg/fota/sdboot/pe"
	"birthmark/pkg/fota/sdboot/pe/petest"
)

// Where things are in a program of a draft.
const (
	headerAt    = petest.HeaderAt
	optionalAt  = petest.OptionalAt
	securityAt  = petest.SecurityAt
	tableAt     = petest.TableAt
	headersSize = petest.HeadersSize
)

// A draft is a program that a test writes: sections of 512 bytes each, 300 of them used.
type draft []byte

var le = binary.LittleEndian

func newDraft(names ...string) draft {
	var sections []petest.Section
	for i, name := range names {
		sections = append(sections, petest.Section{Name: name, Text: strings.Repeat(string(rune('a'+i)), 300)})
	}
	return petest.Program(sections...)
}

func uki() draft { return newDraft(".osrel", ".cmdline", ".linux") }

func (d draft) put(at int, v uint32)   { le.PutUint32(d[at:], v) }
func (d draft) put16(at int, v uint16) { le.PutUint16(d[at:], v) }

// section writes a field of a section.
func (d draft) section(i, field int, v uint32) { d.put(tableAt+40*i+field, v) }

// withSignatures is d with a table of signatures at its end.
func (d draft) withSignatures(table []byte) draft { return d.ending(table, len(table)) }

// ending is d with a table of signatures at its end, and a size of it that is claimed.
func (d draft) ending(table []byte, size int) draft {
	at := len(d)
	d = append(slices.Clip(d), table...)
	d.put(securityAt, uint32(at))
	d.put(securityAt+4, uint32(size))
	return d
}

// certificate is a WIN_CERTIFICATE; its length is that of its contents and more.
func certificate(contents []byte, more int) []byte {
	b := le.AppendUint32(nil, uint32(8+len(contents)+more))
	b = le.AppendUint16(b, 0x0200)
	b = le.AppendUint16(b, 0x0002)
	b = append(b, contents...)
	return append(b, make([]byte, -len(b)&7)...)
}

// message is a SEQUENCE with n octets in it.
func message(n int) []byte {
	return append([]byte{0x30, 0x82, byte(n >> 8), byte(n)}, bytes.Repeat([]byte{0x2a}, n)...)
}

const (
	virtualSize = 8 + 4*iota
	virtualAddress
	rawSize
	rawPointer
)

func TestGoodProgramsAreRead(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(draft) draft
		signed int
	}{
		{"the plainest", nil, 0},
		{"of arm64", func(d draft) draft { d.put16(headerAt+4, uint16(pe.ARM64)); return d }, 0},
		{"sections in another order in the file", func(d draft) draft {
			d.section(0, rawPointer, headersSize+512)
			d.section(1, rawPointer, headersSize)
			return d
		}, 0},
		{"a section without contents, that points anywhere", func(draft) draft {
			d := newDraft(".osrel", ".cmdline", ".linux", ".bss")
			d.section(3, rawSize, 0)
			d.section(3, rawPointer, 0xffffffff)
			return d[:len(d)-512]
		}, 0},
		{"a section with more in memory", func(d draft) draft { d.section(2, virtualSize, 0x1000); return d }, 0},
		{"more behind the sections", func(d draft) draft { return append(d, "symbols"...) }, 0},
		{"a signature", func(d draft) draft { return d.withSignatures(certificate(message(500), 0)) }, 1},
		{"a signature without padding in its length", func(d draft) draft { return d.withSignatures(certificate(message(501), 0)) }, 1},
		{"a signature with padding in its length", func(d draft) draft { return d.withSignatures(certificate(message(501), 3)) }, 1},
		{"two signatures", func(d draft) draft {
			return d.withSignatures(slices.Concat(certificate(message(501), 0), certificate(message(300), 0)))
		}, 2},
	} {
		d := uki()
		if c.change != nil {
			d = c.change(d)
		}
		f, err := pe.Parse(bytes.NewReader(d), int64(len(d)))
		if err != nil {
			t.Errorf("%s: refused: %v", c.name, err)
			continue
		}
		if n := len(f.Signatures()); n != c.signed {
			t.Errorf("%s: %d signatures, want %d", c.name, n, c.signed)
		}
		if got, err := f.Digest(); err != nil || got != bySpecification(d) {
			t.Errorf("%s: digest %x, %v; by the specification's steps %x", c.name, got, err, bySpecification(d))
		}
		r, ok := f.Section(".linux")
		if text, err := io.ReadAll(r); !ok || err != nil || !bytes.HasPrefix(text, bytes.Repeat([]byte{'c'}, 300)) {
			t.Errorf("%s: section .linux holds %.20q (%d bytes), %v", c.name, text, len(text), err)
		}
	}
}

// bySpecification is the digest by the steps of "Calculating the PE Image Hash" in the
// Authenticode specification: headers, sections by their place, the rest.
func bySpecification(d draft) [sha256.Size]byte {
	h := sha256.New()
	header := int(le.Uint32(d[0x3c:]))
	optional := header + 24
	security := optional + 112 + 4*8
	headers := int(le.Uint32(d[optional+60:]))
	h.Write(d[:optional+64])
	h.Write(d[optional+68 : security])
	h.Write(d[security+8 : headers])
	done := headers
	type span struct{ at, size int }
	var sections []span
	table := optional + int(le.Uint16(d[header+20:]))
	for i := range int(le.Uint16(d[header+6:])) {
		s := d[table+40*i:]
		if size := int(le.Uint32(s[16:])); size > 0 {
			sections = append(sections, span{int(le.Uint32(s[20:])), size})
		}
	}
	slices.SortFunc(sections, func(a, b span) int { return cmp.Compare(a.at, b.at) })
	for _, s := range sections {
		h.Write(d[s.at : s.at+s.size])
		done += s.size
	}
	h.Write(d[done : len(d)-int(le.Uint32(d[security+4:]))])
	return [sha256.Size]byte(h.Sum(nil))
}

func TestOddProgramsAreRefused(t *testing.T) {
	set := func(at int, v uint32) func(draft) draft { return func(d draft) draft { d.put(at, v); return d } }
	set16 := func(at int, v uint16) func(draft) draft { return func(d draft) draft { d.put16(at, v); return d } }
	section := func(i, field int, v uint32) func(draft) draft {
		return func(d draft) draft { d.section(i, field, v); return d }
	}
	cut := func(n int) func(draft) draft { return func(d draft) draft { return d[:n] } }
	signed := func(table []byte) func(draft) draft {
		return func(d draft) draft { return d.withSignatures(table) }
	}
	cert := certificate(message(500), 0)
	for _, c := range []struct {
		name   string
		change func(draft) draft
		code   string
	}{
		{"nothing", cut(0), "header"},
		{"a DOS header that is cut short", cut(0x3f), "header"},
		{"a shell script", func(d draft) draft { copy(d, "#!"); return d }, "magic"},
		{"a PE header within the DOS header", set(0x3c, 0x3f), "header"},
		{"a PE header far away", set(0x3c, 64<<10+1), "header"},
		{"a PE header at the end of all numbers", set(0x3c, 0xffffffff), "header"},
		{"a PE header behind the end", set(0x3c, 4000), "header"},
		{"no PE header", set(headerAt, 0x4550+1), "magic"},
		{"PE32", set16(optionalAt, 0x10b), "magic"},
		{"a program for i386", set16(headerAt+4, 0x14c), "kind"},
		{"a driver", set16(optionalAt+68, 12), "kind"},
		{"no sections", set16(headerAt+6, 0), "limit"},
		{"97 sections", set16(headerAt+6, 97), "limit"},
		{"more sections than headers", set16(headerAt+6, 30), "header"},
		{"four data directories", set(optionalAt+108, 4), "header"},
		{"17 data directories", set(optionalAt+108, 17), "header"},
		{"15 data directories where there is room for 16", set(optionalAt+108, 15), "header"},
		{"more data directories than can be counted", set(optionalAt+108, 0xffffffff), "header"},
		{"a longer optional header", set16(headerAt+20, 112+17*8), "header"},
		{"headers that end within the section table", set(optionalAt+60, tableAt+3*40-1), "header"},
		{"headers longer than the file", set(optionalAt+60, 0x5000), "header"},
		{"headers longer than the limit", set(optionalAt+60, 0xffffffff), "header"},
		{"a program that ends within its headers", cut(headersSize - 1), "header"},
		{"a program that ends within its sections", cut(headersSize + 3*512 - 1), "section"},

		{"a section without a name", func(d draft) draft { copy(d[tableAt:], make([]byte, 8)); return d }, "section"},
		{"a name with a NUL in it", func(d draft) draft { copy(d[tableAt:], ".os\x00el"); return d }, "section"},
		{"a name with a blank", func(d draft) draft { copy(d[tableAt:], ".os el"); return d }, "section"},
		{"a name that is no ASCII", func(d draft) draft { copy(d[tableAt:], ".\xf6srel"); return d }, "section"},
		{"two command lines", func(draft) draft { return newDraft(".osrel", ".cmdline", ".cmdline", ".linux") }, "section"},
		{"a section that takes no memory", section(1, virtualSize, 0), "section"},
		{"a section over the headers", section(0, rawPointer, headersSize-1), "section"},
		{"a gap behind the headers", section(0, rawPointer, headersSize+1), "section"},
		{"two sections in one place", section(1, rawPointer, headersSize), "section"},
		{"sections that overlap", section(0, rawSize, 513), "section"},
		{"a gap between sections", section(0, rawSize, 511), "section"},
		{"a section of nearly all numbers", section(2, rawSize, 0xffffffff), "section"},
		{"a section over the end of all numbers", section(2, rawPointer, 0xffffffff), "section"},
		{"a section loaded over the headers", section(0, virtualAddress, headersSize-1), "section"},
		{"a section loaded over another", section(0, virtualSize, 0x1001), "section"},
		{"sections loaded to one place", section(1, virtualAddress, 0x1000), "section"},
		{"a section loaded over the end of the image", section(2, virtualSize, 0x1001), "section"},
		{"a section loaded over the end of all numbers", section(2, virtualAddress, 0xffffffff), "section"},
		{"a section with as much memory as there is", section(2, virtualSize, 0xffffffff), "section"},

		{"signatures nowhere", set(securityAt+4, 8), "signature"},
		{"signatures without a size", set(securityAt, headersSize+3*512), "signature"},
		{"signatures behind the end", func(d draft) draft { return d.ending(cert, len(cert)+8) }, "signature"},
		{"bytes behind the signatures", func(d draft) draft { return append(d.withSignatures(cert), make([]byte, 8)...) }, "signature"},
		{"signatures that are not at a multiple of eight", func(d draft) draft { return append(d, 0).withSignatures(cert) }, "signature"},
		{"signatures of a size that is no multiple of eight", signed(cert[:len(cert)-1]), "signature"},
		{"signatures over the sections", func(d draft) draft {
			d = d.withSignatures(cert)
			at := uint32(headersSize + 2*512 + 256)
			copy(d[at:], certificate(message(int(uint32(len(d))-at-12)), 0))
			d.put(securityAt, at)
			d.put(securityAt+4, uint32(len(d))-at)
			return d
		}, "section"},
		{"more bytes of signatures than the limit", signed(make([]byte, 128<<10+8)), "limit"},
		{"nine signatures", signed(bytes.Repeat(cert, 9)), "limit"},
		{"a signature without contents", signed(certificate(nil, 0)), "signature"},
		{"a signature of no length", signed(make([]byte, 8)), "signature"},
		{"a signature longer than the table", signed(certificate(message(500), 8)), "signature"},
		{"a signature of all numbers", signed(certificate(message(500), -513)), "signature"},
		{"a signature of revision 1.0", signed(append([]byte{0, 2, 0, 0, 0, 1}, cert[6:]...)), "signature"},
		{"a signature of another type", signed(append([]byte{0, 2, 0, 0, 0, 2, 0xf1, 0x0e}, cert[8:]...)), "signature"},
		{"a signature that is no SEQUENCE", signed(certificate([]byte("signed by me"), 0)), "signature"},
		{"a signature of indefinite length", signed(certificate([]byte{0x30, 0x80, 0, 0, 0, 0, 0, 0}, 0)), "signature"},
		{"a signature of 64 KiB", signed(certificate(append([]byte{0x30, 0x83, 1, 0, 0}, make([]byte, 64<<10+3)...), 0)), "signature"},
		{"a signature that ends within itself", signed(certificate(message(500)[:496], 0)), "signature"},
		{"eight bytes behind a signature", signed(certificate(append(message(500), make([]byte, 8)...), 0)), "signature"},
		{"a byte behind a signature", signed(certificate(append(message(499), 1), 0)), "signature"},
		{"a byte in the padding", func(d draft) draft {
			d = d.withSignatures(certificate(message(499), 0))
			d[len(d)-1] = 1
			return d
		}, "signature"},
	} {
		d := c.change(uki())
		_, err := pe.Parse(bytes.NewReader(d), int64(len(d)))
		var f *pe.FormatError
		if !errors.As(err, &f) || f.Code != c.code {
			t.Errorf("%s: got %v, want a refusal for %s", c.name, err, c.code)
		}
	}
}

func TestSizeIsLimited(t *testing.T) {
	var f *pe.FormatError
	if _, err := pe.Parse(nil, pe.SizeLimit+1); !errors.As(err, &f) || f.Code != "limit" {
		t.Errorf("got %v, want a refusal for its limit", err)
	}
}

// What the medium says is not what the program says: it may say otherwise tomorrow.
func TestTroubleOfTheReaderIsNoRefusal(t *testing.T) {
	d := uki()
	var f *pe.FormatError
	for n := range len(d) {
		if _, err := pe.Digest(bytes.NewReader(d[:n]), int64(len(d))); err != io.ErrUnexpectedEOF || errors.As(err, &f) {
			t.Fatalf("a reader that ends after %d of %d bytes: got %v, want %v", n, len(d), err, io.ErrUnexpectedEOF)
		}
	}
}

// Every bit of a program is signed, but for the two fields that signing changes.
func TestDigestChangesWithEveryBit(t *testing.T) {
	signed := uki().withSignatures(certificate(message(100), 0))
	want, err := pe.Digest(bytes.NewReader(signed), int64(len(signed)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range signed {
		flipped := bytes.Clone(signed)
		flipped[i] ^= 1 << (i % 8)
		got, err := pe.Digest(bytes.NewReader(flipped), int64(len(flipped)))
		hole := i >= optionalAt+64 && i < optionalAt+68 || i >= securityAt && i < securityAt+8 || i >= headersSize+3*512
		if err == nil && (got == want) != hole {
			t.Errorf("byte %d flipped: same digest %v, want %v", i, got == want, hole)
		}
	}
}

// TestRealPrograms: what objcopy and sbsign make is read, and has the digest that
// sbsign signed.
func TestRealPrograms(t *testing.T) {
	const stub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
	}
	linux := bytes.Repeat([]byte("kernel "), 20001)
	for name, text := range map[string][]byte{"osrel": []byte("ID=x\n"), "cmdline": []byte("init=/sbin/init"), "linux": linux} {
		if err := os.WriteFile(file(name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run("objcopy", "--add-section", ".osrel="+file("osrel"), "--change-section-vma", ".osrel=0x20000",
		"--add-section", ".cmdline="+file("cmdline"), "--change-section-vma", ".cmdline=0x30000",
		"--add-section", ".linux="+file("linux"), "--change-section-vma", ".linux=0x2000000", stub, file("uki"))
	for _, key := range []string{"one", "two"} {
		run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN="+key, "-keyout", file(key+".key"), "-out", file(key+".pem"))
	}
	run("sbsign", "--key", file("one.key"), "--cert", file("one.pem"), "--output", file("signed"), file("uki"))
	run("sbsign", "--key", file("two.key"), "--cert", file("two.pem"), "--output", file("twice"), file("signed"))

	var digests [][sha256.Size]byte
	for signatures, name := range []string{"uki", "signed", "twice"} {
		program, err := os.ReadFile(file(name))
		if err != nil {
			t.Fatal(err)
		}
		if name == "uki" { // as sbsign does before it signs
			program = append(program, make([]byte, -len(program)&7)...)
		}
		f, err := pe.Parse(bytes.NewReader(program), int64(len(program)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		r, _ := f.Section(".linux")
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, linux) {
			t.Errorf("%s: section .linux has %d bytes, want the %d that were put in", name, len(got), len(linux))
		}
		if names := strings.Join(f.Sections(), " "); !strings.HasSuffix(names, ".sdmagic .osrel .cmdline .linux") {
			t.Errorf("%s: sections %s, want those that were put in last", name, names)
		}
		if got := len(f.Signatures()); got != signatures {
			t.Errorf("%s: %d signatures, want %d", name, got, signatures)
		}
		digest, err := f.Digest()
		if err != nil {
			t.Fatal(err)
		}
		for i, message := range f.Signatures() {
			if !bytes.Contains(message, digest[:]) {
				t.Errorf("%s: signature %d is not about the digest %x", name, i, digest)
			}
		}
		digests = append(digests, digest)
	}
	if digests[0] != digests[1] || digests[1] != digests[2] {
		t.Errorf("the digest changed with signing: %x", digests)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(uki()))
	f.Add([]byte(uki().withSignatures(certificate(message(40), 0))))
	f.Add([]byte(newDraft(".linux")[:headersSize]))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := pe.Parse(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			var format *pe.FormatError
			if !errors.As(err, &format) {
				t.Fatalf("refused with %v, want a FormatError", err)
			}
			return
		}
		if got, err := p.Digest(); err != nil || got != bySpecification(b) {
			t.Errorf("digest %x, %v; by the specification's steps %x", got, err, bySpecification(b))
		}
		for _, name := range p.Sections() {
			r, ok := p.Section(name)
			if n, err := io.Copy(io.Discard, r); !ok || err != nil || n != r.Size() {
				t.Errorf("section %s has %d bytes, %v; want %d", name, n, err, r.Size())
			}
		}
	})
}
