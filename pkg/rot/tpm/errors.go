package tpm

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"birthmark/pkg/rot"
)

// A brokenError says that a connection cannot be used any more.
type brokenError struct{ err error }

func (e *brokenError) Error() string   { return rot.ErrUnavailable.Error() + ": " + e.err.Error() }
func (e *brokenError) Unwrap() []error { return []error{rot.ErrUnavailable, e.err} }

// lost are the answers of a TPM that knows nothing of our keys and sessions any
// more: it was reset or cleared behind our back, or it failed. None of our keys
// has an authorization value, so one that is said to be wrong means a session that
// is out of step: somebody on the bus kept an answer from us.
var lost = []tpm2.TPMRC{
	tpm2.TPMRCAuthFail, tpm2.TPMRCBadAuth,
	tpm2.TPMRCInitialize, tpm2.TPMRCFailure, tpm2.TPMRCHandle,
	tpm2.TPMRCReferenceH0, tpm2.TPMRCReferenceH1, tpm2.TPMRCReferenceH2,
	tpm2.TPMRCReferenceS0, tpm2.TPMRCReferenceS1, tpm2.TPMRCReferenceS2,
}

// full are the answers of a TPM whose memory is taken by others.
var full = []tpm2.TPMRC{tpm2.TPMRCObjectMemory, tpm2.TPMRCSessionMemory, tpm2.TPMRCObjectHandles, tpm2.TPMRCSessionHandles, tpm2.TPMRCContextGap}

// meaning gives an error the sentinel of package rot that callers decide by. A
// TPM's answers are not authenticated: none of them may mean "wipe". An answer
// that is in no list stays what it is, such as "unsupported curve".
func meaning(err error) error {
	var broken *brokenError
	switch {
	case err == nil, errors.As(err, &broken):
		return err
	case isAny(err, lost):
		return &brokenError{err}
	case isAny(err, full):
		return fmt.Errorf("%w: %w", rot.ErrBusy, err)
	case errors.Is(err, tpm2.TPMRCLockout):
		return fmt.Errorf("%w: %w", rot.ErrLockout, err)
	}
	return err
}

func isAny(err error, codes []tpm2.TPMRC) bool {
	for _, code := range codes {
		if errors.Is(err, code) {
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
