package tpm

import (
	"testing"

	"github.com/google/go-tpm/tpm2"

	"birthmark/internal/swtpm/swtpmtest"
)

// What lies where the chip maker's certificate should, and is none that anybody could
// use, is no certificate to a doctor: and no reason not to look at the rest.
func TestHealthTakesNoUnreadableCertificateForOne(t *testing.T) {
	at := ekTemplates[0].certificate
	for name, spoil := range map[string]func(c chip, good []byte){
		"noise":         func(c chip, good []byte) { c.index(at, 100, make([]byte, 100), readable) },
		"half of it":    func(c chip, good []byte) { c.index(at, 100, good[:100], readable) },
		"never written": func(c chip, good []byte) { c.index(at, len(good), nil, readable) },
		"not for us":    func(c chip, good []byte) { c.index(at, len(good), good, tpm2.TPMANV{}) },
	} {
		s := clean(t, swtpmtest.StartBare(t))
		conn, done := Direct(t, s)
		c := chip{t, conn}
		spoil(c, ekCertificate(t, c.ek(ekTemplates[0].public, 0)))
		done()
		h, err := Examine(t.Context(), Config{Address: s.Address()})
		if err != nil || h.EKCertificate || h.Firmware == "" || h.ObjectsFree == 0 {
			t.Errorf("%s: got %+v, %v, want all but the certificate", name, h, err)
		}
	}
}
