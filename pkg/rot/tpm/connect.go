package tpm

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"birthmark/pkg/rot"
)

// handlesAtOnce is how many handles one TPM2_GetCapability asks for. No TPM has
// as many loaded; a second question would follow.
const handlesAtOnce = 64

// connect makes sure that there is a connection to the TPM we know, with a
// session. Everything about a new connection happens here, so that the first one
// and one after a break do not differ.
func (r *Root) connect() error {
	if r.session != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(r.tpm.ctx, r.tpm.deadline)
	defer cancel()
	link, err := dial(ctx, r.address)
	if err != nil {
		return err
	}
	r.tpm.link = link
	if err := r.attach(); err != nil {
		r.leave() // the first error is the one to report
		return err
	}
	return nil
}

func (r *Root) attach() error {
	if isSocket(r.address) {
		if err := r.flushResidue(); err != nil {
			return err
		}
	}
	if r.id.SRKName == "" {
		return r.meet()
	}
	return r.recognise()
}

// leave unloads keys and session, as far as the connection still serves, and ends
// it. It may be called again.
func (r *Root) leave() error {
	var errs []error
	for k := range r.loaded {
		errs = append(errs, r.unload(k))
	}
	if r.session != nil {
		errs = append(errs, r.flush(r.session.handle))
		r.session = nil
	}
	r.tpm.disconnect()
	return errors.Join(errs...)
}

// flushResidue removes what a killed predecessor left in a TPM without resource
// manager. Its sessions are of no use to anybody; its keys take up the few slots.
func (r *Root) flushResidue() error {
	for _, first := range []tpm2.TPMHandle{0x80000000, 0x02000000} { // transient objects, loaded sessions
		handles, err := r.handles(first)
		if err != nil {
			return err
		}
		for _, h := range handles {
			if err := r.flush(h); err != nil {
				return err
			}
		}
		if len(handles) > 0 {
			r.log.Info("flushed what a predecessor left in the TPM", "handles", len(handles))
		}
	}
	return nil
}

// handles lists the handles of one kind in use, given the first possible one.
func (r *Root) handles(first tpm2.TPMHandle) ([]tpm2.TPMHandle, error) {
	answer, err := execute(r, tpm2.GetCapability{
		Capability: tpm2.TPMCapHandles, Property: uint32(first), PropertyCount: handlesAtOnce,
	})
	if err != nil {
		return nil, err
	}
	list, err := answer.CapabilityData.Data.Handles()
	if err != nil {
		return nil, broken(err)
	}
	return list.Handle, nil
}

// recognise begins a session with the TPM that r.id names. The session is salted
// to the public area behind the remembered Name, so only the TPM that holds this
// very key can go on; no question about the EK is needed.
func (r *Root) recognise() error {
	public, name, err := r.readPublic(srkHandle)
	if err == nil && nameText(name) == r.id.SRKName {
		r.srk = tpm2.NamedHandle{Handle: srkHandle, Name: name}
		r.session, err = r.startSession(srkHandle, public)
		return err
	}
	if err != nil && !isAbsent(err) {
		return err
	}
	return r.explainStranger()
}

// explainStranger tells a cleared TPM from another one: the EK survives
// TPM2_Clear.
func (r *Root) explainStranger() error {
	ek, err := r.findEK(r.id.EK)
	switch {
	case errors.Is(err, errNoSuchEK):
		return fmt.Errorf("%w: the TPM at %s is not the one with EK %.16s…", rot.ErrReplaced, r.address, r.id.EK)
	case err != nil:
		return err
	}
	if err := r.release(ek); err != nil {
		return err
	}
	return fmt.Errorf("%w: the TPM has another storage root key than before", rot.ErrCleared)
}

// meet begins a session with a TPM that we do not know yet, salted to its EK, and
// learns in this session which SRK it has.
func (r *Root) meet() error {
	ek, err := r.findEK("")
	if err != nil {
		return err
	}
	r.session, err = r.startSession(ek.handle.Handle, ek.public)
	if err = errors.Join(err, r.release(ek)); err != nil {
		return err
	}
	if err := r.provideSRK(); err != nil {
		return err
	}
	vendor, err := r.vendor()
	if err != nil {
		return err
	}
	r.id = rot.Identity{Kind: "tpm", Vendor: vendor, EK: ek.hash, SRKName: nameText(r.srk.Name), EKCertificate: ek.certificate}
	return nil
}

// completeIdentity reads the EK certificate of a TPM that we knew already: it was
// not saved.
func (r *Root) completeIdentity() error {
	if r.id.EKCertificate != nil {
		return nil
	}
	templates, err := r.certified()
	if err != nil {
		return err
	}
	for _, t := range templates {
		der, key, err := r.readCertificate(t.certificate)
		if err != nil {
			return err
		}
		if key != nil && keyHash(key) == r.id.EK {
			r.id.EKCertificate = der
			break
		}
	}
	return nil
}
