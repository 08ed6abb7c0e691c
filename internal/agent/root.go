package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"birthmark/pkg/rot"
)

// openRoot opens the root of trust and, at the first boot, remembers which one
// it is before anything is made in it.
func (a *Agent) openRoot(ctx context.Context) error {
	d := a.store.Get()
	var root rot.Root
	err := a.do(effectOpen, func() (err error) {
		root, err = a.open(ctx, d.Root)
		return err
	})
	switch {
	case errors.Is(err, rot.ErrReplaced), errors.Is(err, rot.ErrCleared):
		return &StopError{err}
	case err != nil:
		return err
	}
	id := root.Identity()
	if d.ID == "" {
		err := a.store.Update(func(d *Device) error {
			d.Schema, d.Root, d.ID = schema, id, a.cfg.Device.ID
			if d.ID == "" {
				d.ID = DeriveID(id)
			}
			return nil
		})
		if err != nil {
			root.Close()
			return err
		}
		d = a.store.Get()
		a.record("first-boot", slog.String("id", d.ID), slog.String("ek", id.EK), slog.Bool("ek_certificate", len(id.EKCertificate) > 0))
		if len(id.EKCertificate) == 0 {
			a.log.Warn("the TPM holds no EK certificate: nobody outside can tell that it is a real one", "ek", id.EK)
		}
	}
	if want := a.cfg.Device.ID; want != "" && want != d.ID {
		root.Close()
		return &StopError{fmt.Errorf("device.id is %q, but this device was born as %q", want, d.ID)}
	}
	a.root = root
	a.log.Info("root of trust open", "id", d.ID, "kind", id.Kind, "vendor", id.Vendor, "ek", id.EK, "ek_certificate", len(id.EKCertificate) > 0)
	return nil
}

// DeriveID is the name of a device that was given none: it follows from the EK,
// so that it is the same after every reinstallation.
func DeriveID(id rot.Identity) string {
	return "bm-" + id.EK[:min(len(id.EK), 20)]
}
