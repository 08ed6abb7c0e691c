package est

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"testing"
)

var oidCommonName = asn1.ObjectIdentifier{2, 5, 4, 3}

// The bytes are written by hand after RFC 9908 3.4.
func TestATemplateIsWrittenAsTheStandardSays(t *testing.T) {
	const (
		head      = "\x06\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x09\x10\x02\x3d" // ...16.2.61
		challenge = "\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x09\x07\x31\x00"
	)
	wrap := func(content string) string {
		n := len(content)
		return "\x30" + string(rune(n+19)) + "\x30" + string(rune(n+17)) + head + "\x31" + string(rune(n+2)) + "\x30" + string(rune(n)) + content
	}
	for _, tc := range []struct {
		name string
		t    Template
		want string
	}{
		{"no wishes", Template{}, wrap("\x02\x01\x00\xa1\x00")},
		{"a challenge", Template{Challenge: true}, wrap("\x02\x01\x00\xa1\x0f" + challenge)},
		{"a name to fill in", Template{Subject: []TemplateName{{Type: oidCommonName}}}, wrap("\x02\x01\x00\x30\x09\x31\x07\x30\x05\x06\x03\x55\x04\x03\xa1\x00")},
		{"a name with a value", Template{Subject: []TemplateName{{oidCommonName, "ab"}}}, wrap("\x02\x01\x00\x30\x0d\x31\x0b\x30\x09\x06\x03\x55\x04\x03\x0c\x02ab\xa1\x00")},
		{"any RSA key", Template{Key: &pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}}},
			wrap("\x02\x01\x00\xa0\x0d\x30\x0b\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\xa1\x00")},
		{"extensions", Template{Extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true}, {Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Value: []byte{0x30, 0x00}}}},
			wrap("\x02\x01\x00\xa1\x28\x30\x26\x06\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x09\x10\x02\x3e\x31\x17\x30\x15\x30\x08\x06\x03\x55\x1d\x0f\x01\x01\xff\x30\x09\x06\x03\x55\x1d\x13\x04\x02\x30\x00")},
	} {
		got, err := tc.t.CSRAttrs()
		if err != nil || !bytes.Equal(got, []byte(tc.want)) {
			t.Errorf("%s: % x, %v\nwant % x", tc.name, got, err, tc.want)
		}
		if wantsChallenge(got) != tc.t.Challenge {
			t.Errorf("%s: the server wants a binding: %v, want %v", tc.name, wantsChallenge(got), tc.t.Challenge)
		}
	}
}

// RFC 9908 4: a template makes what stands beside it void.
func TestTheServerWantsABindingIfItsAnswerSaysSo(t *testing.T) {
	plain, err := Template{}.CSRAttrs()
	if err != nil {
		t.Fatal(err)
	}
	bound, err := Template{Challenge: true}.CSRAttrs()
	if err != nil {
		t.Fatal(err)
	}
	const name = "\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x09\x07"
	list := func(content string) []byte { return append([]byte{0x30, byte(len(content))}, content...) }
	for _, tc := range []struct {
		name  string
		attrs []byte
		want  bool
	}{
		{"no answer", nil, false},
		{"no DER", []byte("rubbish"), false},
		{"its name", list(name), true},
		{"its name as an attribute", list("\x30\x0d" + name + "\x31\x00"), true},
		{"a number", list("\x02\x01\x00"), false},
		{"a template with it", bound, true},
		{"a template without it", plain, false},
		{"a template without it, and its name beside", list(name + string(plain[2:])), false},
		{"a template without it, and its name before", list(string(plain[2:]) + name), false},
	} {
		if got := wantsChallenge(tc.attrs); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}
