package est

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"net/http"
	"testing"
)

// withChallenge makes a request that carries challengePasswords, which crypto/x509
// cannot.
func withChallenge(tb testing.TB, d *device, values ...any) []byte {
	tb.Helper()
	type attribute struct {
		Type   asn1.ObjectIdentifier
		Values []any `asn1:"set"`
	}
	type info struct {
		Version            int
		Subject, PublicKey asn1.RawValue
		Attributes         []attribute `asn1:"set,tag:0"`
	}
	plain, err := x509.ParseCertificateRequest(d.csr(tb))
	if err != nil {
		tb.Fatal(err)
	}
	tbs, err := asn1.Marshal(info{0, asn1.RawValue{FullBytes: plain.RawSubject}, asn1.RawValue{FullBytes: plain.RawSubjectPublicKeyInfo},
		[]attribute{{oidChallenge, values}}})
	if err != nil {
		tb.Fatal(err)
	}
	sum := sha256.Sum256(tbs)
	sig, err := ecdsa.SignASN1(rand.Reader, d.key, sum[:])
	if err != nil {
		tb.Fatal(err)
	}
	der, err := asn1.Marshal(struct {
		Info      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: tbs}, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}, asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}})
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// A request that carries the channel binding of another connection was made by
// somebody else (RFC 7030 3.5).
func TestChannelBinding(t *testing.T) {
	challenge, err := asn1.Marshal([]asn1.ObjectIdentifier{oidChallenge})
	if err != nil {
		t.Fatal(err)
	}
	optional := newWorld(t, t.TempDir(), nil)
	wanted := newWorld(t, t.TempDir(), func(c *Config) { c.CSRAttrs = challenge })
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, tc := range []struct {
			name   string
			w      *world
			values func(binding string) []any
			status int
		}{
			{"its own", optional, func(b string) []any { return []any{b} }, 200},
			{"its own, wanted", wanted, func(b string) []any { return []any{b} }, 200},
			{"none", optional, nil, 200},
			{"none, wanted", wanted, nil, 403},
			{"another's", optional, func(string) []any { return []any{"AAAAAAAAAAAAAAAA"} }, 403},
			{"an empty one", optional, func(string) []any { return []any{""} }, 403},
			{"its own and another's", optional, func(b string) []any { return []any{b, "AAAAAAAAAAAAAAAA"} }, 403},
			{"a number", optional, func(string) []any { return []any{1} }, 400},
		} {
			dev := newDevice(t, "dev-1")
			password := tc.w.password(t, tc.w.owner, "dev-1")
			conf := dev.tls(tc.w.owner.Root())
			conf.MinVersion, conf.MaxVersion = version, version
			conn, err := tls.Dial("tcp", tc.w.ownerEST.Addr().String(), conf)
			if err != nil {
				t.Fatal(err)
			}
			state := conn.ConnectionState()
			binding := state.TLSUnique
			if version == tls.VersionTLS13 {
				if binding, err = state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32); err != nil {
					t.Fatal(err)
				}
			}
			csr := dev.csr(t)
			if tc.values != nil {
				csr = withChallenge(t, dev, tc.values(base64.StdEncoding.EncodeToString(binding))...)
			}
			req := request(t, http.MethodPost, tc.w.ownerEST.URL()+root+"simpleenroll", bytes.NewReader(encode(csr)))
			req.Header.Set("Content-Type", "application/pkcs10")
			req.SetBasicAuth("dev-1", password)
			if err := req.Write(conn); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(conn), req)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tc.status {
				t.Errorf("%s, %s: %s, want %d", tls.VersionName(version), tc.name, resp.Status, tc.status)
			}
			conn.Close()
		}
	}
}
