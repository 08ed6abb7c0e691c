package fota

import (
	"context"
	"io"
)

// An Installer changes what a device starts next. What runs is never touched, except by
// Bless, and nothing that fails, or is cut off by a loss of power, leaves the device
// without something to start. Every method may be called again, also after a restart, and
// then ends what was begun. None is safe for concurrent use.
//
// Package sdboot is one, for systemd-boot, and package rauc one for boot loaders that RAUC
// knows. Package fotatest tries what they promise.
type Installer interface {
	// Status tells what is, from the medium and the boot loader, not from memory.
	Status(ctx context.Context) (Status, error)

	// Install writes the images of a release to the slots that do not run, reads them
	// back, and stages what starts them. copyImage gives an image, as Bundle.CopyImage
	// does; whatever it gave is worth nothing until it returns nil. When Install returns
	// nil, all of it is on the medium and would survive a loss of power; the next start is
	// still that of what runs. Refusals are at [StageSlot] and [StageBoot].
	Install(ctx context.Context, m *Manifest, copyImage CopyImage, progress func(done, total int64)) error

	// Arm makes the next starts try the release that Install has staged, a limited number
	// of times. Its manifest is the one that Install was given; what is not there as it
	// says any more is refused at [StageBoot], with the code "staged".
	Arm(ctx context.Context, m *Manifest) error

	// Cancel takes back what Install and Arm did. Nothing to take back is no error.
	Cancel(ctx context.Context) error

	// Bless says that what runs is good: it is what the device starts from now on.
	Bless(ctx context.Context) error
}

// CopyImage writes an image to w while it verifies it, and returns nil only if w has got
// all its bytes and no others.
type CopyImage func(ctx context.Context, w io.Writer, image Image, progress func(done, total int64)) error

// Status is what an [Installer] finds. [Status.Policy] is what it means for a release.
type Status struct {
	Compatible string           `json:"compatible"` // what the device is; IMAGE_ID of os-release(5)
	Running    Version          `json:"running"`
	Floor      uint32           `json:"floor"`           // the oldest security version that may be installed
	Permit     Version          `json:"permit,omitzero"` // the older release that the owner lets it take
	Slots      map[string]int64 `json:"slots"`           // bytes of the slot that does not run, by class
	Trial      bool             `json:"trial,omitempty"` // what runs was not blessed yet
	Other      Other            `json:"other,omitzero"`  // what lies beside what runs
	SecureBoot bool             `json:"secure_boot"`     // the firmware starts only what was signed for it
	Notes      []string         `json:"notes,omitempty"` // what somebody should look at, for people
}

// Other is a release that does not run.
type Other struct {
	Version Version `json:"version"`
	Mark    Mark    `json:"mark"`
	Tries   int     `json:"tries,omitempty"` // that are left, of [Armed]
}

// A Mark says what will become of a release that does not run.
type Mark string

const (
	Staged Mark = "staged" // written; nothing starts it yet
	Armed  Mark = "armed"  // the next start tries it
	Failed Mark = "failed" // tried as often as it may be; nothing starts it
	Kept   Mark = "kept"   // good once: started when what runs does not come up any more
)

// Policy is what a device in this status asks of a release.
func (s Status) Policy() Policy {
	return Policy{Compatible: s.Compatible, Running: s.Running, Floor: s.Floor, Permit: s.Permit, Slots: s.Slots}
}
