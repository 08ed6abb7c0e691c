package tpm

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"birthmark/pkg/rot"
)

// A brokenError says that a connection cannot be used any more.
type brokenError struct {
	kind error // a sentinel of package rot
	err  error
}

// broken is what nobody knows more about than that.
func broken(err error) error { return &brokenError{rot.ErrUnavailable, err} }

func (e *brokenError) Error() string   { return e.kind.Error() + ": " + e.err.Error() }
func (e *brokenError) Unwrap() []error { return []error{e.kind, e.err} }

// full are the answers of a TPM whose memory is taken: by others, or by what was
// not unloaded because an answer was lost. A new connection begins without that.
var full = []tpm2.TPMRC{
	tpm2.TPMRCObjectMemory, tpm2.TPMRCSessionMemory, tpm2.TPMRCMemory,
	tpm2.TPMRCObjectHandles, tpm2.TPMRCSessionHandles, tpm2.TPMRCContextGap,
}

// typed are the sentinels that the code that got an answer may have chosen.
var typed = []error{rot.ErrUnavailable, rot.ErrBusy, rot.ErrLockout, rot.ErrReplaced, rot.ErrCleared, rot.ErrNotOurs, rot.ErrUnsupported}

// meaning gives an error the sentinel of package rot that callers decide by. A
// TPM's answers are not authenticated: none of them may mean "wipe". One that
// nobody expected ends the connection, whatever it says: the TPM was reset or
// cleared behind our back, or a session is out of step because somebody on the bus
// kept an answer from us, or it is ill. The next use begins from a known state.
func meaning(err error) error {
	if err == nil || isAny(err, typed...) {
		return err
	}
	var code tpm2.TPMRC
	switch {
	case errors.Is(err, tpm2.TPMRCLockout):
		return fmt.Errorf("%w: %w", rot.ErrLockout, err)
	case isAny(err, full...):
		return &brokenError{rot.ErrBusy, err}
	case errors.Is(err, tpm2.TPMRCFailure):
		return &brokenError{rot.ErrFailure, err}
	case errors.As(err, &code):
		return broken(err)
	}
	return err
}

func isAny[E error](err error, targets ...E) bool {
	for _, target := range targets {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// refusedParameter tells whether the TPM refused what it was given, rather than
// who asked or where.
func refusedParameter(err error) bool {
	var code tpm2.TPMFmt1Error
	if !errors.As(err, &code) {
		return false
	}
	yes, _ := code.Parameter()
	return yes
}

// unsupported gives a refusal of what the TPM was given the meaning that it has
// where we know what we give: the chip cannot do it.
func unsupported(err error) error {
	if !refusedParameter(err) {
		return err
	}
	return fmt.Errorf("%w: %w", rot.ErrUnsupported, err)
}
