package cms

import (
	"bytes"
	"crypto"
	"errors"
	"slices"
	"testing"
)

// A program is what the signature of one says of it.
type program struct {
	kind, algorithm, digest []byte
	after, afterDigest      []byte // where nothing should be
}

func aProgram() *program {
	return &program{kind: tlv(tagOID, idPEImageData), algorithm: identifier(sha2(1), []byte{tagNull, 0}), digest: sum(crypto.SHA256, []byte("program"))}
}

// draft is a good signature about the program.
func (p *program) draft() *draft {
	// SpcPeImageData as everybody writes it: no flags, and a link to a file without a name.
	image := []byte{0x30, 0x09, 0x03, 0x01, 0x00, 0xa0, 0x04, 0xa2, 0x02, 0x80, 0x00}
	content := slices.Concat(tlv(tagSequence, p.kind, image), tlv(tagSequence, p.algorithm, tlv(tagOctetString, p.digest), p.afterDigest), p.after)
	d := draftOf(signer())
	d.detached = true // what it has as content is below
	d.eContentType = slices.Concat(tlv(tagOID, idIndirectData), tlv(tagContext0, tlv(tagSequence, content)))
	d.set(idContentType, tlv(tagOID, idIndirectData))
	d.set(idMessageDigest, tlv(tagOctetString, sum(crypto.SHA256, content)))
	return d
}

func TestAuthenticode(t *testing.T) {
	want := aProgram().digest
	for _, c := range []struct {
		name   string
		change func(*program)
		after  func(*draft)
		code   string // "" when it is believed
	}{
		{"the plainest", nil, nil, ""},
		{"an RSA key", nil, func(d *draft) { d.by(rsaSigner()) }, ""},
		{"a digest algorithm without parameters", func(p *program) { p.algorithm = identifier(sha2(1)) }, nil, ""},

		{"a message about plain data", nil, func(d *draft) { *d = *draftOf(signer()) }, "structure"},
		{"a message about plain data elsewhere", nil, func(d *draft) { *d = *draftOf(signer()); d.detached = true }, "type"},
		{"one that says it is about plain data", nil, func(d *draft) { d.set(idContentType, tlv(tagOID, idData)) }, "attributes"},
		{"no content", nil, func(d *draft) { d.eContentType = tlv(tagOID, idIndirectData) }, "structure"},
		{"an octet string", nil, func(d *draft) {
			d.eContentType, d.detached = tlv(tagOID, idIndirectData), false
		}, "structure"},
		{"about a file of another kind", func(p *program) { p.kind = tlv(tagOID, idData) }, nil, "type"},
		{"about nothing", func(p *program) { p.kind = nil }, nil, "structure"},
		{"a digest of another algorithm", func(p *program) { p.algorithm, p.digest = identifier(sha2(2)), make([]byte, 48) }, nil, "algorithm"},
		{"a digest that is longer than its algorithm's", func(p *program) { p.digest = append(p.digest, 0) }, nil, "algorithm"},
		{"no digest", func(p *program) { p.digest = nil }, nil, "algorithm"},
		{"SHA-1", func(p *program) {
			p.algorithm, p.digest = identifier([]byte{0x2b, 0x0e, 0x03, 0x02, 0x1a}), make([]byte, 20)
		}, nil, "algorithm"},
		{"something behind the digest", func(p *program) { p.afterDigest = []byte{tagNull, 0} }, nil, "structure"},
		{"something behind it all", func(p *program) { p.after = []byte{tagNull, 0} }, nil, "structure"},
		{"another content than what is signed", nil, func(d *draft) {
			d.eContentType[len(d.eContentType)-1] ^= 1
		}, "digest"},
		{"content hashed with its header, as in CMS", nil, func(d *draft) {
			sequence := d.eContentType[len(tlv(tagOID, idIndirectData))+2:]
			d.set(idMessageDigest, tlv(tagOctetString, sum(crypto.SHA256, sequence)))
		}, "digest"},
		{"a wrong signature", nil, func(d *draft) { d.signWith(rsaSigner(), crypto.SHA256) }, "signature"},
		{"a time stamp", nil, func(d *draft) { d.unsigned = tlv(tagContext1) }, "unsigned"},
	} {
		p := aProgram()
		if c.change != nil {
			c.change(p)
		}
		d := p.draft()
		if c.after != nil {
			c.after(d)
		}
		s, err := ReadAuthenticode(d.der())
		var r *Refusal
		switch {
		case c.code != "":
			if !errors.As(err, &r) || r.Code != c.code {
				t.Errorf("%s: got %v, want a refusal with the code %s", c.name, err, c.code)
			}
		case err != nil:
			t.Errorf("%s: refused: %v", c.name, err)
		case s.Check(want) != nil || s.Check(make([]byte, 32)) == nil || s.Content != nil || s.Signer == nil:
			t.Errorf("%s: read as %+v, want a signature about %x", c.name, s, want)
		}
	}
	if _, err := ReadSigned(aProgram().draft().der()); err == nil {
		t.Error("the signature of a program passed for a signed message")
	}
}

func TestNoFlippedBitOfASignatureIsBelieved(t *testing.T) {
	p := aProgram()
	der := p.draft().der()
	for i := range der {
		flipped := bytes.Clone(der)
		flipped[i] ^= 1 << (i % 8)
		if s, err := ReadAuthenticode(flipped); err == nil && (s.Check(p.digest) != nil || !bytes.Equal(s.Signer.RawSubjectPublicKeyInfo, signer().cert.RawSubjectPublicKeyInfo)) {
			t.Errorf("bit %d of byte %d flipped: believed about another program or signer", i%8, i)
		}
	}
}

// Whatever comes in: no panic, and either a refusal with a code or a signature about
// something.
func FuzzReadAuthenticode(f *testing.F) {
	f.Add(aProgram().draft().der())
	d := aProgram().draft()
	d.by(rsaSigner())
	f.Add(d.der())
	f.Add(draftOf(signer()).der())
	f.Fuzz(func(t *testing.T, der []byte) {
		s, err := ReadAuthenticode(der)
		if err != nil {
			var r *Refusal
			if !errors.As(err, &r) || r.Code == "" || s != nil {
				t.Fatalf("%v, %v, want nothing and a refusal with a code", s, err)
			}
			return
		}
		if s.Signer == nil || s.Content != nil || len(s.Digest) != s.Hash.Size() {
			t.Fatalf("believed: %+v", s)
		}
	})
}
