package tpm_test

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"birthmark/pkg/rot"
	"birthmark/pkg/rot/tpm"
)

// A session without a salt would work as well, and its key would be known to
// whoever reads along (TPM 2.0 Part 1, 19.6.8).
func TestEverySessionIsSalted(t *testing.T) {
	p := interpose(t, tpm.Start(t))
	salted := 0
	p.onResponse(func(code tpm2.TPMCC, command, response []byte) []byte {
		if code != tpm2.TPMCCStartAuthSession {
			return response
		}
		// Part 3, 11.1: the header, tpmKey, bind, nonceCaller, encryptedSalt.
		key := tpm2.TPMHandle(binary.BigEndian.Uint32(command[10:]))
		salt := command[18+2+binary.BigEndian.Uint16(command[18:]):]
		if key == tpm2.TPMRHNull || binary.BigEndian.Uint16(salt) == 0 {
			t.Errorf("a session is salted to %#x with %d bytes, want a key of the TPM and a salt", key, binary.BigEndian.Uint16(salt))
		}
		salted++
		return response
	})
	var known rot.Identity
	for boot, name := range []string{"first", "later"} {
		root, err := tpm.Open(t.Context(), tpm.Config{Address: p.address, Known: known})
		if err != nil {
			t.Fatalf("%s boot: %v", name, err)
		}
		known = root.Identity()
		if err := root.Close(); err != nil {
			t.Errorf("%s boot: %v", name, err)
		}
		if salted != boot+1 {
			t.Errorf("%s boot: %d sessions so far, want %d", name, salted, boot+1)
		}
	}
}
