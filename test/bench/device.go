package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unicode/utf16"

	"birthmark/internal/lab/sign"
	"birthmark/pkg/fota/sdboot/pe/petest"
)

const (
	product          = "acme-gw"
	running, release = "1.0.0+sv1", "1.1.0+sv2"

	verityBlock = 4096 // bytes
)

// A device is the files of one with systemd-boot, in a folder that its programs take for
// "/": release 1.0.0 runs from root-a, and root-b is a file of so many bytes. It has no
// Secure Boot: nobody asks who signed the UKI.
type device string

func (d device) path(name string) string { return filepath.Join(string(d), name) }

// makeDevice makes a device that believes what the signer signs. Its TPM is the one at a
// socket.
func makeDevice(dir string, slot int64, by sign.Signer, tpm string) (device, error) {
	d := device(dir)
	const (
		entries   = "efi/EFI/Linux/"
		variables = "sys/firmware/efi/efivars/"
		labels    = "dev/disk/by-partlabel/"
		trust     = "etc/birthmark/firmware/"

		loader = "-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f" // Boot Loader Interface
	)
	entry := product + "_" + running + "+3.efi"
	files := map[string][]byte{
		entries + entry:       uki(running, 1),
		labels + "root-a":     append(make([]byte, verityBlock), treeTop(running)...),
		"proc/cmdline":        []byte(commandLine(running, 1)),
		"usr/lib/os-release":  []byte("IMAGE_ID=" + product + "\nIMAGE_VERSION=" + running + "\n"),
		"efi/loader/keep":     nil,
		"installer/keep":      nil,
		labels + "root-b":     nil,
		trust + "anchors.pem": nil, trust + "signing-cas.pem": nil, trust + "crls.pem": nil,
	}
	// As efivarfs has them: attributes, then the contents.
	for name, value := range map[string][]byte{
		"LoaderInfo":          wide("systemd-boot 252.39"),
		"LoaderFeatures":      binary.LittleEndian.AppendUint64(nil, 0x7f),
		"LoaderEntrySelected": wide(entry),
		"LoaderBootCountPath": wide(`\EFI\Linux\` + entry),
	} {
		files[variables+name+loader] = append([]byte{6, 0, 0, 0}, value...)
	}
	for name, from := range map[string]string{"anchors.pem": by.Anchors, "signing-cas.pem": by.SigningCAs, "crls.pem": by.CRLs} {
		text, err := os.ReadFile(from)
		if err != nil {
			return d, err
		}
		files[trust+name] = text
	}
	for name, b := range files {
		if err := os.MkdirAll(filepath.Dir(d.path(name)), 0o755); err != nil {
			return d, err
		}
		if err := os.WriteFile(d.path(name), b, 0o600); err != nil {
			return d, err
		}
	}
	return d, errors.Join(os.Symlink(tpm, d.path("dev/tpmrm0")), os.Truncate(d.path(labels+"root-b"), slot))
}

// wide is text as UEFI has it.
func wide(s string) (b []byte) {
	for _, unit := range utf16.Encode([]rune(s + "\x00")) {
		b = binary.LittleEndian.AppendUint16(b, unit)
	}
	return b
}

// treeTop is the first block of the hash tree behind the root file system of a release.
// It is all of the tree that an installer looks at.
func treeTop(version string) []byte {
	return bytes.Repeat([]byte(version), verityBlock)[:verityBlock]
}

// commandLine is the kernel's, for a root file system of so many blocks.
func commandLine(version string, blocks int64) string {
	var salt [sha256.Size]byte
	root := sha256.Sum256(append(salt[:], treeTop(version)...))
	return fmt.Sprintf("quiet init=/sbin/init verity.hash=%x verity.salt=%x verity.blocks=%d\n", root, salt, blocks)
}

// uki is what starts it.
func uki(version string, blocks int64) []byte {
	return petest.Program(
		petest.Section{Name: ".osrel", Text: "IMAGE_ID=" + product + "\nIMAGE_VERSION=" + version + "\n"},
		petest.Section{Name: ".cmdline", Text: commandLine(version, blocks)},
		petest.Section{Name: ".linux", Text: "the kernel of " + version})
}
