package tpm

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// Health is what a TPM says of its own condition. It is for people to read: a TPM's
// answers to such questions are not authenticated.
type Health struct {
	Vendor        string `json:"vendor"`         // manufacturer and model
	Firmware      string `json:"firmware"`       // the vendor's version
	EKCertificate bool   `json:"ek_certificate"` // the chip maker's, readable

	// The dictionary attack logic: Failures wrong tries of MaxFailures, one of which
	// is forgotten every Recovery. In lockout nothing that it protects can be used;
	// our keys are not.
	Lockout     bool          `json:"lockout"`
	Failures    uint32        `json:"failures"`
	MaxFailures uint32        `json:"max_failures"`
	Recovery    time.Duration `json:"recovery_ns"`

	// Handles in use, those of this connection included. The kernel's resource
	// manager shows nobody else's objects and sessions.
	Objects    int `json:"objects"`    // transient
	Sessions   int `json:"sessions"`   // loaded
	Persistent int `json:"persistent"` // keys that stay
	// ObjectsFree is how many more objects fit, at least.
	ObjectsFree uint32 `json:"objects_free"`
}

// Health asks the TPM how it is. It costs some commands, none of which changes
// anything.
func (r *Root) Health(ctx context.Context) (h Health, err error) {
	err = r.run(ctx, func() error {
		h, err = r.health()
		return err
	})
	if err != nil {
		return h, fmt.Errorf("cannot ask the TPM how it is: %w", err)
	}
	return h, nil
}

// Examine is Health of a TPM that nobody has opened, and that Open would make a
// storage key in: it connects, asks, and leaves the TPM as it was. It does not find
// out whose TPM it is; Config.Known and OwnerAuth are not used.
func Examine(ctx context.Context, c Config) (Health, error) {
	r := &Root{address: c.Address, log: c.Log, tpm: &transport{ctx: ctx, deadline: c.Deadline}}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.tpm.deadline == 0 {
		r.tpm.deadline = DefaultDeadline
	}
	defer r.tpm.disconnect()
	var h Health
	dialled, cancel := context.WithTimeout(ctx, r.tpm.deadline)
	defer cancel()
	link, err := dial(dialled, c.Address)
	if err == nil {
		r.tpm.link = link
		h, err = r.health()
	}
	if err != nil {
		return h, fmt.Errorf("cannot ask the TPM how it is: %w", meaning(err))
	}
	return h, nil
}

const inLockout = 1 << 9 // TPMA_PERMANENT (TPM 2.0 Part 2, 8.6)

func (r *Root) health() (h Health, err error) {
	if h.Vendor, err = r.vendor(); err != nil {
		return h, err
	}
	fixed, err := r.properties(tpm2.TPMPTFirmwareVersion1, tpm2.TPMPTFirmwareVersion2)
	if err != nil {
		return h, err
	}
	v1, v2 := fixed[tpm2.TPMPTFirmwareVersion1], fixed[tpm2.TPMPTFirmwareVersion2]
	h.Firmware = fmt.Sprintf("%d.%d.%d.%d", v1>>16, v1&0xffff, v2>>16, v2&0xffff)
	now, err := r.properties(tpm2.TPMPTPermanent, tpm2.TPMPTLockoutRecovery)
	if err != nil {
		return h, err
	}
	h.Lockout = now[tpm2.TPMPTPermanent]&inLockout != 0
	h.Failures, h.MaxFailures = now[tpm2.TPMPTLockoutCounter], now[tpm2.TPMPTMaxAuthFail]
	h.Recovery = time.Duration(now[tpm2.TPMPTLockoutInterval]) * time.Second
	h.ObjectsFree = now[tpm2.TPMPTHRTransientAvail]
	for _, kind := range []struct {
		first tpm2.TPMHandle
		count *int
	}{{0x80000000, &h.Objects}, {0x02000000, &h.Sessions}, {0x81000000, &h.Persistent}} {
		handles, err := r.handles(kind.first)
		if err != nil {
			return h, err
		}
		*kind.count = len(handles)
	}
	templates, err := r.certified()
	if err != nil {
		return h, err
	}
	for _, t := range templates {
		_, key, err := r.readCertificate(t.certificate)
		if err != nil {
			return h, err
		}
		h.EKCertificate = h.EKCertificate || key != nil
	}
	return h, nil
}

// properties reads a range of TPM_PT values; those that the TPM does not have are
// left out.
func (r *Root) properties(first, last tpm2.TPMPT) (map[tpm2.TPMPT]uint32, error) {
	answer, err := execute(r, tpm2.GetCapability{
		Capability: tpm2.TPMCapTPMProperties, Property: uint32(first), PropertyCount: uint32(last - first + 1),
	})
	if err != nil {
		return nil, err
	}
	list, err := answer.CapabilityData.Data.TPMProperties()
	if err != nil {
		return nil, broken(err)
	}
	found := map[tpm2.TPMPT]uint32{}
	for _, p := range list.TPMProperty {
		found[p.Property] = p.Value
	}
	return found, nil
}
