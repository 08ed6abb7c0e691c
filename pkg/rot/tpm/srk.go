package tpm

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"birthmark/pkg/rot"
)

// provideSRK finds the storage root key, or makes it and stores it under its
// handle. A session salted to the EK makes sure that what we are told is what the
// TPM has: later sessions stand on the Name that is learned here.
func (r *Root) provideSRK() error {
	public, name, err := r.readPublic(srkHandle)
	if isAbsent(err) {
		if err := r.makeSRK(); err != nil {
			return fmt.Errorf("cannot make the storage root key: %w", err)
		}
		public, name, err = r.readPublic(srkHandle)
	}
	if err != nil {
		return err
	}
	r.srk = tpm2.NamedHandle{Handle: srkHandle, Name: name}
	if err := r.confirm(r.srk); err != nil {
		return err
	}
	if !isStorageKey(public) {
		return fmt.Errorf("%w: it holds something at %#x that is no storage root key", rot.ErrUnsupported, srkHandle)
	}
	return nil
}

// makeSRK follows the TCG's template (TPM v2.0 Provisioning Guidance, 7.5.1), so
// that other programs take the key for what it is.
func (r *Root) makeSRK() error {
	made, err := execute(r, tpm2.CreatePrimary{PrimaryHandle: r.owner(in), InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)})
	if err != nil {
		return err
	}
	_, err = execute(r, tpm2.EvictControl{
		Auth:             r.owner(plain),
		ObjectHandle:     tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name},
		PersistentHandle: srkHandle,
	})
	return errors.Join(err, r.flush(made.ObjectHandle))
}

func (r *Root) owner(d direction) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: r.session.authorize(r.ownerAuth, d)}
}

// isStorageKey tells whether keys can be kept under a key, whoever made it.
func isStorageKey(public *tpm2.TPMTPublic) bool {
	a := public.ObjectAttributes
	return a.FixedTPM && a.FixedParent && a.SensitiveDataOrigin && a.Restricted && a.Decrypt && !a.SignEncrypt &&
		(public.Type == tpm2.TPMAlgECC || public.Type == tpm2.TPMAlgRSA)
}
