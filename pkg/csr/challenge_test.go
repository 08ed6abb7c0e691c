package csr

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"strings"
	"testing"
)

// binding is as long as that of TLS 1.3, and has every kind of character of base64.
const binding = "AAAA+/abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0="

func TestChallengeAddsThePasswordAndNothingElse(t *testing.T) {
	san := pkix.Extension{Id: oidSubjectAltName, Value: []byte("\x30\x07\x82\x05dev-1")}
	for name, key := range map[string]crypto.Signer{
		"P-256": ecKey(t, elliptic.P256()), "P-384": ecKey(t, elliptic.P384()), "RSA-2048": rsaKey(t, 2048),
	} {
		for _, extensions := range [][]pkix.Extension{nil, {san}} {
			plain, err := Build(Request{Subject: commonName(t, "dev-1"), Extensions: extensions}, key)
			if err != nil {
				t.Fatal(err)
			}
			der, err := Challenge(plain, binding, key)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			before, err := x509.ParseCertificateRequest(plain)
			if err != nil {
				t.Fatal(err)
			}
			after, err := x509.ParseCertificateRequest(der)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(before.RawSubject, after.RawSubject) || !bytes.Equal(before.RawSubjectPublicKeyInfo, after.RawSubjectPublicKeyInfo) ||
				!slices.EqualFunc(before.Extensions, after.Extensions, sameExtension) {
				t.Errorf("%s: the request asks for something else than before", name)
			}
			if got := openssl(t, der, "req", "-inform", "DER", "-verify", "-noout"); !strings.Contains(got, "verify OK") {
				t.Errorf("%s: openssl says %q, want verify OK", name, got)
			}
			if got := openssl(t, der, "req", "-inform", "DER", "-text", "-noout"); !strings.Contains(got, binding) {
				t.Errorf("%s: openssl does not find the password %q in %s", name, binding, got)
			}
			// A PrintableString: some servers compare its encoding (RFC 2985, 5.4.1).
			if want := enc(0x31, enc(asn1.TagPrintableString, []byte(binding))); !bytes.Contains(der, want) {
				t.Errorf("%s: % x is not in % x", name, want, der)
			}
		}
	}
}

func TestChallengeRefuses(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	plain, err := Build(Request{Subject: commonName(t, "dev-1")}, key)
	if err != nil {
		t.Fatal(err)
	}
	twice, err := Challenge(plain, binding, key)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name     string
		der      []byte
		password string
		key      crypto.Signer
		want     string
	}{
		{"a second password", twice, binding, key, "one already"},
		{"no password", plain, "", key, "0 characters"},
		{"a password that is too long", plain, strings.Repeat("a", challengeLimit+1), key, "256 characters"},
		{"a password that is not printable", plain, "a@b", key, "PrintableString"},
		{"another key", plain, binding, ecKey(t, elliptic.P256()), "verification"},
		{"no request", nil, binding, key, "not DER"},
		{"a name", commonName(t, "dev-1"), binding, key, "asn1"},
	} {
		der, err := Challenge(tc.der, tc.password, tc.key)
		if err == nil || der != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %d bytes, %v, want an error about %q", tc.name, len(der), err, tc.want)
		}
	}
}
