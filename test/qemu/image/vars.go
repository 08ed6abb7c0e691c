package image

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode/utf16"
)

// What Debian's package ovmf holds: the firmware that verifies signatures, its
// variables not protected from who is root in the guest (that needs SMM, which costs
// seconds at each start), and a store of variables without any.
const (
	Firmware   = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	blankStore = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// enrolled is a store of UEFI variables with the maker's keys in it: the device
// leaves the factory with Secure Boot on. The layout is that of EDK II's
// MdeModulePkg/Include/Guid/VariableFormat.h.
func enrolled(k Keys) ([]byte, error) {
	store, err := os.ReadFile(blankStore)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	const storeHeader = 28
	unknown := fmt.Errorf("cannot enrol keys: %s is no empty store of variables", blankStore)
	if len(store) < 64 || string(store[40:44]) != "_FVH" {
		return nil, unknown
	}
	base := int(le.Uint16(store[48:])) // behind the header of the firmware volume
	if base+storeHeader+2 > len(store) || !bytes.Equal(store[base:base+16], guid("aaf32c78-947b-439a-a180-2e144ec37792")) {
		return nil, unknown
	}
	at, end := base+storeHeader, base+int(le.Uint32(store[base+16:]))
	if end > len(store) || le.Uint16(store[at:]) == variableStart {
		return nil, unknown
	}
	const global, security = "8be4df61-93ca-11d2-aa0d-00e098032b8c", "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
	for _, v := range []struct {
		name, vendor string
		key          Key
	}{{"PK", global, k.PK}, {"KEK", global, k.KEK}, {"db", security, k.DB}} {
		b := variable(v.name, v.vendor, signatureList(v.key.Certificate.Raw))
		if at+len(b) > end {
			return nil, errors.New("cannot enrol keys: the store is full")
		}
		at += copy(store[at:], b)
	}
	return store, nil
}

// signatureList is an EFI_SIGNATURE_LIST with one certificate (UEFI 2.10, 32.4.1).
func signatureList(cert []byte) []byte {
	const header, owner = 28, 16
	b := guid("a5c059a1-94e4-4aa7-87b5-ab155c2bf072") // EFI_CERT_X509_GUID
	for _, n := range []int{header + owner + len(cert), 0, owner + len(cert)} {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	b = append(b, guid("b1a8c5d0-0000-4000-8000-0000000000fe")...) // whose it is: ours
	return append(b, cert...)
}

const variableStart = 0x55aa

// variable is an AUTHENTICATED_VARIABLE_HEADER, name and data. A later change must be
// signed and have a later time.
func variable(name, vendor string, data []byte) []byte {
	const (
		added      = 0x3f // VAR_ADDED
		attributes = 0x27 // non-volatile, boot and run time, authenticated by time
	)
	le := binary.LittleEndian
	text := utf16.Encode([]rune(name + "\x00"))
	since := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	h := make([]byte, 60)
	le.PutUint16(h[0:], variableStart)
	h[2] = added
	le.PutUint32(h[4:], attributes)
	le.PutUint16(h[16:], uint16(since.Year())) // EFI_TIME
	h[18], h[19] = byte(since.Month()), byte(since.Day())
	le.PutUint32(h[36:], uint32(2*len(text)))
	le.PutUint32(h[40:], uint32(len(data)))
	copy(h[44:], guid(vendor))
	for _, unit := range text {
		h = le.AppendUint16(h, unit)
	}
	h = append(h, data...)
	return append(h, bytes.Repeat([]byte{0xff}, -len(h)&3)...)
}

// guid is one of this file's constants as UEFI writes it: the first three numbers
// have their low byte first.
func guid(text string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil || len(b) != 16 {
		panic("no GUID: " + text)
	}
	b[0], b[1], b[2], b[3] = b[3], b[2], b[1], b[0]
	b[4], b[5] = b[5], b[4]
	b[6], b[7] = b[7], b[6]
	return b
}
