package cms

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A forgery is a message that should not be believed: where and why it is refused. Each
// of checks alone stops it, as its twin shows: with all of them switched off it is
// believed, with all but one it is not. Those without checks cannot be read at all.
type forgery struct {
	name, stage, code string
	change            func(*draft)
	checks            []string
}

// without switches checks off until restore is called. It is there only in the build
// of TestEveryForgeryHasATwin.
var without func(checks ...string) (restore func())

var (
	signer    = sync.OnceValue(func() *party { return house().firmware.signer("Signer", keys["P-256"]()) })
	rsaSigner = sync.OnceValue(func() *party { return house().firmware.signer("RSA signer", keys["RSA-2048"]()) })
)

func (f *forgery) try() (stage, code string, err error) {
	d := draftOf(signer())
	f.change(d)
	stage, err = judge(d.der(), d.shown, d.trust)
	var r *Refusal
	if err != nil && !errors.As(err, &r) {
		return stage, "not a refusal", err
	}
	if r != nil {
		code = r.Code
	}
	return stage, code, err
}

func TestForgeriesAreRefused(t *testing.T) {
	for _, f := range forgeries() {
		t.Run(f.name, func(t *testing.T) {
			stage, code, err := f.try()
			if stage != f.stage || code != f.code {
				t.Fatalf("at stage %q with code %q: %v, want stage %q, code %q", stage, code, err, f.stage, f.code)
			}
			if without == nil || f.checks == nil {
				return
			}
			restore := without(f.checks...)
			_, _, err = f.try()
			restore()
			if err != nil {
				t.Errorf("refused without %q, so they are not what stops it: %v", f.checks, err)
			}
			for i, check := range f.checks {
				if len(f.checks) == 1 {
					break
				}
				restore := without(slices.Delete(slices.Clone(f.checks), i, i+1)...)
				_, _, err := f.try()
				restore()
				if err == nil {
					t.Errorf("believed with %q as the only check: it does not stop it", check)
				}
			}
		})
	}
	if n := len(forgeries()); n < 60 {
		t.Errorf("%d forgeries, want 60 at least", n)
	} else if without != nil && !t.Failed() {
		t.Logf("%d forgeries, each with its twin", n)
	}
}

// Every code that the documentation of Refusal lists is in use, and no other.
func TestCodes(t *testing.T) {
	source, err := os.ReadFile("signed.go")
	must(err)
	_, text, _ := strings.Cut(string(source), "// A Refusal says")
	text, _, _ = strings.Cut(text, "type Refusal")
	cms, chain, _ := strings.Cut(text, "[Trust.Verify]")
	for stage, text := range map[string]string{"cms": cms, "chain": chain} {
		var documented []string
		for line := range strings.Lines(text) {
			if line, ok := strings.CutPrefix(line, "//\t"); ok {
				words, _, _ := strings.Cut(line, "  ")
				documented = append(documented, strings.Fields(words)...)
			}
		}
		var used []string
		for _, f := range forgeries() {
			if f.stage == stage {
				used = append(used, f.code)
			}
		}
		slices.Sort(documented)
		slices.Sort(used)
		if used = slices.Compact(used); !slices.Equal(used, documented) {
			t.Errorf("stage %q: forgeries are refused with the codes\n%q, documented are\n%q", stage, used, documented)
		}
	}
}

var forgeries = sync.OnceValue(func() (list []forgery) {
	stage := "cms"
	add := func(code, name string, change func(*draft), checks ...string) {
		list = append(list, forgery{name, stage, code, change, checks})
	}
	h := house()

	// The message as a whole.
	add("size", "a megabyte of manifest", func(d *draft) { d.embed(bytes.Repeat([]byte("#"), SignedLimit)) }, "size")
	add("trailing", "a byte after the end", wrapped(func(der []byte) []byte { return append(der, 0) }), "trailing")
	add("trailing", "a second message after the end", wrapped(func(der []byte) []byte { return slices.Concat(der, der) }), "trailing")
	add("der", "nothing", wrapped(func(der []byte) []byte { return nil }))
	add("der", "half of a message", wrapped(func(der []byte) []byte { return der[:len(der)/2] }))
	add("der", "BER with an indefinite length", wrapped(func(der []byte) []byte {
		return slices.Concat([]byte{tagSequence, 0x80}, der[4:], []byte{0, 0})
	}))
	add("der", "BER somewhere in an attribute", func(d *draft) {
		d.set([]byte{0x2a, 3}, []byte{tagOctetString, 0x81, 1, 0})
	}, "der")
	add("der", "elements that nest deeper than any need", func(d *draft) { d.set([]byte{0x2a, 3}, nested(DepthLimit, tagSequence)) }, "der")
	add("type", "another content type, for the same bytes", func(d *draft) { d.contentType = tlv(tagOID, []byte{0x2a, 3}) }, "content type", "opinion")
	add("type", "content that is not plain data", func(d *draft) { d.eContentType = tlv(tagOID, idSignedData) }, "eContentType")
	add("type", "content that is not plain data, as signed", func(d *draft) {
		d.eContentType = tlv(tagOID, idSignedData)
		d.set(idContentType, tlv(tagOID, idSignedData))
	}, "eContentType", "contentType")
	add("version", "version 3, of other kinds of messages", func(d *draft) { d.version[2] = 3 }, "version")
	add("structure", "no version", func(d *draft) { d.version = nil })
	add("structure", "two digest algorithms", func(d *draft) {
		d.digests = tlv(tagSet, identifier(sha2(1)), identifier(sha2(2)))
	}, "digest algorithms")
	add("structure", "no digest algorithm", func(d *draft) { d.digests = tlv(tagSet) })
	add("structure", "something after the signers", func(d *draft) { d.after = tlv(tagSet) }, "end of SignedData")
	add("structure", "something after the content", func(d *draft) { d.afterContent = tlv(tagOctetString) }, "end of eContent")
	add("structure", "a bare certificate", wrapped(func([]byte) []byte { return h.root.cert.Raw }))
	add("crls", "CRLs of the sender's choice", func(d *draft) { d.crls = tlv(tagContext1, h.firmware.revokes(nil).Raw) }, "crls")

	// Certificates in it.
	add("certificates", "none", func(d *draft) { d.certs = nil })
	add("certificates", "seventeen", func(d *draft) {
		for len(d.certs) <= signedCertificateLimit {
			d.certs = append(d.certs, h.root.signer("Another", keys["P-256"]()).cert.Raw)
		}
	}, "certificates")
	add("certificates", "one twice", func(d *draft) { d.certs = append(d.certs, d.certs[1]) }, "twice")
	add("certificates", "an attribute certificate", func(d *draft) { d.certs = append(d.certs, tlv(0xa2, tlv(tagInteger, []byte{1}))) })
	add("certificates", "one that is none", func(d *draft) { d.certs = append(d.certs, tlv(tagSequence)) })
	add("key", "an RSA key of 1024 bits", as(h.firmware.signer("Short", shortKey())), "key", "keys of the chain")
	add("key", "an RSA key of more than 8192 bits", as(h.firmware.signer("Long", longKey())), "key", "keys of the chain")
	add("key", "a weak key that nobody uses", func(d *draft) {
		d.certs = append(d.certs, h.root.issue("P-224 CA", ecKey(elliptic.P224()), nil).cert.Raw)
	}, "key")
	add("key", "an Ed25519 key that nobody uses", func(d *draft) {
		d.certs = append(d.certs, h.root.issue("Ed25519 CA", edKey(), nil).cert.Raw)
	}, "key")

	// Who signed it, by its own account.
	add("signers", "nobody", wrappedAround(func(d *draft) []byte { return d.around(tlv(tagSet)) }))
	add("signers", "two", func(d *draft) { d.more = slices.Clone(signerOf(d)) }, "one signer", "opinion")
	add("sid", "named by a key identifier", func(d *draft) { d.sid, d.infoVersion = tlv(0x80, h.root.cert.SubjectKeyId), tlv(tagInteger, []byte{3}) })
	add("version", "a signer of version 3, named as in version 1", func(d *draft) { d.infoVersion[2] = 3 }, "version of SignerInfo")
	add("signer", "somebody who is not in the message", func(d *draft) { d.certs[0] = h.other.cert.Raw })
	add("signer", "the right number, of another issuer", func(d *draft) {
		d.sid = tlv(tagSequence, h.other.cert.RawSubject, tlv(tagInteger, integer(signer().cert.SerialNumber)))
	})
	add("signer", "a serial number with a zero before it", func(d *draft) {
		d.sid = tlv(tagSequence, signer().cert.RawIssuer, tlv(tagInteger, append([]byte{0, 0}, integer(signer().cert.SerialNumber)...)))
	})
	add("signer", "two certificates that could be his", func(d *draft) {
		twin := h.other.issue("Twin", keys["P-256"](), func(c *x509.Certificate) {
			c.SerialNumber = signer().cert.SerialNumber
		}, x509.ExtKeyUsageCodeSigning)
		d.certs = [][]byte{renamedIssuer(twin.cert, h.other.cert, h.firmware.cert), d.certs[0], d.certs[1]}
	}, "one signer's certificate", "opinion")
	add("unsigned", "attributes that are not signed", func(d *draft) { d.unsigned = tlv(tagContext1, attribute([]byte{0x2a, 3}, tlv(tagSet))) }, "unsigned")
	add("structure", "something after the signature", func(d *draft) { d.unsigned = tlv(tagSet) })

	// Signed attributes.
	add("attributes", "none: the signature is over the content", func(d *draft) { withoutAttributes(d) })
	add("attributes", "none: the content is another message's attributes, and the signature is right", attributesAsContent)
	add("attributes", "an empty set", func(d *draft) { d.attributes = nil })
	add("attributes", "no contentType", func(d *draft) { d.drop(idContentType) }, "mandatory")
	add("attributes", "no messageDigest", func(d *draft) { d.drop(idMessageDigest) }, "mandatory", "digest length", "digest", "opinion")
	add("attributes", "contentType of something else", func(d *draft) { d.set(idContentType, tlv(tagOID, idSignedData)) }, "contentType")
	add("attributes", "contentType with two values", func(d *draft) { d.set(idContentType, tlv(tagOID, idData), tlv(tagOID, idSignedData)) }, "one contentType")
	add("attributes", "contentType that is a string", func(d *draft) { d.set(idContentType, tlv(tagOctetString, idData)) })
	add("attributes", "messageDigest with two values", func(d *draft) {
		d.set(idMessageDigest, tlv(tagOctetString, sum(crypto.SHA256, d.content)), tlv(tagOctetString, make([]byte, 32)))
	}, "one messageDigest")
	add("attributes", "messageDigest twice, the second of other content", func(d *draft) {
		d.attributes = append(d.attributes, attribute(idMessageDigest, tlv(tagOctetString, bytes.Repeat([]byte{0xff}, 32))))
		d.content = []byte("anything")
		d.set(idMessageDigest, tlv(tagOctetString, make([]byte, 32)))
		d.attributes = append(d.attributes, attribute(idMessageDigest, tlv(tagOctetString, sum(crypto.SHA256, d.content))))
	}, "attribute twice", "digest", "opinion")
	add("attributes", "messageDigest of another length", func(d *draft) { d.set(idMessageDigest, tlv(tagOctetString, make([]byte, 20))) }, "digest length", "digest")
	add("attributes", "signingTime twice", func(d *draft) {
		d.attributes = append(d.attributes, attribute(idSigningTime, tlv(tagUTCTime, []byte("260101000000Z"))))
	}, "attribute twice")
	add("attributes", "one without a value", func(d *draft) { d.set([]byte{0x2a, 3}) }, "value")
	add("attributes", "one with something after its values", func(d *draft) {
		d.attributes = append(d.attributes, tlv(tagSequence, tlv(tagOID, []byte{0x2a, 3}), tlv(tagSet, tlv(tagSet)), tlv(tagSet)))
	})
	add("ambiguous", "one whose type is no object identifier", func(d *draft) { d.set(nil, tlv(tagSet)) }, "opinion")
	add("attributes", "in another order than DER's", func(d *draft) {
		slices.SortFunc(d.attributes, bytes.Compare)
		slices.Reverse(d.attributes)
		d.keepOrder = true
	}, "order")

	// Algorithms.
	add("algorithm", "SHA-1", byHash(crypto.SHA1, idSHA1, pkcs1(5)), "hash")
	add("algorithm", "MD5", byHash(crypto.MD5, idMD5, pkcs1(4)), "hash")
	add("algorithm", "a digest algorithm with parameters", func(d *draft) {
		d.digestAlgorithm = identifier(sha2(1), tlv(tagOctetString))
	}, "digest parameters")
	add("algorithm", "another digest algorithm for the message than for its signer", func(d *draft) { d.digests = tlv(tagSet, identifier(sha2(3))) }, "same digest")
	add("algorithm", "ECDSA said to be with another hash", func(d *draft) { d.signatureAlgorithm = identifier(ecdsaWithSHA2(4)) }, "ECDSA algorithm")
	add("algorithm", "ECDSA with parameters", func(d *draft) { d.signatureAlgorithm = identifier(ecdsaWithSHA2(2), []byte{tagNull, 0}) }, "ECDSA algorithm")
	add("algorithm", "an ECDSA key, said to be RSA", func(d *draft) { d.signatureAlgorithm = identifier(idRSA, []byte{tagNull, 0}) }, "ECDSA algorithm")
	add("algorithm", "RSA said to be with another hash", func(d *draft) {
		d.by(rsaSigner())
		d.signatureAlgorithm = identifier(pkcs1(13), []byte{tagNull, 0})
	}, "RSA algorithm")
	add("algorithm", "RSA with parameters", func(d *draft) {
		d.by(rsaSigner())
		d.signatureAlgorithm = identifier(idRSA, tlv(tagOctetString))
	}, "RSA algorithm")
	add("algorithm", "an RSA key, said to be ECDSA", func(d *draft) {
		d.by(rsaSigner())
		d.signatureAlgorithm = identifier(ecdsaWithSHA2(2))
	}, "RSA algorithm")
	add("algorithm", "a digest algorithm without a name", func(d *draft) { d.digestAlgorithm = tlv(tagSequence) })
	add("structure", "a signature algorithm without a name", func(d *draft) { d.signatureAlgorithm = tlv(tagSequence) })
	salt := tlv(tagInteger, []byte{32})
	add("algorithm", "RSASSA-PSS by its defaults, SHA-1", byPSS(32, nil, nil, nil, nil))
	add("algorithm", "RSASSA-PSS with another hash", byPSS(32, identifier(sha2(3)), mgf1(sha2(1)), salt, nil), "PSS hash")
	add("algorithm", "RSASSA-PSS with another hash in MGF1", byPSS(32, identifier(sha2(1)), mgf1(sha2(3)), salt, nil), "PSS hash")
	add("algorithm", "RSASSA-PSS with SHA-1 in MGF1", byPSS(32, identifier(sha2(1)), mgf1(idSHA1), salt, nil))
	add("algorithm", "RSASSA-PSS with another generator of masks", byPSS(32, identifier(sha2(1)), identifier([]byte{0x2a, 3}, identifier(sha2(1))), salt, nil), "MGF1")
	add("algorithm", "RSASSA-PSS with its trailer spelled out", byPSS(32, identifier(sha2(1)), mgf1(sha2(1)), salt, tlv(tagInteger, []byte{1})), "PSS trailer")
	add("algorithm", "RSASSA-PSS with less salt than digest", byPSS(20, identifier(sha2(1)), mgf1(sha2(1)), tlv(tagInteger, []byte{20}), nil), "salt")
	add("algorithm", "RSASSA-PSS without salt", byPSS(32, identifier(sha2(1)), mgf1(sha2(1)), tlv(tagInteger, []byte{0}), nil))
	add("algorithm", "RSASSA-PSS with less than no salt", byPSS(32, identifier(sha2(1)), mgf1(sha2(1)), tlv(tagInteger, []byte{0xe0}), nil))
	add("algorithm", "RSASSA-PSS with more salt than there is room for", byPSS(32, identifier(sha2(1)), mgf1(sha2(1)), tlv(tagInteger, []byte{0, 0xdf}), nil))
	add("algorithm", "RSASSA-PSS with salt without measure", byPSS(32, identifier(sha2(1)), mgf1(sha2(1)), tlv(tagInteger, []byte{0x7f, 0xff, 0xff, 0xff}), nil))

	// The signature, and what it is of.
	broken := func(d *draft) {
		sign := d.sign
		d.sign = func(attributes []byte) []byte { return sign(append(attributes, 0)) }
	}
	add("signature", "ECDSA, of something else", broken, "ECDSA")
	add("signature", "RSA, of something else", func(d *draft) { d.by(rsaSigner()); broken(d) }, "RSA")
	add("signature", "RSASSA-PSS, of something else", func(d *draft) { d.byPSS(rsaSigner(), 32); broken(d) }, "PSS")
	add("signature", "RSASSA-PSS, with other salt than it says", byPSS(40, identifier(sha2(1)), mgf1(sha2(1)), salt, nil), "PSS")
	add("signature", "by another key than the certificate's", func(d *draft) {
		d.signWith(&party{ecKey(elliptic.P256()), nil}, crypto.SHA256)
	}, "ECDSA")
	add("signature", "an empty one", func(d *draft) { d.sign = func([]byte) []byte { return nil } }, "ECDSA")
	add("digest", "other content", func(d *draft) { d.content = []byte("[update]\ncompatible=others\n") }, "digest")
	add("digest", "no content at all, but not detached", func(d *draft) { d.content = nil }, "digest")
	add("digest", "a detached signature, of other content", func(d *draft) { d.detached, d.shown = true, []byte("squashfs") }, "digest")

	stage = "chain"
	forgedChains(add)
	forgedCRLs(add)
	return list
})

// embed makes other content right in every way.
func (d *draft) embed(content []byte) {
	d.content = content
	d.set(idMessageDigest, tlv(tagOctetString, sum(crypto.SHA256, content)))
}

func wrapped(wrap func(der []byte) []byte) func(*draft) {
	return func(d *draft) { d.wrap = wrap }
}

func wrappedAround(message func(*draft) []byte) func(*draft) {
	return func(d *draft) {
		der := message(d)
		d.wrap = func([]byte) []byte { return der }
	}
}

func as(p *party) func(*draft) { return func(d *draft) { d.by(p) } }

func byPSS(salt int, hash, mgf, length, trailer []byte) func(*draft) {
	return func(d *draft) {
		d.byPSS(rsaSigner(), salt)
		d.signatureAlgorithm = pss(hash, mgf, length, trailer)
	}
}

var (
	idSHA1 = []byte{0x2b, 0x0e, 0x03, 0x02, 0x1a}
	idMD5  = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x05}

	shortKey = sync.OnceValue(func() crypto.Signer { return rsaKey(1024) })
	longKey  = sync.OnceValue(func() crypto.Signer { return newManyPrimes(rsaMost + 1) })
)

// byHash has the RSA signer use another hash for everything.
func byHash(hash crypto.Hash, id, with []byte) func(*draft) {
	return func(d *draft) {
		d.by(rsaSigner())
		d.digests, d.digestAlgorithm = tlv(tagSet, identifier(id)), identifier(id)
		d.signatureAlgorithm = identifier(with, []byte{tagNull, 0})
		d.set(idMessageDigest, tlv(tagOctetString, sum(hash, d.content)))
		d.signWith(rsaSigner(), hash)
	}
}

// signerOf is a SignerInfo such as a draft's own.
func signerOf(d *draft) []byte {
	set := slices.Concat(d.attributes...)
	return tlv(tagSequence, d.infoVersion, d.sid, d.digestAlgorithm, tlv(tagContext0, set), d.signatureAlgorithm,
		tlv(tagOctetString, d.sign(tlv(tagSet, set))))
}

// withoutAttributes is a message whose signature is over its content.
func withoutAttributes(d *draft) (signature []byte) {
	signature = d.sign(d.content)
	der := d.around(tlv(tagSet, tlv(tagSequence, d.infoVersion, d.sid, d.digestAlgorithm, d.signatureAlgorithm, tlv(tagOctetString, signature))))
	d.wrap = func([]byte) []byte { return der }
	return signature
}

// attributesAsContent shows the attributes of a message as content that was signed
// without attributes: no key is needed for that, and the signature is right.
func attributesAsContent(d *draft) {
	slices.SortFunc(d.attributes, bytes.Compare)
	d.content = tlv(tagSet, d.attributes...)
	if signature := withoutAttributes(d); !verifies(signer().cert, d.content, signature) {
		panic("the signature is wrong, so the message proves nothing")
	}
}

// renamedIssuer is a certificate with another issuer in it than signed it.
func renamedIssuer(c, from, to *x509.Certificate) []byte {
	var r reader
	raw := c.Raw
	cert := r.open(&raw, tagSequence, "Certificate")
	tbs := r.open(&cert, tagSequence, "TBSCertificate")
	must(r.err)
	return tlv(tagSequence, tlv(tagSequence, bytes.Replace(tbs, from.RawSubject, to.RawSubject, 1)), cert)
}

// forgedChains are right messages of signers that may not sign.
func forgedChains(add func(code, name string, change func(*draft), checks ...string)) {
	h := house()
	code := x509.ExtKeyUsageCodeSigning
	leaf := func(change func(*x509.Certificate), usage ...x509.ExtKeyUsage) func(*draft) {
		return as(h.firmware.issue("Leaf", keys["P-256"](), change, usage...))
	}

	add("anchors", "no trust anchors", func(d *draft) { d.trust.Anchors, d.trust.Build = nil, anyChain(h.firmware.cert, h.root.cert) }, "anchors")
	add("issuers", "no pinned CA", func(d *draft) { d.trust.Issuers = nil }, "issuers", "pin", "what is offered", "pin in the chain")
	add("anchors", "no trust at all", func(d *draft) { d.trust = new(Trust) })

	add("keyusage", "a CA", leaf(func(c *x509.Certificate) { c.IsCA = true }, code), "no CA")
	add("keyusage", "a key for certificates", leaf(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, code), "no key of a CA")
	add("keyusage", "a key for CRLs", leaf(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }, code), "no key of a CA")
	add("keyusage", "a key for encryption", leaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, code), "for signatures")
	add("keyusage", "a key for nobody knows what", leaf(func(c *x509.Certificate) { c.KeyUsage = 0 }, code), "for signatures")
	add("keyusage", "the issuing CA itself", func(d *draft) {
		d.by(h.firmware)
		d.certs = d.certs[:1]
	}, "no CA", "for signatures", "no key of a CA", "purpose", "pin", "pin in the chain")
	add("eku", "no purpose", leaf(func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature }), "purpose")
	add("eku", "for mail", leaf(nil, x509.ExtKeyUsageEmailProtection), "purpose", "purpose of the chain")
	add("eku", "for servers and clients", leaf(nil, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth), "purpose", "purpose of the chain")
	add("eku", "for any purpose", leaf(nil, x509.ExtKeyUsageAny), "purpose", "no any")
	add("eku", "for code, and any purpose", leaf(nil, code, x509.ExtKeyUsageAny), "no any")
	add("eku", "for code, where mail is wanted", func(d *draft) { d.trust.Usage = x509.ExtKeyUsageEmailProtection }, "purpose", "purpose of the chain")
	under := func(ca *party, signer *party) func(*draft) {
		return func(d *draft) {
			d.by(signer)
			d.certs[1] = ca.cert.Raw
			d.trust.Issuers = []*x509.Certificate{ca.cert}
			d.trust.CRLs = append(d.trust.CRLs, ca.revokes(nil))
		}
	}
	servers := h.root.issue("CA for servers", keys["P-256"](), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	add("eku", "for code, by a CA for servers", under(servers, servers.signer("Signer", keys["P-256"]())), "purpose of the chain")

	add("issuer", "a sibling of the pinned CA", func(d *draft) {
		d.by(h.other.signer("Sibling's", keys["P-256"]()))
		d.certs[1] = h.other.cert.Raw
		d.trust.CRLs = append(d.trust.CRLs, h.other.revokes(nil))
	}, "pin", "what is offered", "pin in the chain")
	add("issuer", "the root itself", as(h.root.signer("Root's", keys["P-256"]())), "pin", "pin in the chain")
	add("issuer", "somebody of the pinned CA, where the chain is built by somebody careless", func(d *draft) {
		d.trust.Build = anyChain(h.root.cert)
	}, "pin in the chain")
	add("issuer", "a CA of the pinned one's name", func(d *draft) {
		namesake := h.root.issue("Firmware CA", ecKey(elliptic.P256()), nil)
		d.by(namesake.signer("Namesake's", keys["P-256"]()))
		d.certs[1] = namesake.cert.Raw
		d.trust.CRLs = append(d.trust.CRLs, namesake.revokes(nil))
	}, "its own signature", "chain")
	var nobody *party
	add("issuer", "a certificate signed by itself", as(nobody.signer("Firmware CA", keys["P-256"]())), "its own signature", "chain")
	foreign := nobody.issue("Root", ecKey(elliptic.P256()), nil)
	foreignCA := foreign.issue("Firmware CA", ecKey(elliptic.P256()), nil)
	stranger := foreignCA.signer("Stranger", keys["P-256"]())
	add("issuer", "somebody of another root", func(d *draft) {
		d.by(stranger)
		d.certs = append(d.certs, foreign.cert.Raw)
		d.certs[1] = foreignCA.cert.Raw
	}, "its own signature", "chain")
	add("untrusted", "a pinned CA without its root", under(foreignCA, stranger), "chain")
	add("untrusted", "something critical that nobody understands", leaf(func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
	}, code), "chain")
	deep := h.root.issue("Policy CA", keys["P-384"](), func(c *x509.Certificate) { c.MaxPathLenZero = true })
	deeper := deep.issue("CA too deep", keys["P-256"](), nil)
	add("untrusted", "a CA below one that may have none", func(d *draft) {
		under(deeper, deeper.signer("Signer", keys["P-256"]()))(d)
		d.certs = append(d.certs, deep.cert.Raw)
		d.trust.CRLs = append(d.trust.CRLs, deep.revokes(nil))
	}, "chain")

	add("expired", "an expired signer, who dates himself back", func(d *draft) {
		d.by(h.firmware.issue("Old", keys["P-256"](), func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Hour) }, code))
		d.set(idSigningTime, tlv(tagUTCTime, []byte("260201000000Z")))
	}, "chain", "over")
	add("expired", "a signer of tomorrow", leaf(func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) }, code), "chain")
	old := h.root.issue("Old CA", keys["P-256"](), func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Hour) })
	add("expired", "an expired CA", under(old, old.signer("Signer", keys["P-256"]())), "chain", "over")
	add("expired", "a signer who is over by the date of the CRL, on a device whose clock is behind", func(d *draft) {
		d.by(h.firmware.issue("Old", keys["P-256"](), func(c *x509.Certificate) { c.NotAfter = now.Add(-48 * time.Hour) }, code))
		d.trust.Now = now.Add(-30 * 24 * time.Hour)
		d.trust.Build = buildAt(d.trust.Now)
	}, "over")

	weak := h.root.issue("Weak CA", shortKey(), nil)
	add("key", "a pinned CA with an RSA key of 1024 bits", func(d *draft) {
		under(weak, weak.signer("Signer", keys["P-256"]()))(d)
		d.certs = d.certs[:1]
	}, "keys of the chain")
	short := nobody.issue("Short root", ecKey(elliptic.P224()), nil)
	shortCA := short.issue("CA of a short root", keys["P-256"](), nil)
	add("key", "a root with a short key", func(d *draft) {
		under(shortCA, shortCA.signer("Signer", keys["P-256"]()))(d)
		d.trust.Anchors = []*x509.Certificate{short.cert}
		d.trust.CRLs = append(d.trust.CRLs, short.revokes(nil))
	}, "key of the anchor")
	sha1 := func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }
	add("algorithm", "a signer's certificate by SHA-1", leaf(sha1, code), "signatures of the chain", "its own signature", "chain")
	oldest := h.root.issue("SHA-1 CA", keys["P-256"](), sha1)
	add("algorithm", "a CA's certificate by SHA-1, where the chain is built by somebody careless", func(d *draft) {
		under(oldest, oldest.signer("Signer", keys["P-256"]()))(d)
		d.trust.Build = anyChain(oldest.cert, h.root.cert)
	}, "signatures of the chain")
}

// anyChain puts certificates behind a leaf, whatever they say.
func anyChain(behind ...*x509.Certificate) func(*x509.Certificate, []*x509.Certificate, []*x509.Certificate, ...x509.ExtKeyUsage) ([]*x509.Certificate, error) {
	return func(leaf *x509.Certificate, _, _ []*x509.Certificate, _ ...x509.ExtKeyUsage) ([]*x509.Certificate, error) {
		return append([]*x509.Certificate{leaf}, behind...), nil
	}
}

// forgedCRLs are right messages of signers of whom nobody knows whether they still are.
func forgedCRLs(add func(code, name string, change func(*draft), checks ...string)) {
	h := house()
	crls := func(list ...*x509.RevocationList) func(*draft) { return func(d *draft) { d.trust.CRLs = list } }
	extension := func(id asn1.ObjectIdentifier, critical bool) func(*x509.RevocationList) {
		return func(c *x509.RevocationList) {
			c.ExtraExtensions = []pkix.Extension{{Id: id, Critical: critical, Value: []byte{2, 1, 1}}}
		}
	}
	until := func(end time.Time) func(*x509.RevocationList) {
		return func(c *x509.RevocationList) { c.ThisUpdate, c.NextUpdate = end.Add(-time.Hour), end }
	}
	root, firmware := h.root.revokes(nil), h.firmware.revokes(nil)

	add("crl", "no CRL", crls(), "no CRL", "stale")
	add("crl", "none that speaks of the signer", crls(root), "no CRL", "stale")
	add("crl", "none that speaks of the CA", crls(firmware), "no CRL", "stale")
	add("crl", "one of a CA with the same name", crls(root, h.namesake.revokes(nil)), "CRL signature")
	add("crl", "one of a CA that may not sign CRLs", func(d *draft) {
		ca := h.root.issue("CA without CRLs", keys["P-256"](), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign })
		d.by(ca.signer("Signer", keys["P-256"]()))
		d.trust.Issuers = []*x509.Certificate{ca.cert}
		may := *ca.cert
		may.KeyUsage |= x509.KeyUsageCRLSign
		d.trust.CRLs = append(d.trust.CRLs, (&party{ca.key, &may}).revokes(nil))
	}, "CRL signature")
	add("crl", "one that is signed with SHA-1", crls(root, h.firmware.revokes(func(c *x509.RevocationList) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 })), "CRL algorithm")
	add("crl", "one that says what changed", crls(root, h.firmware.revokes(extension(idDeltaCRL, true))), "delta", "critical")
	add("crl", "one that says what changed, as if that did not matter", crls(root, h.firmware.revokes(extension(idDeltaCRL, false))), "delta")
	add("crl", "one that speaks of some certificates only", crls(root, h.firmware.revokes(extension(asn1.ObjectIdentifier{2, 5, 29, 28}, true))), "critical")
	add("crl", "one whose entries are about others' certificates", crls(root, h.firmware.revokes(func(c *x509.RevocationList) {
		c.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(1), RevocationTime: now,
			ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 29}, Critical: true, Value: []byte{5, 0}}}}}
	}), h.other.revokes(nil)), "critical entry")
	endless := *firmware
	endless.NextUpdate = time.Time{}
	add("crl", "one without end", crls(root, &endless), "no CRL", "stale")
	add("stale", "one that is too old, by more than grace", crls(root, h.firmware.revokes(until(now.Add(-25*time.Hour)))), "stale")
	add("stale", "one that is too old, for the CA", crls(firmware, h.root.revokes(until(now.Add(-25*time.Hour)))), "stale")
	add("stale", "one, and nobody says when it is", func(d *draft) { d.trust.Now = time.Time{} }, "now")
	add("stale", "one that is too old by the date of the other, on a device whose clock is behind", func(d *draft) {
		d.trust.Now = now.AddDate(0, -1, 0)
		d.trust.CRLs = []*x509.RevocationList{h.root.revokes(until(now.AddDate(0, 0, -7))), firmware}
	}, "stale")
	add("revoked", "the signer", crls(root, h.firmware.revokes(nil, signer().cert)), "revoked")
	add("revoked", "the CA", crls(h.root.revokes(nil, h.other.cert, h.firmware.cert), firmware), "revoked")
	add("revoked", "the signer, by a CRL that is old", crls(root, firmware, h.firmware.revokes(until(now.AddDate(0, -6, 0)), signer().cert)), "revoked")
}
