// Package rot is the device's root of trust: keys that are made in hardware and
// never leave it.
//
// A [Root] holds one birth key, the IDevID, and makes any number of everyday
// keys, the LDevIDs. Every key is a [crypto.Signer], so crypto/tls, certificate
// requests and tests take it unchanged. What must be saved of an LDevID is its
// [Blob], which is of no use on another device.
//
// There are two roots: rot/tpm, a TPM 2.0, and rot/soft, ordinary keys for tests
// and the lab. The device binary links only the first.
//
// A root never decides that a device has lost its identity: an error of this
// package means "not now" or "not here", never "wipe".
package rot

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"time"
)

// An Algorithm is a kind of key.
type Algorithm string

const (
	P256    Algorithm = "P-256"    // ECDSA over NIST P-256, the default
	P384    Algorithm = "P-384"    // ECDSA over NIST P-384
	RSA2048 Algorithm = "RSA-2048" // RSA, PKCS #1 v1.5 and PSS
)

// A Blob is a key in the form in which its Root keeps it outside: for a TPM the
// standard key file ("TSS2 PRIVATE KEY"), in which the private part is wrapped.
type Blob []byte

// A Key is a key inside its Root. It is safe for concurrent use until Close.
type Key interface {
	crypto.Signer
	// Blob is what Root.Open needs to find the key again; nil for the IDevID,
	// which its Root finds by itself.
	Blob() Blob
	// Close unloads the key. The key itself stays where it is. It may be called
	// again, and after the Root's Close.
	Close() error
}

// A Root makes keys and opens them again. It is safe for concurrent use.
type Root interface {
	// Identity says which root this is. It does not change while it is open.
	Identity() Identity
	// IDevID returns the birth key: the same one at every call, on this device
	// and no other.
	IDevID(ctx context.Context) (Key, error)
	// Create makes an LDevID. Nothing of it is kept by the Root: a key whose
	// Blob was not saved is gone. ErrUnsupported where it makes no such keys.
	Create(ctx context.Context, a Algorithm) (Key, error)
	// Open loads a key that Create made; ErrNotOurs when another root made it.
	Open(ctx context.Context, b Blob) (Key, error)
	// Close unloads what is still loaded. It may be called again.
	Close() error
}

// Assurance says how far a key can be believed to be where it should be.
type Assurance string

const (
	Attested Assurance = "attested" // a CA checked evidence that the key is in a real TPM
	Claimed  Assurance = "claimed"  // the key is in a TPM, but nobody has checked
	Software Assurance = "software" // the key is an ordinary file
)

// Identity says which root a device's keys live in. It is saved with them, so
// that a stolen disk in another device is recognised. The zero Identity means
// that none is known yet.
type Identity struct {
	Kind    string `json:"kind"`               // "tpm" or "software"
	Vendor  string `json:"vendor,omitempty"`   // manufacturer and model, for people
	EK      string `json:"ek,omitempty"`       // SHA-256 of the EK's SubjectPublicKeyInfo, hex
	SRKName string `json:"srk_name,omitempty"` // TPM Name of the parent of all LDevIDs, hex

	// EKCertificate is the chip maker's certificate for EK, DER; empty when the
	// TPM holds none. It is not saved: the TPM keeps it.
	EKCertificate []byte `json:"-"`
}

// Evidence is a TPM's statement about one of its keys (TPM 2.0 Part 3,
// TPM2_Certify).
type Evidence struct {
	Attest    []byte // TPMS_ATTEST
	Signature []byte // TPMT_SIGNATURE, by AK
	Public    []byte // TPMT_PUBLIC of the key
	AK        []byte // TPMT_PUBLIC of the attestation key
}

// An Attester is a Root that can also prove where a key lives. A Root that
// cannot does not implement it.
type Attester interface {
	// Certify lets the AK state that k is a key of this root. Qualifying data,
	// at most 32 bytes, ties the statement to its purpose.
	Certify(ctx context.Context, k Key, qualifying []byte) (Evidence, error)
}

// A Describer is a Key that can say, in the words of its Root, what protects
// it: for a TPM the object attributes ("fixedTPM", "sensitiveDataOrigin", …).
type Describer interface {
	Describe() []string
}

// A Counter is one that only ever counts up.
type Counter string

const (
	FirmwareFloor Counter = "firmware floor"  // the oldest firmware that may run
	OwnerEpoch    Counter = "ownership epoch" // how often the device changed hands
)

// Counters is a Root with counters that no power cut, no restored disk and no older
// firmware takes back.
type Counters interface {
	// MakeCounters makes all of them, at the values given. It changes nothing when
	// they are there, and goes on where an earlier call was stopped.
	MakeCounters(ctx context.Context, floor, epoch uint64) error
	// Count reads one; ErrCleared when there are none: they were not made, or are
	// gone with what else the owner had.
	Count(ctx context.Context, c Counter) (uint64, error)
	// Raise adds one and returns what it is then. After an error it may have been
	// raised or not: Count tells.
	Raise(ctx context.Context, c Counter) (uint64, error)
}

// Stats are a Root's own numbers since it was opened.
type Stats struct {
	Commands uint64        // sent to the hardware
	Last     time.Duration // how long the last one took
}

// A Meter is a Root that counts what it does. Reading the numbers costs no
// command.
type Meter interface {
	Stats() Stats
}

var (
	// ErrUnavailable: there is no root at the address, or it does not answer.
	ErrUnavailable = errors.New("root of trust not available")
	// ErrFailure: the root says itself that it is broken. It is unavailable, too,
	// and stays so at least until the power was off.
	ErrFailure = fmt.Errorf("%w: it has failed", ErrUnavailable)
	// ErrBusy: somebody else holds the root; try again.
	ErrBusy = errors.New("root of trust is busy")
	// ErrLockout: the root refuses because of too many wrong tries; wait.
	ErrLockout = errors.New("root of trust is locked out")
	// ErrReplaced: this is another root than the one the device was born with.
	ErrReplaced = errors.New("another root of trust")
	// ErrCleared: the same root, but its owner was cleared: LDevIDs are gone,
	// the IDevID is not.
	ErrCleared = errors.New("root of trust was cleared")
	// ErrNotOurs: the blob is no key of this root.
	ErrNotOurs = errors.New("not a key of this root of trust")
	// ErrUnsupported: this root does not do that, such as a kind of key; to try
	// again does not help.
	ErrUnsupported = errors.New("not supported by this root of trust")
)
