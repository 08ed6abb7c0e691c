package sign

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/sdboot"
)

// A UKIRecord is what a device can be recognised by that was started by a UKI.
type UKIRecord struct {
	// Authenticode is the SHA-256 over the UKI without its signatures: what Secure Boot
	// verifies, and what firmware measures into PCR 4.
	Authenticode string `json:"authenticode_sha256"`
	// RootHash is the root of the root file system's hash tree (dm-verity), as the command
	// line says it. Without one the UKI starts whatever is in the slot.
	RootHash string `json:"roothash,omitempty"`
}

// uki reads the UKI among the images in the folder dir; nil if there is none.
func (r Release) uki(dir string) (*UKIRecord, error) {
	for _, i := range r.Images {
		if i.Slot == fota.UKISlot {
			record, err := readUKI(filepath.Join(dir, filepath.Base(i.Path)), r.Version)
			if err != nil {
				return nil, fmt.Errorf("a device cannot start from UKI %s: %w", i.Path, err)
			}
			return record, nil
		}
	}
	return nil, nil
}

// readUKI reads the UKI that starts a version. It has to be one that a device can stage,
// and that its boot loader prefers to the release before.
func readUKI(path string, v fota.Version) (*UKIRecord, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	program, err := sdboot.ReadUKI(f, info.Size())
	if err != nil {
		return nil, err
	}
	if len(program.Signatures()) == 0 {
		return nil, errors.New("it is not signed for Secure Boot: sign it first, as with sbsign")
	}
	if program.Version != v.String() {
		return nil, fmt.Errorf("its os-release (section .osrel) says IMAGE_VERSION=%s, and the release is %v: the boot loader goes by the former", program.Version, v)
	}
	root, err := rootHash(program.CommandLine)
	if err != nil {
		return nil, err
	}
	digest, err := program.Digest()
	if err != nil {
		return nil, err
	}
	return &UKIRecord{Authenticode: hex.EncodeToString(digest[:]), RootHash: root}, nil
}

var sha256Hex = regexp.MustCompile(`^[0-9a-f]{64}$`)

// rootHash finds the root hash in a kernel's command line: roothash=, as systemd reads
// it, or verity.hash=, as the initrd of our virtual device does.
func rootHash(line string) (string, error) {
	var root string
	for _, word := range strings.Fields(line) {
		key, value, _ := strings.Cut(word, "=")
		switch {
		case key != "roothash" && key != "verity.hash":
		case root != "":
			return "", errors.New("its command line has two root hashes")
		case !sha256Hex.MatchString(value):
			return "", fmt.Errorf("its command line says %s, want 64 lower-case hexadecimal digits", word)
		default:
			root = value
		}
	}
	return root, nil
}
