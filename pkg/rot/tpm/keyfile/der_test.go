package keyfile_test

import (
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
)

// file makes a key file of DER written as hexadecimal bytes.
func file(t *testing.T, der string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(der, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "TSS2 PRIVATE KEY", Bytes: b})
}

// seq puts a SEQUENCE of less than 128 bytes around elements.
func seq(elements string) string {
	return fmt.Sprintf("30 %02x %s", len(strings.ReplaceAll(elements, " ", ""))/2, elements)
}
