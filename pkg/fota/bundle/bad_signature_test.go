package bundle

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"math"
	"slices"
	"testing"
	"time"

	"birthmark/pkg/cms"
	"birthmark/pkg/fota"
	bt "birthmark/pkg/fota/bundle/bundletest"
)

// A workshop is where good bundles are spoilt.
type workshop struct {
	t      *testing.T
	pki    *bt.PKI
	device *device // that believes pki
	r      bt.Release
	made   []bad
}

// add puts a bundle on the list. A device is changed by change, if there is one.
func (w *workshop) add(stage fota.Stage, code, name string, b []byte, change func(*device)) {
	d := *w.device
	if change != nil {
		change(&d)
	}
	w.made = append(w.made, bad{name: name, stage: stage, code: code, bytes: b, on: &d})
}

// bent is a release whose signature is bent.
func (w *workshop) bent(change func(*bt.Message)) []byte {
	m := bt.Message{By: w.pki.Signer}
	change(&m)
	return w.r.With(w.t, m).Bytes()
}

// by is a release of another signer.
func (w *workshop) by(s *bt.Signer) []byte { return w.r.Parts(w.t, s).Bytes() }

func newWorkshop(t *testing.T) *workshop {
	t.Helper()
	pki := bt.NewPKI(t, "P-256", "P-256")
	w := &workshop{t: t, pki: pki, device: deviceOf(t, pki), r: bt.NewRelease("acme-gw", "1.1.0+sv2")}
	whole := w.by(pki.Signer)
	if _, err := w.device.judge(bytes.NewReader(whole), int64(len(whole))); err != nil {
		t.Fatalf("what is to be spoilt is not good: %v", err)
	}
	return w
}

func (w *workshop) containers() {
	good := w.r.Parts(w.t, w.pki.Signer)
	whole := good.Bytes()
	length := func(n uint64) []byte {
		return binary.BigEndian.AppendUint64(whole[:len(whole)-8:len(whole)-8], n)
	}
	n := uint64(len(good.Signature))
	for _, c := range []struct {
		name, code string
		b          []byte
	}{
		{"an empty file", "trailer", nil},
		{"seven bytes", "trailer", whole[:7]},
		{"a trailer of zeros", "unsigned", length(0)},
		{"a payload and no signature", "unsigned", append(slices.Clone(good.Data), make([]byte, 8)...)},
		{"a squashfs without anything", "unsigned", append(bytes.Clone(good.Data[:4096]), make([]byte, 4096)...)},
		{"a length of the whole file", "trailer", length(uint64(len(whole)))},
		{"a length of all but the trailer", "trailer", length(uint64(len(whole)) - 8)},
		{"a length beyond the limit", "trailer", length(signatureLimit + 1)},
		{"a length of 4 GiB and a bit", "trailer", length(1<<32 + n)},
		{"a negative length", "trailer", length(math.MaxUint64)},
		{"a length that overflows with the trailer", "trailer", length(math.MaxUint64 - 7)},
		{"a little-endian length", "trailer", length(n << 48)},
		{"the signature alone", "trailer", bt.Parts{Signature: good.Signature}.Bytes()},
		{"the last byte cut off", "trailer", whole[:len(whole)-1]},
		{"a byte more at the end", "trailer", append(bytes.Clone(whole), 0)},
	} {
		w.add(fota.StageContainer, c.code, c.name, c.b, nil)
	}
	// CVE-2026-34155: its signature is one over the beginning.
	p := w.plain()
	p.add(fota.StageContainer, "plain", "plain: 4 GiB, of which nobody signed the most", p.by(p.pki.Signer), nil)
	p.made[0].zeros = 1 << 32
	w.made = append(w.made, p.made...)
	w.add(fota.StageCMS, "trailing", "a length that is one too short", length(n-1), nil)
	w.add(fota.StageCMS, "der", "a length that is one too long", length(n+1), nil)
	w.add(fota.StageCMS, "der", "a length of one", length(1), nil)
}

func (w *workshop) messages() {
	rsa := bt.NewPKI(w.t, "P-256", "RSA-3072")
	onRSA := func(d *device) { d.trust = deviceOf(w.t, rsa).trust }
	foreign := bt.NewPKI(w.t, "P-256", "P-256")
	evil := []byte("[update]\ncompatible=acme-gw\nversion=9.9.9+sv9\n")
	digestOf := func(b []byte) []byte { h := crypto.SHA256.New(); h.Write(b); return h.Sum(nil) }
	time20 := bt.Attribute(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 5}, bt.TLV(0x17, []byte("260101000000Z")))

	for _, c := range []struct {
		name, code string
		change     func(*bt.Message)
		on         func(*device)
	}{
		{"enveloped instead of signed", "crypt", func(m *bt.Message) { m.OuterType = bt.OIDEnveloped }, nil},
		{"digested instead of signed (CVE-2020-10759)", "type", func(m *bt.Message) { m.OuterType = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 5} }, nil},
		{"plain data instead of signed", "type", func(m *bt.Message) { m.OuterType = bt.OIDData }, nil},
		{"content of another type", "type", func(m *bt.Message) { m.Type = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 1, 4} }, nil},
		{"signed data in signed data", "type", func(m *bt.Message) { m.Type = bt.OIDSignedData }, nil},
		{"version 3", "version", func(m *bt.Message) { m.Version = 3 }, nil},
		{"another manifest in it than was signed (CVE-2025-67903)", "digest", func(m *bt.Message) { m.Shown = evil }, nil},
		{"an empty manifest in it", "digest", func(m *bt.Message) { m.Shown = []byte{} }, nil},
		{"nobody signed (CVE-2020-10759)", "signers", func(m *bt.Message) { m.Signers = func([]byte) [][]byte { return nil } }, nil},
		{"the signer twice", "signers", func(m *bt.Message) { m.Signers = func(own []byte) [][]byte { return [][]byte{own, own} } }, nil},
		{"a second signer, of ours", "signers", func(m *bt.Message) {
			m.Signers = func(own []byte) [][]byte {
				o := *m
				o.By, o.Signers = foreign.Signer, nil
				return [][]byte{own, o.SignerInfo(w.t)}
			}
		}, nil},
		{"no attributes", "attributes", func(m *bt.Message) { m.NoAttributes = true }, nil},
		{"no contentType", "attributes", func(m *bt.Message) { m.Attributes = func(own [][]byte) [][]byte { return own[1:] } }, nil},
		{"no messageDigest", "attributes", func(m *bt.Message) { m.Attributes = func(own [][]byte) [][]byte { return own[:1] } }, nil},
		{"attributes, and none in them", "attributes", func(m *bt.Message) { m.Attributes = func(own [][]byte) [][]byte { return nil } }, nil},
		{"contentType twice", "attributes", func(m *bt.Message) {
			m.Attributes = func(own [][]byte) [][]byte { return [][]byte{own[0], own[0], own[1]} }
		}, nil},
		{"two messageDigests", "attributes", func(m *bt.Message) {
			m.Attributes = func(own [][]byte) [][]byte {
				return append(own, bt.Attribute(bt.OIDDigest, bt.TLV(0x04, bytes.Repeat([]byte{0xff}, 32))))
			}
		}, nil},
		{"a messageDigest of two values", "attributes", func(m *bt.Message) {
			m.Attributes = func(own [][]byte) [][]byte {
				d := bt.TLV(0x04, digestOf(evil))
				return [][]byte{own[0], bt.TLV(0x30, bt.OID(bt.OIDDigest), bt.TLV(0x31, d, d))}
			}
		}, nil},
		{"contentType of another content", "attributes", func(m *bt.Message) {
			m.Attributes = func(own [][]byte) [][]byte {
				return [][]byte{bt.Attribute(bt.OIDContentType, bt.OID(bt.OIDSignedData)), own[1]}
			}
		}, nil},
		{"attributes in another order", "attributes", func(m *bt.Message) {
			m.Attributes = func(own [][]byte) [][]byte { return [][]byte{own[1], own[0]} }
		}, nil},
		{"a short messageDigest", "attributes", func(m *bt.Message) {
			m.Attributes = func(own [][]byte) [][]byte {
				return [][]byte{own[0], bt.Attribute(bt.OIDDigest, bt.TLV(0x04, make([]byte, 20)))}
			}
		}, nil},
		{"messageDigest of something else", "digest", func(m *bt.Message) {
			m.Attributes = func(own [][]byte) [][]byte {
				return [][]byte{own[0], bt.Attribute(bt.OIDDigest, bt.TLV(0x04, digestOf(evil)))}
			}
		}, nil},
		{"attributes that were added after signing", "signature", func(m *bt.Message) {
			sign := *m.By
			m.Signature = func([]byte) []byte { o := bt.Message{By: &sign, Content: m.Content}; return o.RawSignature(w.t) }
			m.Attributes = func(own [][]byte) [][]byte { return [][]byte{own[0], time20, own[1]} }
		}, nil},
		{"attributes that are not signed", "unsigned", func(m *bt.Message) { m.Unsigned = [][]byte{time20} }, nil},
		{"SHA-1", "algorithm", func(m *bt.Message) { m.Hash = crypto.SHA1 }, nil},
		{"SHA-224", "algorithm", func(m *bt.Message) { m.Hash = crypto.SHA224 }, nil},
		{"SHA-1 by RSA", "algorithm", func(m *bt.Message) { m.By, m.Hash = rsa.Signer, crypto.SHA1 }, onRSA},
		{"MD5 by name", "algorithm", func(m *bt.Message) { m.DigestOID = bt.OIDMD5 }, nil},
		{"SHA-512 by name, and SHA-256", "attributes", func(m *bt.Message) { m.DigestOID = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3} }, nil},
		{"a signature with SHA-384 by name", "algorithm", func(m *bt.Message) { m.SignatureOID = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3} }, nil},
		{"a signature by RSA by name", "algorithm", func(m *bt.Message) { m.SignatureOID = bt.OIDRSA }, nil},
		{"a signature by Ed25519 by name", "algorithm", func(m *bt.Message) { m.SignatureOID = asn1.ObjectIdentifier{1, 3, 101, 112} }, nil},
		{"RSASSA-PSS without parameters", "algorithm", func(m *bt.Message) { m.By, m.SignatureOID = rsa.Signer, bt.OIDPSS }, onRSA},
		{"a signature of zeros", "signature", func(m *bt.Message) {
			m.Signature = func(s []byte) []byte { return bt.TLV(0x30, bt.Int(0), bt.Int(0)) }
		}, nil},
		{"an empty signature", "signature", func(m *bt.Message) { m.Signature = func([]byte) []byte { return nil } }, nil},
		{"a bit of the signature changed", "signature", func(m *bt.Message) {
			m.Signature = func(s []byte) []byte { s[len(s)-1] ^= 1; return s }
		}, nil},
		{"a byte after the signature", "signature", func(m *bt.Message) {
			m.Signature = func(s []byte) []byte { return append(s, 0) }
		}, nil},
		{"an RSA signature one byte short", "signature", func(m *bt.Message) {
			m.By, m.Signature = rsa.Signer, func(s []byte) []byte { return s[1:] }
		}, onRSA},
		{"an RSA signature of ones", "signature", func(m *bt.Message) {
			m.By, m.Signature = rsa.Signer, func(s []byte) []byte { return bytes.Repeat([]byte{0xff}, len(s)) }
		}, onRSA},
		{"no certificates", "certificates", func(m *bt.Message) { m.Certificates = [][]byte{} }, nil},
		{"the issuer's certificate only", "signer", func(m *bt.Message) { m.Certificates = [][]byte{w.pki.Issuing.Cert.Raw} }, nil},
		{"the signer's certificate twice", "certificates", func(m *bt.Message) {
			m.Certificates = [][]byte{w.pki.Signer.Cert.Raw, w.pki.Signer.Cert.Raw}
		}, nil},
		{"a certificate that is none", "certificates", func(m *bt.Message) {
			m.Certificates = [][]byte{w.pki.Signer.Cert.Raw, bt.TLV(0x30, bt.Int(1))}
		}, nil},
		{"seventeen certificates", "certificates", func(m *bt.Message) {
			for range 17 {
				m.Certificates = append(m.Certificates, bt.Issue(w.t, nil, w.pki.Signer.Key, "Other", nil).Cert.Raw)
			}
		}, nil},
		{"CRLs of the sender's choice", "crls", func(m *bt.Message) { m.CRLs = [][]byte{bt.CRL(w.t, w.pki.Issuing, nil)} }, nil},
		{"the signer named by a key identifier", "sid", func(m *bt.Message) { m.SignerID = func([]byte) []byte { return bt.TLV(0x80, []byte("key")) } }, nil},
		{"the signer named as somebody else", "signer", func(m *bt.Message) {
			m.SignerID = func([]byte) []byte { return bt.TLV(0x30, w.pki.Root.Cert.RawSubject, bt.Int(1)) }
		}, nil},
		{"signed by another key", "signature", func(m *bt.Message) {
			m.By = &bt.Signer{Key: bt.Key(w.t, "P-256", "thief"), Cert: w.pki.Signer.Cert, Above: w.pki.Signer.Above}
		}, nil},
	} {
		w.add(fota.StageCMS, c.code, c.name, w.bent(c.change), c.on)
	}

	good := w.r.Parts(w.t, w.pki.Signer)
	signature := func(b []byte) []byte {
		return bt.Parts{Data: good.Data, Tree: good.Tree, Signature: b}.Bytes()
	}
	w.add(fota.StageCMS, "trailing", "a byte after the message", signature(append(bytes.Clone(good.Signature), 0)), nil)
	w.add(fota.StageCMS, "trailing", "the message twice", signature(slices.Concat(good.Signature, good.Signature)), nil)
	w.add(fota.StageCMS, "der", "the message cut short", signature(good.Signature[:len(good.Signature)-20]), nil)
	w.add(fota.StageCMS, "der", "an indefinite length", signature(append(append([]byte{0x30, 0x80}, good.Signature[4:]...), 0, 0)), nil)
	w.add(fota.StageCMS, "der", "a length in more bytes than it needs", signature(slices.Concat([]byte{0x30, 0x83, 0}, good.Signature[2:])), nil)
	w.add(fota.StageCMS, "der", "noise", signature(bt.Noise(1500, "noise")), nil)
	deep := []byte{}
	for range 200 {
		deep = bt.TLV(0x30, deep)
	}
	w.add(fota.StageCMS, "der", "two hundred sequences in each other", signature(deep), nil)
	w.add(fota.StageCMS, "structure", "an empty sequence", signature([]byte{0x30, 0}), nil)

	// The signature over attributes is right, and they are shown as the content
	// (RFC 8933 and the like).
	trick := bt.Message{By: w.pki.Signer, Content: []byte("x")}
	attributes := trick.SignedAttributes()
	w.add(fota.StageCMS, "attributes", "attributes shown as the content", w.bent(func(m *bt.Message) {
		m.Shown, m.NoAttributes = attributes, true
		m.Signature = func([]byte) []byte { return trick.RawSignature(w.t) }
	}), nil)
}

func (w *workshop) signers() {
	key := func(kind, holder string) crypto.Signer { return bt.Key(w.t, kind, holder) }
	leaf := func(change func(*x509.Certificate)) []byte {
		return w.by(bt.Issue(w.t, w.pki.Issuing, w.pki.Signer.Key, "Releases", change))
	}
	w.add(fota.StageChain, "anchors", "nobody is trusted", w.by(w.pki.Signer), func(d *device) { d.trust.Anchors = nil })
	w.add(fota.StageChain, "anchors", "a trust of nothing", w.by(w.pki.Signer), func(d *device) { d.trust = cms.Trust{Build: build} })
	w.add(fota.StageChain, "issuers", "no issuer is pinned", w.by(w.pki.Signer), func(d *device) { d.trust.Issuers = nil })

	strangers := bt.NewPKI(w.t, "P-256", "P-256")
	strangers.Root = bt.Issue(w.t, nil, key("P-256", "other root"), "Code Root", bt.CA)
	strangers.Issuing = bt.Issue(w.t, strangers.Root, key("P-256", "other issuing"), "Code Signing CA", bt.CA)
	strangers.Signer = bt.Issue(w.t, strangers.Issuing, key("P-256", "other signer"), "Releases", nil)
	w.add(fota.StageChain, "issuer", "a maker of the same names", w.by(strangers.Signer), nil)
	w.add(fota.StageChain, "untrusted", "a pinned issuer below another root", w.by(strangers.Signer), func(d *device) {
		d.trust.Issuers = append(slices.Clone(d.trust.Issuers), strangers.Issuing.Cert)
	})
	w.add(fota.StageChain, "issuer", "a certificate by itself", w.by(bt.Issue(w.t, nil, w.pki.Signer.Key, "Releases", nil)), nil)

	// A CA for something else, below the same root, comes with the message.
	sibling := bt.Issue(w.t, w.pki.Root, key("P-256", "sibling"), "Web CA", bt.CA)
	w.add(fota.StageChain, "issuer", "a sibling of the issuer (CVE-2026-109399)", w.by(bt.Issue(w.t, sibling, w.pki.Signer.Key, "Releases", nil)), nil)
	below := bt.Issue(w.t, w.pki.Issuing, key("P-256", "below"), "Team CA", bt.CA)
	w.add(fota.StageChain, "issuer", "a CA below the issuer", w.by(bt.Issue(w.t, below, w.pki.Signer.Key, "Releases", nil)), nil)
	w.add(fota.StageChain, "issuer", "the root signs for a signer", w.by(bt.Issue(w.t, w.pki.Root, w.pki.Signer.Key, "Releases", nil)), nil)
	w.add(fota.StageChain, "issuer", "a signer signs for another", w.by(bt.Issue(w.t, w.pki.Signer, key("P-256", "friend"), "Friend", nil)), nil)

	w.add(fota.StageChain, "keyusage", "the issuing CA signs itself", w.by(w.pki.Issuing), nil)
	w.add(fota.StageChain, "keyusage", "the root signs itself", w.by(w.pki.Root), nil)
	w.add(fota.StageChain, "keyusage", "a signer whose key is for encryption", leaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), nil)
	w.add(fota.StageChain, "keyusage", "a signer whose key is for certificates, too", leaf(func(c *x509.Certificate) {
		c.KeyUsage |= x509.KeyUsageCertSign
	}), nil)
	w.add(fota.StageChain, "keyusage", "a signer without a key usage", leaf(func(c *x509.Certificate) { c.KeyUsage = 0 }), nil)
	w.add(fota.StageChain, "eku", "a signer for no purpose", leaf(func(c *x509.Certificate) { c.ExtKeyUsage = nil }), nil)
	w.add(fota.StageChain, "eku", "a signer for any purpose", leaf(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }), nil)
	w.add(fota.StageChain, "eku", "a signer for any purpose and this one", leaf(func(c *x509.Certificate) {
		c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageAny)
	}), nil)
	w.add(fota.StageChain, "eku", "a signer of mail", leaf(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection} }), nil)
	w.add(fota.StageChain, "eku", "a web server", leaf(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), nil)
	mail := bt.Issue(w.t, w.pki.Root, key("P-256", "mail"), "Mail CA", func(c *x509.Certificate) {
		bt.CA(c)
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection}
	})
	w.add(fota.StageChain, "eku", "a pinned CA for mail", w.by(bt.Issue(w.t, mail, w.pki.Signer.Key, "Releases", nil)), func(d *device) {
		d.trust.Issuers = append(slices.Clone(d.trust.Issuers), mail.Cert)
	})
	w.add(fota.StageChain, "expired", "a signer that is over", leaf(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) }), nil)
	w.add(fota.StageChain, "expired", "a signer that has not begun", leaf(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }), nil)
	old := bt.Issue(w.t, w.pki.Root, key("P-256", "old"), "Old CA", func(c *x509.Certificate) {
		bt.CA(c)
		c.NotAfter = time.Now().Add(-time.Hour)
	})
	w.add(fota.StageChain, "expired", "an issuer that is over", w.by(bt.Issue(w.t, old, w.pki.Signer.Key, "Releases", nil)), func(d *device) {
		d.trust.Issuers = append(slices.Clone(d.trust.Issuers), old.Cert)
	})

	crls := func(issuing []byte) func(*device) {
		return func(d *device) {
			d.trust.CRLs = []*x509.RevocationList{readCRL(w.t, bt.CRL(w.t, w.pki.Root, nil)), readCRL(w.t, issuing)}
		}
	}
	stale := func(l *x509.RevocationList) {
		l.ThisUpdate, l.NextUpdate = time.Now().Add(-48*time.Hour), time.Now().Add(-24*time.Hour)
	}
	w.add(fota.StageChain, "crl", "no CRL at all", w.by(w.pki.Signer), func(d *device) { d.trust.CRLs = nil })
	w.add(fota.StageChain, "crl", "no CRL of the issuer", w.by(w.pki.Signer), func(d *device) { d.trust.CRLs = d.trust.CRLs[:1] })
	w.add(fota.StageChain, "crl", "no CRL of the root", w.by(w.pki.Signer), func(d *device) { d.trust.CRLs = d.trust.CRLs[1:] })
	w.add(fota.StageChain, "crl", "a CRL of a stranger of the same name", w.by(w.pki.Signer), crls(bt.CRL(w.t, strangers.Issuing, nil)))
	w.add(fota.StageChain, "stale", "a CRL that is over", w.by(w.pki.Signer), crls(bt.CRL(w.t, w.pki.Issuing, stale)))
	w.add(fota.StageChain, "revoked", "a signer that was revoked", w.by(w.pki.Signer), crls(bt.CRL(w.t, w.pki.Issuing, nil, w.pki.Signer)))
	w.add(fota.StageChain, "revoked", "a signer that was revoked by a CRL that is over", w.by(w.pki.Signer), crls(bt.CRL(w.t, w.pki.Issuing, stale, w.pki.Signer)))
	w.add(fota.StageChain, "revoked", "an issuer that was revoked", w.by(w.pki.Signer), func(d *device) {
		d.trust.CRLs = []*x509.RevocationList{readCRL(w.t, bt.CRL(w.t, w.pki.Root, nil, w.pki.Issuing)), readCRL(w.t, bt.CRL(w.t, w.pki.Issuing, nil))}
	})
	for _, kind := range []string{"P-224", "RSA-1024"} {
		weak := bt.Issue(w.t, w.pki.Issuing, key(kind, "weak"), "Releases", nil)
		w.add(fota.StageCMS, "key", "a signer with a "+kind+" key", w.by(weak), nil)
	}
}
