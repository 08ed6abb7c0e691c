package cms

import (
	"bytes"
	"crypto"
	"testing"
)

// What `rauc bundle` makes, and what else openssl can make that is as good.
func TestSignaturesOfOpenSSLAreAccepted(t *testing.T) {
	h := house()
	content := []byte("[update]\ncompatible=a device\n")
	pss := []string{"-keyopt", "rsa_padding_mode:pss"}
	for _, tc := range []struct {
		key   string
		hash  crypto.Hash
		flags []string
	}{
		{"RSA-2048", crypto.SHA256, nil},
		{"RSA-3072", crypto.SHA256, nil},
		{"RSA-3072", crypto.SHA384, nil},
		{"RSA-4096", crypto.SHA256, nil},
		{"RSA-4096", crypto.SHA512, nil},
		{"P-256", crypto.SHA256, nil},
		{"P-256", crypto.SHA512, nil},
		{"P-384", crypto.SHA256, nil},
		{"P-384", crypto.SHA384, nil},
		{"P-521", crypto.SHA256, nil},
		{"P-521", crypto.SHA512, nil},
		{"RSA-2048", crypto.SHA256, pss}, // as much salt as there is room for
		{"RSA-3072", crypto.SHA384, append(pss, "-keyopt", "rsa_pss_saltlen:-1")},
		{"RSA-4096", crypto.SHA512, append(pss, "-keyopt", "rsa_pss_saltlen:64")},
	} {
		md := map[crypto.Hash]string{crypto.SHA256: "sha256", crypto.SHA384: "sha384", crypto.SHA512: "sha512"}[tc.hash]
		signer := h.firmware.signer("Signer", keys[tc.key]())
		for _, embedded := range []bool{true, false} {
			flags := append([]string{"-md", md}, tc.flags...)
			if embedded {
				flags = append(flags, "-nodetach")
			}
			der := opensslSigns(t, content, signer, []*party{h.firmware}, flags...)
			s, err := ReadSigned(der)
			if err != nil {
				t.Errorf("%s %q: %v", tc.key, flags, err)
				continue
			}
			if embedded != bytes.Equal(s.Content, content) || embedded != (s.Content != nil) {
				t.Errorf("%s %q: content %q", tc.key, flags, s.Content)
			}
			sum := tc.hash.New()
			sum.Write(content)
			if err := s.Check(sum.Sum(nil)); err != nil || s.Hash != tc.hash {
				t.Errorf("%s %q: %v, hash %v", tc.key, flags, err, s.Hash)
			}
			chain, err := trust().Verify(s)
			if err != nil || len(chain) != 3 || !chain[0].Equal(signer.cert) {
				t.Errorf("%s %q: %q, %v", tc.key, flags, names(chain), err)
			}
		}
	}
}
