package csr

import (
	"bytes"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func unbase64(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// What the standards give as examples, and what is sent.
const (
	exampleRFC7030 = "MEEGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiMBYGCSqGSIb3DQEJDjEJBgcrBgEBAQEWBggqhkjOPQQDAw=="
	exampleRSA     = "MCkGCSqGSIb3DQEJBzARBgkqhkiG9w0BAQExBAICEAAGCSqGSIb3DQEBCw=="
	exampleCurve   = "MD0GCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiMBIGCSqGSIb3DQEJDjEFBgNVBAUGCCqGSM49BAMD"
	exampleExt     = "MFQGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAjMCkGCSqGSIb3DQEJDjEcBgNVBAUGCSqGSIb3DQEJFAYKCZImiZPyLGQBBQYIKoZIzj0EAwQ="
	exampleMAC     = "ME4GCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiMCMGCSqGSIb3DQEJDjEWMBQwEgYDVR0JBAswCQYHKwYBAQEBFgYIKoZIzj0EAwM="
	examplePotato  = "MGcGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiMDwGCSqGSIb3DQEJDjEvMC0wKwYDVR0RBCQwIqAgBggrBgEFBQcICqAUFhJwb3RhdG9AZXhhbXBsZS5jb20GCCqGSM49BAMD"
	exampleACP     = "MGgwZgYJKoZIhvcNAQkOMVkwVzBVBgNVHREBAf8ESzBJoEcGCCsGAQUFBwgKoDsWOXJmYzg5OTQrZmQ3MzlmYzIzYzM0NDAxMTIyMzM0NDU1MDAwMDAwMDArQGFjcC5leGFtcGxlLmNvbQ=="
	exampleDraft   = "MGQwYgYJKoZIhvcNAQkOMVUwUwYDVR0RAQH/BEmgRzBFBggrBgEFBQcICgw5cmZjODk5NCtmZDczOWZjMjNjMzQ0MDExMjIzMzQ0NTUwMDAwMDAwMCtAYWNwLmV4YW1wbGUuY29t"
	exampleLibest  = "MCYGBysGAQEBARYGCSqGSIb3DQEJAQYFK4EEACIGCWCGSAFlAwQCAg=="
)

func TestParseAttrsExamples(t *testing.T) {
	for _, tc := range []struct {
		name, base64 string
		algorithm    string // "" if there is no wish that we can fulfil
		challenge    bool
		extensions   []string
	}{
		{"RFC 7030, 4.5.2: P-384", exampleRFC7030, "P-384", true, nil},
		{"RFC 9908, 5: RSA of 4096 bits", exampleRSA, "", true, nil},
		{"RFC 9908, 5: P-384", exampleCurve, "P-384", true, nil},
		{"RFC 9908, 5: P-521", exampleExt, "", true, nil},
		{"RFC 9908, 5: a directory attribute", exampleMAC, "P-384", true, nil},
		{"RFC 9908, 5: the names of an ACP node", exampleACP, "", false, []string{"2.5.29.17"}},
		{"a draft of RFC 9908: names", examplePotato, "P-384", true, []string{"2.5.29.17"}},
		{"a draft of RFC 9908: no list around an extension, and names that are none", exampleDraft, "", false, nil},
		{"libest: a curve by itself", exampleLibest, "P-384", false, nil},
		{"an empty list", "MAA=", "", false, nil},
		{"no bytes", "", "", false, nil},
	} {
		a, err := ParseAttrs(unbase64(t, tc.base64))
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		algorithm, ok := a.Algorithm()
		if algorithm != tc.algorithm || ok != (tc.algorithm != "") {
			t.Errorf("%s: wants key %q (%v), want %q", tc.name, algorithm, ok, tc.algorithm)
		}
		if a.ChallengePassword != tc.challenge {
			t.Errorf("%s: challenge password %v, want %v", tc.name, a.ChallengePassword, tc.challenge)
		}
		if got := applied(a, Request{}); !slices.Equal(got, tc.extensions) {
			t.Errorf("%s: extensions %q, want %q", tc.name, got, tc.extensions)
		}
	}
}

// applied are the extensions of req after a, dotted.
func applied(a Attrs, req Request) (list []string) {
	a.Apply(&req)
	for _, e := range req.Extensions {
		list = append(list, e.Id.String())
	}
	return list
}

// The example of an ACP node ends up in the request as the CA gave it.
func TestApplyCopiesValues(t *testing.T) {
	der := unbase64(t, exampleACP)
	a, err := ParseAttrs(der)
	if err != nil {
		t.Fatal(err)
	}
	req := Request{Subject: commonName(t, "dev-1")}
	a.Apply(&req)
	built, err := Build(req, ecKey(t, elliptic.P256()))
	if err != nil {
		t.Fatal(err)
	}
	extension := der[19:] // within CsrAttrs, Attribute, SET and Extensions
	if extension[0] != 0x30 || int(extension[1]) != len(extension)-2 || !bytes.Contains(built, extension) {
		t.Errorf("% x is not in % x", extension, built)
	}
}

// The DER of attributes, as a test writes it.
func attrs(parts ...[]byte) []byte { return enc(0x30, parts...) }
func enc(tag byte, parts ...[]byte) []byte {
	all := slices.Concat(parts...)
	switch n := len(all); {
	case n < 0x80:
		return append([]byte{tag, byte(n)}, all...)
	case n < 0x100:
		return append([]byte{tag, 0x81, byte(n)}, all...)
	case n < 0x10000:
		return append([]byte{tag, 0x82, byte(n >> 8), byte(n)}, all...)
	default:
		return append([]byte{tag, 0x83, byte(n >> 16), byte(n >> 8), byte(n)}, all...)
	}
}

func oid(dotted string) []byte {
	var o x509.OID
	if err := o.UnmarshalText([]byte(dotted)); err != nil {
		panic(err)
	}
	der, err := o.MarshalBinary()
	if err != nil {
		panic(err)
	}
	return enc(0x06, der)
}

func attr(kind string, values ...[]byte) []byte { return enc(0x30, oid(kind), enc(0x31, values...)) }
func number(n int) []byte {
	der, err := asn1.Marshal(n)
	if err != nil {
		panic(err)
	}
	return der
}

func extension(id string, value []byte) []byte { return enc(0x30, oid(id), enc(0x04, value)) }

const (
	curveP256 = "1.2.840.10045.3.1.7"
	curveP384 = "1.3.132.0.34"
	curveP521 = "1.3.132.0.35"
	sigSHA256 = "1.2.840.10045.4.3.2"
	sigSHA384 = "1.2.840.10045.4.3.3"
	sigRSA    = "1.2.840.113549.1.1.11"
	ed25519ID = "1.3.101.112"
)

func TestAlgorithm(t *testing.T) {
	for _, tc := range []struct {
		name string
		der  []byte
		want string
	}{
		{"P-256", attrs(attr(keyEC, oid(curveP256))), "P-256"},
		{"P-384", attrs(attr(keyEC, oid(curveP384))), "P-384"},
		{"RSA of 2048 bits", attrs(attr(keyRSA, number(2048))), "RSA-2048"},
		{"RSA, no size", attrs(attr(keyRSA)), "RSA-2048"},
		{"RSA, an identifier alone", attrs(oid(keyRSA)), "RSA-2048"},
		{"any curve", attrs(attr(keyEC)), "P-256"},
		{"any curve, an identifier alone", attrs(oid(keyEC)), "P-256"},
		{"any curve with SHA-256", attrs(attr(keyEC), oid(sigSHA256)), "P-256"},
		{"any curve with SHA-384", attrs(attr(keyEC), oid(sigSHA384)), "P-384"},
		{"any curve with SHA-384, the other way round", attrs(oid(sigSHA384), attr(keyEC)), "P-384"},
		{"P-256 with SHA-384", attrs(attr(keyEC, oid(curveP256)), oid(sigSHA384)), "P-256"},
		{"a curve by itself", attrs(oid(curveP256)), "P-256"},
		{"a signature by itself: SHA-256", attrs(oid(sigSHA256)), "P-256"},
		{"a signature by itself: SHA-384", attrs(oid(sigSHA384)), "P-384"},
		{"a signature by itself: RSA", attrs(oid(sigRSA)), "RSA-2048"},
		{"the first that we have: values", attrs(attr(keyEC, oid(curveP521), oid(curveP384), oid(curveP256))), "P-384"},
		{"the first that we have: attributes", attrs(attr(keyRSA, number(4096)), attr(keyEC, oid(curveP256))), "P-256"},

		{"no wishes", attrs(), ""},
		{"P-521", attrs(attr(keyEC, oid(curveP521))), ""},
		{"P-521, whatever the signature", attrs(attr(keyEC, oid(curveP521)), oid(sigSHA384)), ""},
		{"RSA of 1024 bits", attrs(attr(keyRSA, number(1024))), ""},
		{"RSA of 4096 bits, whatever the signature", attrs(attr(keyRSA, number(4096)), oid(sigRSA)), ""},
		{"RSA of more bits than fit into a number", attrs(attr(keyRSA, enc(0x02, bytes.Repeat([]byte{0x7f}, 100)))), ""},
		{"a curve that is a number", attrs(attr(keyEC, number(1))), ""},
		{"a size that is an identifier", attrs(attr(keyRSA, oid(curveP256))), ""},
		{"Ed25519", attrs(attr(ed25519ID)), ""},
	} {
		a, err := ParseAttrs(tc.der)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if got, ok := a.Algorithm(); got != tc.want || ok != (tc.want != "") {
			t.Errorf("%s: %q, %v, want %q", tc.name, got, ok, tc.want)
		}
	}
}

func TestApplyCopiesOnlyWhatIsHarmless(t *testing.T) {
	const (
		keyUsage, san, basic, policies, eku = "2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.32", "2.5.29.37"
		clientAuth, serverAuth              = "1.3.6.1.5.5.7.3.2", "1.3.6.1.5.5.7.3.1"
	)
	names := enc(0x30, enc(0x82, []byte("dev-1.example")))
	for _, tc := range []struct {
		name  string
		id    string
		value []byte
		want  bool
	}{
		{"names", san, names, true},
		{"policies", policies, enc(0x30, enc(0x30, oid("1.2.3"))), true},
		{"digitalSignature", keyUsage, enc(0x03, []byte{7, 0x80}), true},
		{"digitalSignature and keyAgreement", keyUsage, enc(0x03, []byte{3, 0x88}), true},
		{"clientAuth", eku, enc(0x30, oid(clientAuth)), true},
		{"clientAuth, serverAuth and one that nobody knows", eku, enc(0x30, oid(clientAuth), oid(serverAuth), oid("1.2.3.4")), true},
		{"not a CA", basic, enc(0x30), true},

		{"a CA", basic, enc(0x30, enc(0x01, []byte{0xff})), false},
		{"a CA with a path length", basic, enc(0x30, enc(0x01, []byte{0xff}), number(0)), false},
		{"not a CA, in so many words", basic, enc(0x30, enc(0x01, []byte{0x00})), false},
		{"keyCertSign", keyUsage, enc(0x03, []byte{2, 0x04}), false},
		{"digitalSignature and keyCertSign", keyUsage, enc(0x03, []byte{2, 0x84}), false},
		{"cRLSign", keyUsage, enc(0x03, []byte{1, 0x02}), false},
		{"key usage that is none", keyUsage, number(1), false},
		{"any usage", eku, enc(0x30, oid("2.5.29.37.0")), false},
		{"clientAuth and any usage", eku, enc(0x30, oid(clientAuth), oid("2.5.29.37.0")), false},
		{"code signing", eku, enc(0x30, oid("1.3.6.1.5.5.7.3.3")), false},
		{"time stamps", eku, enc(0x30, oid("1.3.6.1.5.5.7.3.8")), false},
		{"OCSP", eku, enc(0x30, oid("1.3.6.1.5.5.7.3.9")), false},
		{"a CA of CMC", eku, enc(0x30, oid("1.3.6.1.5.5.7.3.27")), false},
		{"an RA, which is an EST server", eku, enc(0x30, oid("1.3.6.1.5.5.7.3.28")), false},
		{"extended key usage that is none", eku, number(1), false},
		{"one name without a list", san, enc(0x82, []byte("dev-1.example")), false},
		{"names without a value", san, nil, false},
		{"names that are no DER", san, []byte{0x30, 0x80, 0x00, 0x00}, false},
		{"names with bytes after the end", san, append(bytes.Clone(names), 0), false},
		{"name constraints", "2.5.29.30", enc(0x30), false},
		{"an extension that nobody knows", "1.2.3.4", enc(0x30), false},
		{"one with a number that is too large", "2.25.340282366920938463463374607431768211455", enc(0x30), false},
	} {
		der := attrs(attr(attrExtensionRequest, enc(0x30, extension(tc.id, tc.value))))
		a, err := ParseAttrs(der)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		req := Request{Subject: commonName(t, "dev-1")}
		a.Apply(&req)
		if got := len(req.Extensions) == 1; got != tc.want {
			t.Errorf("%s: copied %v, want %v", tc.name, got, tc.want)
		}
		if tc.want && !bytes.Equal(req.Extensions[0].Value, tc.value) {
			t.Errorf("%s: value % x, want % x", tc.name, req.Extensions[0].Value, tc.value)
		}
		if _, err := Build(req, ecKey(t, elliptic.P256())); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestApplyDoesNotTouchWhatIsThere(t *testing.T) {
	theirs := enc(0x30, enc(0x82, []byte("their.example")))
	ours := pkix.Extension{Id: oidSubjectAltName, Value: enc(0x30, enc(0x82, []byte("our.example")))}
	a, err := ParseAttrs(attrs(attr(attrExtensionRequest, enc(0x30,
		extension("2.5.29.17", theirs), extension("2.5.29.15", enc(0x03, []byte{7, 0x80}))))))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		req  Request
		want []string
		san  []byte
	}{
		{"a new request", Request{}, []string{"2.5.29.17", "2.5.29.15"}, theirs},
		{"a request with names", Request{Extensions: []pkix.Extension{ours}}, []string{"2.5.29.17", "2.5.29.15"}, ours.Value},
		{"a renewal with names", Renewal(oddCertificate(t, ours)), []string{"2.5.29.17", "2.5.29.15"}, ours.Value},
		{"a renewal without names", Renewal(oddCertificate(t)), []string{"2.5.29.15"}, nil},
	} {
		if got := applied(a, tc.req); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
		a.Apply(&tc.req)
		if e := tc.req.Extensions[0]; tc.san != nil && !bytes.Equal(e.Value, tc.san) {
			t.Errorf("%s: names % x, want % x", tc.name, e.Value, tc.san)
		}
	}
}

func TestParseAttrsPassesOverWhatItDoesNotKnow(t *testing.T) {
	known := [][]byte{oid(attrChallengePassword), attr(keyEC, oid(curveP384))}
	for _, tc := range []struct {
		name    string
		unknown []byte
	}{
		{"an identifier", oid("1.2.3.4")},
		{"an attribute", attr("1.2.3.4", number(1), oid("1.2.3"), enc(0x30, enc(0xa0, number(1))))},
		{"an attribute without values", attr("1.2.3.4")},
		{"numbers too large for encoding/asn1", oid("2.25.340282366920938463463374607431768211455")},
		{"an attribute of that kind", attr("2.25.340282366920938463463374607431768211455")},
		{"an identifier as long as they come", enc(0x06, bytes.Repeat([]byte{0x81}, 10000), []byte{1})},
		{"a subject attribute", oid("2.5.4.5")},
	} {
		a, err := ParseAttrs(attrs(slices.Insert(slices.Clone(known), 1, tc.unknown)...))
		if algorithm, _ := a.Algorithm(); err != nil || algorithm != "P-384" || !a.ChallengePassword {
			t.Errorf("%s: %+v, %v, want what stands around it", tc.name, a, err)
		}
	}
}

// To spell out a number takes time that grows with the square of its length.
func TestLongIdentifiersAreNotSpelledOut(t *testing.T) {
	for _, tc := range []struct {
		octets int
		want   bool
	}{{attrOIDLimit, true}, {attrOIDLimit + 1, false}} {
		v := asn1.RawValue{Tag: asn1.TagOID, Bytes: append(bytes.Repeat([]byte{0x81}, tc.octets-1), 1)}
		if got := dotted(v); (got != "") != tc.want {
			t.Errorf("%d octets: %q, want spelled out %v", tc.octets, got, tc.want)
		}
	}
}

func TestParseAttrsRefuses(t *testing.T) {
	san := extension("2.5.29.17", enc(0x30))
	for _, tc := range []struct {
		name string
		der  []byte
		want string
	}{
		{"no DER", []byte("<html>"), "not DER"},
		{"BER", []byte{0x30, 0x80, 0x00, 0x00}, "not DER"},
		{"bytes after the end", []byte{0x30, 0x00, 0x00}, "not DER"},
		{"too deep", deep(40), "deep"},
		{"too big", attrs(enc(0x30, oid("1.2.3"), enc(0x31, enc(0x04, make([]byte, attrsSizeLimit))))), "limit"},
		{"too many", attrs(bytes.Repeat(oid("1.2.3"), attrsLimit+1)), "129 attributes"},
		{"a SET", enc(0x31), "asn1"},
		{"a number", attrs(number(1)), "neither"},
		{"an attribute without a type", attrs(enc(0x30, enc(0x31))), "neither"},
		{"an attribute without a set of values", attrs(enc(0x30, oid(keyEC))), "neither"},
		{"an attribute of which the type is a number", attrs(enc(0x30, number(1), enc(0x31))), "neither"},
		{"two lists of extensions", attrs(attr(attrExtensionRequest, enc(0x30, san), enc(0x30, san))), "more than one list"},
		{"two requests for extensions", attrs(attr(attrExtensionRequest, enc(0x30, san)), attr(attrExtensionRequest, enc(0x30, san))), "more than one list"},
		{"an extension twice", attrs(attr(attrExtensionRequest, enc(0x30, san, san))), "2.5.29.17 occurs twice"},
		{"an unknown extension twice", attrs(attr(attrExtensionRequest, enc(0x30, extension("1.2.3", nil), extension("1.2.3", nil)))), "twice"},
		{"an extension that is none", attrs(attr(attrExtensionRequest, enc(0x30, number(1)))), "extensions"},
		{"a list that is none", attrs(attr(attrExtensionRequest, number(1))), "extensions"},
		{"too many extensions", attrs(attr(attrExtensionRequest, enc(0x30, bytes.Repeat(san, attrsLimit+1)))), "129 extensions"},
	} {
		a, err := ParseAttrs(tc.der)
		if err == nil || !reflect.DeepEqual(a, Attrs{}) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %+v, %v, want an error about %q", tc.name, a, err, tc.want)
		}
	}
}

func deep(n int) (der []byte) {
	for range n {
		der = enc(0x30, der)
	}
	return der
}

// Whatever a CA wishes for: the key is one that we have, and the request asks for
// nothing that a device should not have. Seeds are in testdata/fuzz.
func FuzzParseAttrs(f *testing.F) {
	key, subject := ecKey(f, elliptic.P256()), commonName(f, "dev-1")
	f.Fuzz(func(t *testing.T, der []byte) {
		a, err := ParseAttrs(der)
		algorithm, ok := a.Algorithm()
		if ok != slices.Contains([]string{"P-256", "P-384", "RSA-2048"}, algorithm) || err != nil && ok {
			t.Fatalf("algorithm %q, %v, %v", algorithm, ok, err)
		}
		req := Request{Subject: subject}
		a.Apply(&req)
		built, err := Build(req, key)
		if err != nil {
			return // crypto/x509 cannot read the names
		}
		parsed, err := x509.ParseCertificateRequest(built)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range parsed.Extensions {
			if allows := harmless[e.Id.String()]; allows == nil || !allows(e.Value) {
				t.Fatalf("the request has extension %v, % x", e.Id, e.Value)
			}
		}
	})
}
