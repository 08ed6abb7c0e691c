package image

import (
	"bytes"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
)

// TestSignatureIsBelieved holds that sbverify believes our signatures, by the right
// key only, and that there is one signature of a program, not one a second.
func TestSignatureIsBelieved(t *testing.T) {
	program, err := os.ReadFile(bootLoader)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	keys, err := keysIn(dir)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := Sign(program, keys.DB)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Sign(signed, keys.DB); err != nil || !bytes.Equal(again, signed) {
		t.Errorf("signed again, the program has other bytes (%v)", err)
	}
	path := filepath.Join(dir, "signed.efi")
	if err := os.WriteFile(path, signed, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		key  Key
		want bool
	}{{"its key", keys.DB, true}, {"a foreign key", keys.Foreign, false}} {
		cert := filepath.Join(dir, "cert.pem")
		if err := os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.key.Certificate.Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := run(t.Context(), "sbverify", "--cert", cert, path); (err == nil) != c.want {
			t.Errorf("sbverify with %s: got %v, want success %v", c.name, err, c.want)
		}
	}
}
