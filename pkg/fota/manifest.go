package fota

import (
	"encoding/hex"
	"fmt"
)

// A Manifest is what the maker signed about a release: RAUC's manifest, as far as a
// device may act on it. Package bundle reads it; a [Policy] decides about it.
type Manifest struct {
	Compatible  string // which devices it is for
	Version     Version
	Description string // for people; may be empty
	Build       string
	Format      Format
	Verity      Verity // of FormatVerity; zero otherwise
	Images      []Image
}

// A Format is how the bytes of a bundle hang on its signature.
type Format string

const (
	// FormatVerity signs the root of a hash tree over the payload: every block can be
	// verified when it is read.
	FormatVerity Format = "verity"
	// FormatPlain signs the payload as a whole: all of it has to be read before any
	// byte may be believed.
	FormatPlain Format = "plain"
)

// Verity is the hash tree of a payload: dm-verity's, version 1, of SHA-256 over blocks of
// 4096 bytes, the salt before each block.
type Verity struct {
	Root Digest
	Salt Digest
	Size int64 // bytes of the tree, a multiple of 4096
}

// The classes of slots of a device that starts unified kernel images.
const (
	RootSlot = "rootfs" // a root file system and its hash tree, for one of two partitions
	UKISlot  = "uki"    // what starts it (UKI), for the EFI system partition
)

// An Image is a file in the payload and the kind of slot that it is made for.
type Image struct {
	Slot   string // "rootfs", "appfs": a class, of which a device has two or more
	File   string // its name; it lies in the root of the payload
	Size   int64  // bytes
	SHA256 Digest
}

// A Digest is a SHA-256 sum, or as long as one; hex in JSON.
type Digest [32]byte

// MarshalText gives 64 hexadecimal digits, of small letters.
func (d Digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText reads what MarshalText gives.
func (d *Digest) UnmarshalText(b []byte) error {
	if hex.DecodedLen(len(b)) != len(d) {
		return fmt.Errorf("%d digits are no digest of %d bytes", len(b), len(d))
	}
	_, err := hex.Decode(d[:], b)
	return err
}
