package cms

import (
	"bytes"
	"crypto/elliptic"
	"encoding/pem"
	"testing"
)

func TestCRLsInAFile(t *testing.T) {
	ca := (*party)(nil).issue("CA", ecKey(elliptic.P256()), nil)
	one := ca.revokes(nil).Raw
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	for _, c := range []struct {
		name string
		text []byte
		want int
	}{
		{"DER", one, 1},
		{"PEM", block("X509 CRL", one), 1},
		{"two, with text between", bytes.Join([][]byte{block("X509 CRL", one), block("X509 CRL", one)}, []byte("and\n")), 2},
		{"a certificate among them", append(block("X509 CRL", one), block("CERTIFICATE", ca.cert.Raw)...), 0},
		{"DER with something behind it", append(bytes.Clone(one), 0), 0},
		{"PEM of something else", block("X509 CRL", []byte("text")), 0},
		{"text", []byte("text"), 0},
		{"nothing", nil, 0},
	} {
		lists, err := ReadCRLs(c.text)
		if c.want == 0 && err == nil || c.want > 0 && (err != nil || len(lists) != c.want) {
			t.Errorf("%s: got %d CRLs, %v; want %d", c.name, len(lists), err, c.want)
		}
	}
}
