package est

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/base64"
	"testing"

	"birthmark/internal/lab/ca"
)

// Whatever is posted: what is understood is a request, and the same one when it is
// encoded as we would.
func FuzzRequest(f *testing.F) {
	dev := newDevice(f, "dev-1")
	dev.tmpl = named("dev-1")
	dev.tmpl.DNSNames = []string{"dev-1.example"}
	der := dev.csr(f)
	f.Add(encode(der))
	f.Add(append(encode(der), "\r\n\x00"...))
	f.Add(encode(withChallenge(f, dev, "a", 1)))
	dev.tmpl.ExtraExtensions = []pkix.Extension{{Id: oidAltNames, Value: []byte{0x30, 0}}}
	f.Add(encode(dev.csr(f)))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n"))
	f.Add([]byte("MAA=\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		csr, err := decodeRequest(body)
		if err != nil {
			return
		}
		again, err := decodeRequest([]byte(base64.StdEncoding.EncodeToString(csr.Raw)))
		if err != nil || !bytes.Equal(again.Raw, csr.Raw) {
			t.Fatalf("understood %x, but not when it is sent again: %v", csr.Raw, err)
		}
		// These see every request that is understood, whatever they find.
		_, _ = challenges(csr)
		_ = ca.Device(0).Check(csr)
	})
}
