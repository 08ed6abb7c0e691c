package cms

import (
	"bytes"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.mozilla.org/pkcs7"
)

// The files in testdata were made by openssl. chain.p7, for example:
//
//	openssl crl2pkcs7 -nocrl -certfile dev.pem -certfile ca.pem -certfile root.pem -outform DER
func file(tb testing.TB, name string) []byte {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// good are the messages that can be read, and the common names in them.
var good = []struct {
	file  string
	names []string
}{
	{"chain.p7", []string{"dev-1", "Issuing", "Root"}},
	{"repeated.p7", []string{"dev-1", "Issuing"}}, // dev-1, dev-1, Issuing, dev-1
	{"crl.p7", []string{"Root"}},                  // and a CRL
}

func names(certs []*x509.Certificate) (list []string) {
	for _, c := range certs {
		list = append(list, c.Subject.CommonName)
	}
	return list
}

func TestCertificatesInTheOrderOfTheMessageEachOnce(t *testing.T) {
	for _, tc := range good {
		der := file(t, tc.file)
		for form, b := range map[string][]byte{"DER": der, "BER": toBER(t, der), "BER in long form": toLongBER(t, der)} {
			certs, err := Certificates(b)
			if err != nil {
				t.Errorf("%s as %s: %v", tc.file, form, err)
			} else if got := names(certs); !slices.Equal(got, tc.names) {
				t.Errorf("%s as %s: %q, want %q", tc.file, form, got, tc.names)
			}
		}
	}
}

func TestCertificatesDoNotShareMemoryWithTheMessage(t *testing.T) {
	b := file(t, "chain.p7")
	certs, err := Certificates(b)
	if err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(certs[0].Raw)
	clear(b)
	if !bytes.Equal(certs[0].Raw, before) {
		t.Error("the certificate changed with the buffer that it was read from")
	}
}

// What another library makes of the same message.
func TestCertificatesAgreesWithASecondOpinion(t *testing.T) {
	for _, name := range []string{"chain.p7", "crl.p7"} {
		ours, err := Certificates(file(t, name))
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := pkcs7.Parse(file(t, name))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(ours, theirs.Certificates, (*x509.Certificate).Equal) {
			t.Errorf("%s: %q, another library reads %q", name, names(ours), names(theirs.Certificates))
		}
	}
}

// The BER of these tests is BER to others too.
func TestOpenSSLReadsOurBER(t *testing.T) {
	for form, ber := range map[string][]byte{"indefinite": toBER(t, file(t, "chain.p7")), "long": toLongBER(t, file(t, "chain.p7"))} {
		openssl := exec.Command("openssl", "pkcs7", "-inform", "DER", "-print_certs", "-noout")
		openssl.Stdin = bytes.NewReader(ber)
		out, err := openssl.CombinedOutput()
		if got := bytes.Count(out, []byte("subject=")); err != nil || got != 3 {
			t.Errorf("%s form: openssl reads %d certificates, want 3 (%v)\n%s", form, got, err, out)
		}
	}
}

// A message is a certs-only message in its parts, each as DER.
type message struct {
	contentType, version, digests, encap, certs, crls, signers []byte
	after                                                      []byte // what should not be there
}

func (m message) der() []byte {
	signed := tlv(tagSequence, m.version, m.digests, m.encap, m.certs, m.crls, m.signers, m.after)
	return tlv(tagSequence, m.contentType, tlv(tagContext0, signed))
}

func tlv(tag byte, contents ...[]byte) []byte {
	all := slices.Concat(contents...)
	return append(appendHeader(nil, tag, len(all)), all...)
}

// minimal is a message with one certificate.
func minimal(tb testing.TB) message {
	certs, err := Certificates(file(tb, "crl.p7"))
	if err != nil {
		tb.Fatal(err)
	}
	return message{
		contentType: tlv(tagOID, idSignedData),
		version:     tlv(tagInteger, []byte{1}),
		digests:     tlv(tagSet),
		encap:       tlv(tagSequence, tlv(tagOID, idData)),
		certs:       tlv(tagContext0, certs[0].Raw),
		signers:     tlv(tagSet),
	}
}

func TestCertificatesAccepts(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*message)
	}{
		{"the least there can be", func(*message) {}},
		{"version 3", func(m *message) { m.version[2] = 3 }},
		{"a digest algorithm", func(m *message) { m.digests = tlv(tagSet, tlv(tagSequence, tlv(tagOID, []byte{0x2a}))) }},
		{"an empty set of CRLs", func(m *message) { m.crls = tlv(tagContext1) }},
		{"as many certificates as there may be", func(m *message) {
			m.certs = tlv(tagContext0, bytes.Repeat(m.certs[4:], certificateLimit))
		}},
	} {
		m := minimal(t)
		tc.change(&m)
		for form, b := range map[string][]byte{"DER": m.der(), "BER": toBER(t, m.der())} {
			if certs, err := Certificates(b); err != nil || len(certs) != 1 {
				t.Errorf("%s, as %s: %d certificates, %v, want 1", tc.name, form, len(certs), err)
			}
		}
	}
}

func TestCertificatesRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*message)
		want   string
	}{
		{"another content type", func(m *message) { m.contentType = tlv(tagOID, idData) }, "contentType"},
		{"version 0", func(m *message) { m.version[2] = 0 }, "version"},
		{"version 2", func(m *message) { m.version[2] = 2 }, "version"},
		{"version 257", func(m *message) { m.version = tlv(tagInteger, []byte{1, 1}) }, "version"},
		{"no version", func(m *message) { m.version = nil }, "version"},
		{"no digest algorithms", func(m *message) { m.digests = nil }, "digestAlgorithms"},
		{"content of another type", func(m *message) { m.encap = tlv(tagSequence, tlv(tagOID, idSignedData)) }, "eContentType"},
		{"content", func(m *message) {
			m.encap = tlv(tagSequence, tlv(tagOID, idData), tlv(tagContext0, tlv(tagOctetString, []byte("x"))))
		}, "content"},
		{"empty content", func(m *message) {
			m.encap = tlv(tagSequence, tlv(tagOID, idData), tlv(tagContext0, tlv(tagOctetString)))
		}, "content"},
		{"a signature", func(m *message) { m.signers = tlv(tagSet, tlv(tagSequence)) }, "signatures"},
		{"no place for signatures", func(m *message) { m.signers = nil }, "signerInfos"},
		{"more than there should be", func(m *message) { m.after = tlv(tagSet) }, "SignedData"},
		{"CRLs before certificates", func(m *message) { m.certs, m.crls = tlv(tagContext1), m.certs }, "signerInfos"},
		{"no certificates", func(m *message) { m.certs = nil }, "no certificates"},
		{"an empty set of certificates", func(m *message) { m.certs = tlv(tagContext0) }, "no certificates"},
		{"too many certificates", func(m *message) {
			m.certs = tlv(tagContext0, bytes.Repeat(m.certs[4:], certificateLimit+1))
		}, "more than 64"},
		{"an attribute certificate", func(m *message) {
			m.certs = tlv(tagContext0, m.certs[4:], tlv(0xa2, tlv(tagInteger, []byte{1})))
		}, "certificate 2 is not of X.509"},
		{"a certificate that is none", func(m *message) { m.certs = tlv(tagContext0, tlv(tagSequence)) }, "certificate 1"},
		{"too big", func(m *message) {
			m.digests = tlv(tagSet, tlv(tagOctetString, make([]byte, SizeLimit)))
		}, "limit"},
		{"too deep", func(m *message) { m.digests = tlv(tagSet, nested(DepthLimit, tagSequence)) }, "deep"},
		{"a high tag number", func(m *message) { m.digests = tlv(tagSet, []byte{0x1f, 0x1f, 0x00}) }, "tag number"},
	} {
		m := minimal(t)
		tc.change(&m)
		b := m.der()
		certs, err := Certificates(b)
		if err == nil || certs != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %d certificates, %v, want an error about %q", tc.name, len(certs), err, tc.want)
		}
	}
}

func TestCertificatesRefusesOtherMessages(t *testing.T) {
	chain := file(t, "chain.p7")
	content := minimal(t).der()[4+2+len(idSignedData):] // [0] with its header of 4 octets
	for _, tc := range []struct {
		name string
		b    []byte
	}{
		{"nothing", nil},
		{"a bare certificate", minimal(t).certs[4:]},
		{"an answer without certificates", file(t, "empty.p7")},
		{"only a CRL", file(t, "onlycrl.p7")},
		{"signed data", file(t, "signed.p7")},
		{"a detached signature", file(t, "detached.p7")},
		{"signed data, streamed", file(t, "stream.p7")},
		{"enveloped data", file(t, "enveloped.p7")},
		{"bytes after the end", append(bytes.Clone(chain), 0)},
		{"bytes after the end of BER", append(toBER(t, chain), 0, 0)},
		{"a second content", tlv(tagSequence, tlv(tagOID, idSignedData), content, content)},
		{"two SignedData in the content", tlv(tagSequence, tlv(tagOID, idSignedData), tlv(tagContext0, content[4:], content[4:]))},
		{"PEM", []byte("-----BEGIN PKCS7-----\n")},
	} {
		if certs, err := Certificates(tc.b); err == nil || certs != nil {
			t.Errorf("%s: %d certificates, %v, want an error", tc.name, len(certs), err)
		}
	}
	for n := range chain {
		if certs, err := Certificates(chain[:n]); err == nil || certs != nil {
			t.Fatalf("the first %d bytes of %d: %d certificates, %v, want an error", n, len(chain), len(certs), err)
		}
	}
}

// Whatever comes in: no panic, and either an error or certificates.
func FuzzCertificates(f *testing.F) {
	for _, name := range []string{"crl.p7", "onlycrl.p7", "empty.p7"} {
		f.Add(file(f, name))
		f.Add(toBER(f, file(f, name)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		certs, err := Certificates(b)
		if (err == nil) != (len(certs) > 0) || len(certs) > certificateLimit {
			t.Fatalf("%d certificates, %v", len(certs), err)
		}
	})
}
