package agent

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"time"

	"birthmark/pkg/clock"
	"birthmark/pkg/enroll"
	"birthmark/pkg/rot"
	"birthmark/pkg/store"
	"birthmark/pkg/telemetry"
)

const (
	retryBase    = time.Second      // first retry: within this
	retryCap     = 10 * time.Minute // no retry is further away than this
	refusedBase  = time.Minute      // a CA that said no, or nonsense, is asked again slowly
	refusedCap   = time.Hour
	pendingLimit = 24 * time.Hour // longest wait that a CA can ask for
)

// backoff is how long to wait before trying again: full jitter, so that a fleet
// that lost its server together does not come back together.
func backoff(err error, attempt int) time.Duration {
	if after := retryAfter(err); after > 0 {
		return after + rand.N(after/10+1)
	}
	base, limit := retryBase, retryCap
	var refused *enroll.RefusedError
	var answer *enroll.AnswerError
	if errors.As(err, &refused) || errors.As(err, &answer) {
		base, limit = refusedBase, refusedCap
	}
	return rand.N(min(base<<min(attempt, 16), limit)) + base/10
}

// retryAfter is how long a server asked to wait; 0 if it did not.
func retryAfter(err error) time.Duration {
	var pending *enroll.PendingError
	var unavailable *enroll.UnavailableError
	switch {
	case errors.As(err, &pending):
		return pending.RetryAfter
	case errors.As(err, &unavailable):
		return unavailable.RetryAfter
	}
	return 0
}

// Pause waits and says whether it was left to.
func Pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Hint is what a person can do about err; empty when there is nothing to say.
func Hint(err error) string {
	var pending *enroll.PendingError
	var refused *enroll.RefusedError
	var untrusted *enroll.UntrustedError
	var answer *enroll.AnswerError
	var unavailable *enroll.UnavailableError
	var unverified *clock.VerifyError // the broker's
	var network net.Error
	switch {
	case errors.Is(err, rot.ErrReplaced):
		return "this state belongs to another device: put the disk back, or start this device with an empty state folder"
	case errors.Is(err, rot.ErrCleared):
		return "the TPM's owner was cleared, and the everyday key with it: remove the state folder to enrol again; the IDevID is still there"
	case errors.Is(err, rot.ErrLockout):
		return "wait for the TPM to recover, or reset its lockout; nothing on disk was changed"
	case errors.Is(err, rot.ErrBusy):
		return "use /dev/tpmrm0, which several programs can share, not /dev/tpm0"
	case errors.Is(err, rot.ErrUnavailable):
		return "is the TPM enabled in the firmware, is tpm.address right, is this user in group tss?"
	case errors.Is(err, rot.ErrNotOurs):
		return "the key file was made by another TPM, or the TPM was cleared"
	case errors.Is(err, store.ErrLocked):
		return "another agent runs on this state folder: stop it first"
	case errors.Is(err, store.ErrFull):
		return "make room on the disk; nothing was lost"
	case errors.Is(err, telemetry.ErrRefused):
		return "the broker knows this certificate or client id not, or no longer: look at its log"
	case errors.As(err, &pending):
		return "somebody has to approve the request at the CA"
	case errors.As(err, &untrusted), errors.As(err, &unverified):
		return "compare the server's root certificate with the configured anchors, and the clock with the real time"
	case errors.As(err, &refused):
		return "ask the CA's operator; a one-time password can be used by one key only"
	case errors.As(err, &answer):
		return "the CA's answer breaks the rules and was not used: ask its operator"
	case errors.As(err, &unavailable), errors.As(err, &network), errors.Is(err, io.EOF):
		return "is the server running, the address right, the network up?"
	}
	return ""
}
