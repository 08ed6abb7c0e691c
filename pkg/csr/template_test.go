package csr

import (
	"bytes"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// template is one in DER: subject and key may be nil, attributes follow.
func template(subject, key []byte, attributes ...[]byte) []byte {
	return attr(attrTemplate, enc(0x30, number(0), subject, key, enc(0xa1, attributes...)))
}

// relative is one attribute of a name, with or without a value.
func relative(kind string, value ...[]byte) []byte {
	return enc(0x31, enc(0x30, append([][]byte{oid(kind)}, value...)...))
}

func text(s string) []byte { return enc(asn1.TagUTF8String, []byte(s)) }

func ecTemplate(curve ...[]byte) []byte {
	return enc(0xa0, enc(0x30, append([][]byte{oid(keyEC)}, curve...)...))
}

// rsaTemplate holds a key of so many bits that nobody has.
func rsaTemplate(bits int) []byte {
	key := enc(0x30, enc(0x02, []byte{0}, bytes.Repeat([]byte{0xff}, bits/8)), number(65537))
	return enc(0xa0, enc(0x30, oid(keyRSA), enc(0x05)), enc(0x03, []byte{0}, key))
}

func extensionHole(id string) []byte { return enc(0x30, oid(id)) }

const (
	ouType    = "2.5.4.11"
	orgType   = "2.5.4.10"
	critical  = "\x01\x01\xff"
	usageType = "2.5.29.15"
	ekuType   = "2.5.29.37"
	basicType = "2.5.29.19"
)

// exampleTemplate is that of RFC 9908, 3.4.
var exampleTemplate = template(
	enc(0x30, relative(commonNameType), relative(ouType, text("myDept")), relative(ouType, text("myGroup"))),
	ecTemplate(oid(curveP256)),
	attr(attrExtensionTemplate, enc(0x30,
		extension(subjectAltNameType, enc(0x30, enc(0x82, []byte("www.myServer.com")), enc(0x87))),
		enc(0x30, oid(usageType), []byte(critical), enc(0x04, enc(0x03, []byte{3, 0x88}))),
		extensionHole(ekuType),
	)))

func TestTheTemplateOfTheStandardIsFilled(t *testing.T) {
	a, err := ParseAttrs(attrs(exampleTemplate))
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := a.Algorithm(); got != "P-256" || !ok {
		t.Errorf("key %q, %v, want P-256", got, ok)
	}
	req := Request{Subject: commonName(t, "dev-1")}
	a.Apply(&req)
	der, err := Build(req, ecKey(t, elliptic.P256()))
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	if want := enc(0x30, relative(commonNameType, text("dev-1")), relative(ouType, text("myDept")), relative(ouType, text("myGroup"))); !bytes.Equal(parsed.RawSubject, want) {
		t.Errorf("subject % x, want % x", parsed.RawSubject, want)
	}
	if !slices.Equal(parsed.DNSNames, []string{"www.myServer.com"}) || parsed.IPAddresses != nil {
		t.Errorf("names %q and %v, want the CA's, and no address: we have none", parsed.DNSNames, parsed.IPAddresses)
	}
	var got []string
	for _, e := range parsed.Extensions {
		got = append(got, e.Id.String())
		if e.Critical != (e.Id.String() == usageType) {
			t.Errorf("extension %v is critical: %v", e.Id, e.Critical)
		}
		if e.Id.String() == ekuType && !bytes.Equal(e.Value, deviceValues[ekuType]) {
			t.Errorf("extended key usage % x, want a client's", e.Value)
		}
	}
	if want := []string{subjectAltNameType, usageType, ekuType}; !slices.Equal(got, want) {
		t.Errorf("extensions %q, want %q", got, want)
	}
}

// RFC 9908, 4.
func TestATemplateMakesWhatStandsBesideItVoid(t *testing.T) {
	legacy := [][]byte{oid(attrChallengePassword), attr(keyEC, oid(curveP384)), oid(sigSHA384),
		attr(attrExtensionRequest, enc(0x30, extension(subjectAltNameType, enc(0x30)))),
		attr(attrExtensionRequest, enc(0x30, extension(subjectAltNameType, enc(0x30)))), // would be a fault
	}
	for at := range len(legacy) + 1 {
		a, err := ParseAttrs(attrs(slices.Insert(slices.Clone(legacy), at, template(nil, nil))...))
		if err != nil || !reflect.DeepEqual(a, Attrs{}) {
			t.Errorf("template at %d: %+v, %v, want no wishes", at, a, err)
		}
	}
}

// Each row is a subject in a template, and what a device with another one makes of it.
func TestASubjectInATemplateIsFilled(t *testing.T) {
	org := relative(orgType, text("Acme"))
	for _, tc := range []struct {
		name     string
		own      string // RFC 4514
		template []byte // nil for none
		want     string
	}{
		{"none", "CN=dev-1", nil, "CN=dev-1"},
		{"an empty one", "CN=dev-1", enc(0x30), "CN=dev-1"},
		{"a common name to fill in", "CN=dev-1", enc(0x30, relative(commonNameType)), "CN=dev-1"},
		{"a common name of the CA's", "CN=dev-1", enc(0x30, relative(commonNameType, text("dev-2"))), "CN=dev-1"},
		{"two common names", "CN=dev-1", enc(0x30, relative(commonNameType), relative(commonNameType, text("dev-2"))), "CN=dev-1"},
		{"a value", "CN=dev-1", enc(0x30, org), "O=Acme,CN=dev-1"},
		{"a value before the common name", "CN=dev-1", enc(0x30, org, relative(commonNameType)), "O=Acme,CN=dev-1"},
		{"a serial number to fill in", "CN=dev-1", enc(0x30, relative(serialNumberType), relative(commonNameType)), "serialNumber=dev-1,CN=dev-1"},
		{"a serial number of the device's", "serialNumber=7,CN=dev-1", enc(0x30, relative(serialNumberType), relative(commonNameType)), "serialNumber=7,CN=dev-1"},
		{"a serial number of the CA's", "CN=dev-1", enc(0x30, relative(serialNumberType, text("8")), relative(commonNameType)), "serialNumber=8,CN=dev-1"},
		{"a serial number that cannot be written", "CN=dev_1", enc(0x30, relative(serialNumberType), relative(commonNameType)), "CN=dev_1"},
		{"a serial number, and no name", "O=Acme", enc(0x30, relative(serialNumberType), relative(orgType)), "O=Acme"},
		{"a hole for what the device has", "O=Acme,CN=dev-1", enc(0x30, relative(orgType)), "O=Acme,CN=dev-1"},
		{"a hole for what it has not", "CN=dev-1", enc(0x30, relative(orgType), relative(commonNameType)), "CN=dev-1"},
		{"not what the device has besides", "O=Acme,CN=dev-1", enc(0x30, relative(commonNameType)), "CN=dev-1"},
		{"a common name for a device that has none", "O=Acme", enc(0x30, relative(commonNameType, text("dev-2")), relative(orgType)), "CN=dev-2,O=Acme"},
		{"a type that nobody knows", "CN=dev-1", enc(0x30, relative("2.25.340282366920938463463374607431768211455"), relative(commonNameType)), "CN=dev-1"},
	} {
		own, err := ParseDN(tc.own)
		if err != nil {
			t.Fatal(err)
		}
		a, err := ParseAttrs(attrs(template(tc.template, nil)))
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		req := Request{Subject: own}
		a.Apply(&req)
		if got := spelled(t, req.Subject); got != tc.want {
			t.Errorf("%s: %s becomes %s, want %s", tc.name, tc.own, got, tc.want)
		}
		if _, err := Build(req, ecKey(t, elliptic.P256())); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// spelled writes a name in the order of its bytes.
func spelled(t *testing.T, der []byte) string {
	t.Helper()
	var name nameTemplate
	if _, err := asn1.Unmarshal(der, &name); err != nil {
		t.Fatal(err)
	}
	var parts []string
	for _, relative := range name {
		for _, a := range relative {
			for _, known := range nameTypes {
				if known.oid.String() == dotted(a.Type) {
					parts = append(parts, known.name+"="+string(a.Value.Bytes))
				}
			}
		}
	}
	return strings.Join(parts, ",")
}

func TestATemplateDoesNotTouchTheNamesOfARenewal(t *testing.T) {
	a, err := ParseAttrs(attrs(exampleTemplate))
	if err != nil {
		t.Fatal(err)
	}
	current := oddCertificate(t)
	req := Renewal(current)
	a.Apply(&req)
	if !bytes.Equal(req.Subject, current.RawSubject) {
		t.Errorf("subject % x, want % x", req.Subject, current.RawSubject)
	}
	if got, want := applied(a, Renewal(current)), []string{usageType, ekuType}; !slices.Equal(got, want) {
		t.Errorf("extensions %q, want %q and no names", got, want)
	}
}

func TestTheKeyOfATemplate(t *testing.T) {
	for _, tc := range []struct {
		name string
		key  []byte
		want string
	}{
		{"none", nil, ""},
		{"P-256", ecTemplate(oid(curveP256)), "P-256"},
		{"P-384", ecTemplate(oid(curveP384)), "P-384"},
		{"any curve", ecTemplate(), "P-256"},
		{"any curve, in so many words", ecTemplate(enc(0x05)), "P-256"},
		{"P-521", ecTemplate(oid(curveP521)), ""},
		{"RSA", enc(0xa0, enc(0x30, oid(keyRSA), enc(0x05))), "RSA-2048"},
		{"RSA of 2048 bits", rsaTemplate(2048), "RSA-2048"},
		{"RSA of 4096 bits", rsaTemplate(4096), ""},
		{"RSA of 1024 bits", rsaTemplate(1024), ""},
		{"Ed25519", enc(0xa0, enc(0x30, oid(ed25519ID))), ""},
	} {
		a, err := ParseAttrs(attrs(template(nil, tc.key)))
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if got, ok := a.Algorithm(); got != tc.want || ok != (tc.want != "") {
			t.Errorf("%s: %q, %v, want %q", tc.name, got, ok, tc.want)
		}
	}
}

func TestTheAttributesOfATemplate(t *testing.T) {
	caUsage := enc(0x30, enc(0x01, []byte{0xff}))
	for _, tc := range []struct {
		name       string
		attributes [][]byte
		challenge  bool
		extensions []string
	}{
		{"none", nil, false, nil},
		{"a challengePassword", [][]byte{attr(attrChallengePassword)}, true, nil},
		{"extensions with values", [][]byte{attr(attrExtensionRequest, enc(0x30, extension(basicType, enc(0x30))))}, false, []string{basicType}},
		{"extensions with and without values", [][]byte{attr(attrExtensionTemplate, enc(0x30, extensionHole(usageType), extension(basicType, enc(0x30))))}, false, []string{usageType, basicType}},
		{"an extension by itself", [][]byte{attr(attrExtensionTemplate, extensionHole(usageType))}, false, []string{usageType}},
		{"all that a device has values for", [][]byte{attr(attrExtensionTemplate, enc(0x30, extensionHole(usageType), extensionHole(basicType), extensionHole(ekuType)))}, false, []string{usageType, basicType, ekuType}},
		{"names that it has not", [][]byte{attr(attrExtensionTemplate, enc(0x30, extensionHole(subjectAltNameType)))}, false, nil},
		{"a directory name that it has not", [][]byte{attr(attrExtensionTemplate, enc(0x30, extension(subjectAltNameType, enc(0x30, enc(0xa4, enc(0x30))))))}, false, nil},
		{"what a device must not have", [][]byte{attr(attrExtensionTemplate, enc(0x30, extension(basicType, caUsage)))}, false, nil},
		{"what nobody knows", [][]byte{attr("1.2.3.4", number(1)), oid("1.2.3.5"), attr(attrExtensionTemplate, enc(0x30, extensionHole("1.2.3.6")))}, false, nil},
		{"an attribute of its own kind", [][]byte{template(nil, nil, oid(attrChallengePassword))}, false, nil},
	} {
		a, err := ParseAttrs(attrs(template(nil, nil, tc.attributes...)))
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if got := applied(a, Request{Subject: commonName(t, "dev-1")}); !slices.Equal(got, tc.extensions) || a.ChallengePassword != tc.challenge {
			t.Errorf("%s: extensions %q, challengePassword %v, want %q, %v", tc.name, got, a.ChallengePassword, tc.extensions, tc.challenge)
		}
	}
}

func TestTemplatesThatAreRefused(t *testing.T) {
	list := enc(0x30, extensionHole(usageType))
	for _, tc := range []struct {
		name string
		der  []byte
		want string
	}{
		{"two templates", attrs(template(nil, nil), template(nil, nil)), "more than one template"},
		{"two templates in one attribute", attrs(attr(attrTemplate, enc(0x30), enc(0x30))), "2 templates"},
		{"no template in the attribute", attrs(attr(attrTemplate)), "0 templates"},
		{"an identifier alone", attrs(oid(attrTemplate)), "0 templates"},
		{"a number", attrs(attr(attrTemplate, number(0))), "template"},
		{"no version", attrs(attr(attrTemplate, enc(0x30, enc(0xa1)))), "version"},
		{"another version", attrs(attr(attrTemplate, enc(0x30, number(1), enc(0xa1)))), "version"},
		{"no attributes", attrs(attr(attrTemplate, enc(0x30, number(0)))), "other fields"},
		{"fields in another order", attrs(attr(attrTemplate, enc(0x30, number(0), enc(0xa1), enc(0x30)))), "other fields"},
		{"a name that is none", attrs(template(enc(0x30, number(1)), nil)), "subject"},
		{"a name of which a type is a number", attrs(template(enc(0x30, enc(0x31, enc(0x30, number(1)))), nil)), "no object identifier"},
		{"a long name", attrs(template(enc(0x30, relative(ouType, text(strings.Repeat("a", dnLimit)))), nil)), "limit 1024"},
		{"a name of many parts", attrs(template(enc(0x30, bytes.Repeat(relative(ouType), rdnLimit+1)), nil)), "33 attributes"},
		{"a key without an algorithm", attrs(template(nil, enc(0xa0))), "key"},
		{"an RSA key that is none", attrs(template(nil, enc(0xa0, enc(0x30, oid(keyRSA)), number(2048)))), "no key"},
		{"an RSA key that is a number", attrs(template(nil, enc(0xa0, enc(0x30, oid(keyRSA)), enc(0x03, []byte{0}, number(1))))), "key"},
		{"an extension without a value, where there are no templates", attrs(template(nil, nil, attr(attrExtensionRequest, list))), "has no value"},
		{"both kinds of lists", attrs(template(nil, nil, attr(attrExtensionRequest, enc(0x30)), attr(attrExtensionTemplate, list))), "one list"},
		{"a list twice", attrs(template(nil, nil, attr(attrExtensionTemplate, list), attr(attrExtensionTemplate, list))), "one list"},
		{"two lists", attrs(template(nil, nil, attr(attrExtensionTemplate, list, enc(0x30, extensionHole(ekuType))))), "one list"},
		{"no list", attrs(template(nil, nil, attr(attrExtensionTemplate))), "one list"},
		{"an extension twice", attrs(template(nil, nil, attr(attrExtensionTemplate, enc(0x30, extensionHole(usageType), extensionHole(usageType))))), "twice"},
		{"many attributes", attrs(template(nil, nil, bytes.Repeat(oid("1.2.3"), attrsLimit+1))), "more than 128"},
	} {
		a, err := ParseAttrs(tc.der)
		if err == nil || !reflect.DeepEqual(a, Attrs{}) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %+v, %v, want an error about %q", tc.name, a, err, tc.want)
		}
	}
}

// Whatever a template holds: the request has the device's name once, and asks for
// nothing that a device should not have. Seeds are in testdata/fuzz.
func FuzzTemplate(f *testing.F) {
	own := commonName(f, "dev-1")
	f.Fuzz(func(t *testing.T, subject, key, attributes []byte) {
		a, err := ParseAttrs(attrs(attr(attrTemplate, enc(0x30, number(0), subject, key, enc(0xa1, attributes)))))
		if algorithm, ok := a.Algorithm(); ok && (err != nil || !slices.Contains([]string{"P-256", "P-384", "RSA-2048"}, algorithm)) {
			t.Fatalf("algorithm %q, %v", algorithm, err)
		}
		req := Request{Subject: own}
		a.Apply(&req)
		var name nameTemplate
		if rest, err := asn1.Unmarshal(req.Subject, &name); err != nil || len(rest) > 0 || len(req.Subject) > 2*dnLimit {
			t.Fatalf("the subject is no name: % x, %v", req.Subject, err)
		}
		n := 0
		for _, relative := range name {
			for _, a := range relative {
				if dotted(a.Type) == commonNameType {
					n++
					if string(a.Value.Bytes) != "dev-1" {
						t.Errorf("the common name is %q", a.Value.Bytes)
					}
				}
			}
		}
		if n != 1 {
			t.Errorf("%d common names, want 1", n)
		}
		for _, e := range req.Extensions {
			if allows := harmless[e.Id.String()]; allows == nil || !allows(e.Value) {
				t.Errorf("the request has extension %v, % x", e.Id, e.Value)
			}
		}
	})
}
