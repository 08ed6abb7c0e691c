package csr

import (
	"bytes"
	"crypto/elliptic"
	"crypto/x509/pkix"
	"encoding/asn1"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"birthmark/pkg/cms"
)

func TestCommonName(t *testing.T) {
	for _, tc := range []struct {
		id string
		ok bool
	}{
		{"dev-1", true}, {"A", true}, {"_", true}, {"0123456789abcdef", true}, {strings.Repeat("x", 64), true},
		{"", false}, {strings.Repeat("x", 65), false}, {"dev.1", false}, {"dev 1", false}, {"dev/1", false}, {"dev+", false},
		{"#", false}, {"dev\x00", false}, {"dev\n", false}, {"d\u00e9v", false}, {"dev=1", false}, {"dev,CN=2", false},
	} {
		der, err := CommonName(tc.id)
		if (err == nil) != tc.ok {
			t.Errorf("%q: %v, want accepted %v", tc.id, err, tc.ok)
		}
		if want := append([]byte{0x0c, byte(len(tc.id))}, tc.id...); tc.ok && !bytes.HasSuffix(der, want) {
			t.Errorf("%q: % x, want a UTF8String at the end", tc.id, der)
		}
	}
}

func TestParseDN(t *testing.T) {
	type attr struct {
		oid, value string
		tag        int
	}
	utf8String := func(oid, value string) attr { return attr{oid, value, asn1.TagUTF8String} }
	for _, tc := range []struct {
		s    string
		want []attr // as in DER: the reverse of s
	}{
		{"CN=dev-1", []attr{utf8String("2.5.4.3", "dev-1")}},
		{"CN=dev-1,O=Acme", []attr{utf8String("2.5.4.10", "Acme"), utf8String("2.5.4.3", "dev-1")}},
		{"cn=dev-1, o = Acme ,oU=a  b", []attr{utf8String("2.5.4.11", "a  b"), utf8String("2.5.4.10", "Acme"), utf8String("2.5.4.3", "dev-1")}},
		{"C=DE", []attr{{"2.5.4.6", "DE", asn1.TagPrintableString}}},
		{"serialNumber=A-1", []attr{{"2.5.4.5", "A-1", asn1.TagPrintableString}}},
		{"L=K\u00f6ln,ST=NW,STREET=Am Hof 1", []attr{utf8String("2.5.4.9", "Am Hof 1"), utf8String("2.5.4.8", "NW"), utf8String("2.5.4.7", "K\u00f6ln")}},
		{"UID=7,DC=acme,DC=example", []attr{{"0.9.2342.19200300.100.1.25", "example", asn1.TagIA5String},
			{"0.9.2342.19200300.100.1.25", "acme", asn1.TagIA5String}, utf8String("0.9.2342.19200300.100.1.1", "7")}},
		{"emailAddress=a@b.example", []attr{{"1.2.840.113549.1.9.1", "a@b.example", asn1.TagIA5String}}},
		{"2.5.4.6=DE", []attr{{"2.5.4.6", "DE", asn1.TagPrintableString}}},
		{"1.3.6.1.4.1.99999.1=x", []attr{utf8String("1.3.6.1.4.1.99999.1", "x")}},
		{`O=Acme\, Inc.`, []attr{utf8String("2.5.4.10", "Acme, Inc.")}},
		{`O=\"a\+b\;c\<d\>e\\f\=g=h`, []attr{utf8String("2.5.4.10", `"a+b;c<d>e\f=g=h`)}},
		{`O=\#1`, []attr{utf8String("2.5.4.10", "#1")}},
		{`O=a#1`, []attr{utf8String("2.5.4.10", "a#1")}},
		{`O=\ a\ `, []attr{utf8String("2.5.4.10", " a ")}},
		{`O=\20a\20 `, []attr{utf8String("2.5.4.10", " a ")}},
		{`O=K\C3\B6ln`, []attr{utf8String("2.5.4.10", "K\u00f6ln")}},
		{`O=Lu\C4\8Di\C4\87`, []attr{utf8String("2.5.4.10", "Lu\u010di\u0107")}}, // RFC 4514, 4
		{"CN=" + strings.Repeat("\u00f6", 64), []attr{utf8String("2.5.4.3", strings.Repeat("\u00f6", 64))}},
	} {
		var want pkix.RDNSequence
		for _, a := range tc.want {
			oid, err := parseOID(a.oid)
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, rdn(oid, a.tag, a.value))
		}
		got, err := ParseDN(tc.s)
		if err != nil || !bytes.Equal(got, mustMarshal(t, want)) {
			t.Errorf("%s: % x, %v, want % x", tc.s, got, err, mustMarshal(t, want))
		}
	}
}

func TestParseDNRefuses(t *testing.T) {
	for _, tc := range []struct{ s, want string }{
		{"", "TYPE=VALUE"},
		{"dev-1", "TYPE=VALUE"},
		{"CN=dev-1,", "TYPE=VALUE"},
		{"CN=dev-1,Acme", "TYPE=VALUE"},
		{",CN=dev-1", `",CN"`},
		{"=dev-1", `""`},
		{"/CN=dev-1", `"/CN"`},
		{"CM=dev-1", `"CM"`},
		{"CN=", "0 characters"},
		{"CN=  ", "0 characters"},
		{"CN=,O=Acme", "0 characters"},
		{"CN=a+OU=b", "several values"},
		{"CN=#0c0161", "in hex"},
		{"CN= #0c0161", "in hex"},
		{`CN="dev-1"`, `"\""`},
		{"CN=a;O=b", `"\;"`},
		{"CN=<a", `"\<"`},
		{`CN=a\`, "backslash"},
		{`CN=a\x`, "backslash"},
		{`CN=a\4`, "backslash"},
		{`CN=a\4g`, "backslash"},
		{"CN=a\x00b", `'\x00'`},
		{`CN=a\00b`, `'\x00'`},
		{"CN=a\nb", `'\n'`},
		{`CN=\C3`, "UTF-8"},
		{"CN=\xff", "UTF-8"},
		{"CN=" + strings.Repeat("x", 65), "65 characters"},
		{"O=" + strings.Repeat("x", 65), "65 characters"},
		{"C=D", "want 2 to 2"},
		{"C=DEU", "want 2 to 2"},
		{"C=\u00f6\u00f6", "character"},
		{"serialNumber=a_b", `'_'`},
		{"DC=k\u00f6ln", "character"},
		{"emailAddress=k\u00f6ln@b.example", "character"},
		{"DC=" + strings.Repeat("x", 64), "64 characters"},
		{"1=x", "object identifier"},
		{"3.1=x", "object identifier"},
		{"1.40=x", "object identifier"},
		{"1.02=x", "object identifier"},
		{"1..2=x", "object identifier"},
		{"1.2.=x", "object identifier"},
		{"1.2.99999999999=x", "object identifier"},
		{"1" + strings.Repeat(".1", oidLimit) + "=x", "object identifier"},
		{"OID.2.5.4.3=x", `"OID.2.5.4.3"`},
		{strings.Repeat("CN=x,", rdnLimit) + "CN=x", "more than 32"},
		{"CN=" + strings.Repeat("x", dnLimit), "limit"},
	} {
		der, err := ParseDN(tc.s)
		if err == nil || der != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%.80q: % x, %v, want an error about %s", tc.s, der, err, tc.want)
		}
	}
}

// openssl writes the same name for the same people's words; its -subj begins at the
// other end.
func TestParseDNAgreesWithOpenSSL(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(key, []byte(openssl(t, nil, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ ours, theirs string }{
		{"CN=dev-1", "/CN=dev-1"},
		{"CN=dev-1,O=Acme", "/O=Acme/CN=dev-1"},
		{`CN=dev-1,OU=Pumps\, large,O=A \+ B,L=K\C3\B6ln,ST=NW,C=DE`, `/C=DE/ST=NW/L=Köln/O=A \+ B/OU=Pumps, large/CN=dev-1`},
		{"UID=7,DC=acme,DC=example", "/DC=example/DC=acme/UID=7"},
		{"emailAddress=a@b.example,serialNumber=A-1", "/serialNumber=A-1/emailAddress=a@b.example"},
		{"2.5.4.12=Dr,STREET=Am Hof", "/street=Am Hof/title=Dr"},
	} {
		subject, err := ParseDN(tc.ours)
		if err != nil {
			t.Errorf("%s: %v", tc.ours, err)
			continue
		}
		theirs := openssl(t, nil, "req", "-new", "-utf8", "-key", key, "-subj", tc.theirs, "-outform", "DER")
		if !strings.Contains(theirs, string(subject)) {
			t.Errorf("%s: openssl has another name for %s", tc.ours, tc.theirs)
		}
		der, err := Build(Request{Subject: subject}, ecKey(t, elliptic.P256()))
		if err != nil {
			t.Errorf("%s: %v", tc.ours, err)
			continue
		}
		want := "subject=" + strings.NewReplacer("STREET", "street", "2.5.4.12", "title").Replace(tc.ours)
		if got := strings.TrimSpace(openssl(t, der, "req", "-inform", "DER", "-noout", "-subject", "-nameopt", "rfc2253,-space_eq")); got != want {
			t.Errorf("openssl reads %s, want %s", got, want)
		}
	}
}

// A name is DER; crypto/x509 prints it, and what it prints is the same name.
func FuzzParseDN(f *testing.F) {
	for _, seed := range []string{
		"CN=dev-1,O=Acme", `OU=Pumps\, large+C=DE`, `O=\ a\C3\B6 ,1.2.3=\#`, "CN=#0c01", `CN=a\`, "2.5.4.6=DE,DC=x", "=,=",
	} {
		f.Add(seed)
	}
	f.Add(strings.Repeat("\xb7", dnLimit)) // once made a very long error
	f.Fuzz(func(t *testing.T, s string) {
		der, err := ParseDN(s)
		if err != nil {
			if !utf8.ValidString(err.Error()) || len(err.Error()) > 2*dnLimit {
				t.Fatalf("error %q", err)
			}
			return
		}
		if err := cms.CheckDER(der); err != nil {
			t.Fatal(err)
		}
		var name pkix.RDNSequence
		if rest, err := asn1.Unmarshal(der, &name); err != nil || len(rest) != 0 {
			t.Fatalf("% x: %v", der, err)
		}
		printed := name.String()
		again, err := ParseDN(printed)
		if strings.Contains(printed, "=#") || len(printed) > dnLimit {
			return // types that it prints in hex, or the escaping makes it too long
		}
		if err != nil || !bytes.Equal(again, der) {
			t.Fatalf("%q: % x; %q: % x, %v", s, der, printed, again, err)
		}
	})
}
