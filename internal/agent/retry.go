package agent

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"syscall"
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
	if after, _ := RetryAfter(err); after > 0 {
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

// RetryAfter is how long a server asked to wait, 0 if it named no time; again says
// whether err may pass by waiting.
func RetryAfter(err error) (wait time.Duration, again bool) {
	var pending *enroll.PendingError
	var unavailable *enroll.UnavailableError
	switch {
	case errors.As(err, &pending):
		return pending.RetryAfter, true
	case errors.As(err, &unavailable):
		return unavailable.RetryAfter, true
	}
	return 0, false
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

// A trouble is a class of errors of a step: its kind, by which they are counted, and
// what a person can do about one.
type trouble struct {
	kind string
	is   func(error) bool
	hint string
}

// troubles, of which the first that fits an error counts.
var troubles = []trouble{
	{"tpm", is(rot.ErrReplaced), "this state belongs to another device: put the disk back, or start this device with an empty state folder"},
	{"tpm", is(rot.ErrCleared), "the TPM's owner was cleared, and the everyday key with it: remove the state folder to enrol again; the IDevID is still there"},
	{"tpm", is(rot.ErrLockout), "wait for the TPM to recover, or reset its lockout; nothing on disk was changed"},
	{"tpm", is(rot.ErrBusy), "use /dev/tpmrm0, which several programs can share, not /dev/tpm0"},
	{"tpm", is(rot.ErrFailure), "power the device off and on; a TPM that stays in failure mode is broken"},
	{"tpm", is(rot.ErrUnsupported), "this TPM cannot do that: set tpm.algorithm to P-256"},
	{"tpm", is(rot.ErrUnavailable), "is the TPM enabled in the firmware, is tpm.address right, is this user in group tss?"},
	{"tpm", is(rot.ErrNotOurs), "the key file was made by another TPM, or the TPM was cleared"},
	{"disk", is(store.ErrLocked), "another agent, or another enrolment, is at work in this folder: wait for it, or stop it first"},
	{"disk", is(store.ErrFull), fullHint},
	{"broker", is(telemetry.ErrRefused), "the broker knows this certificate or client id not, or no longer: look at its log"},
	{"firmware", is(errFrozen), "wait until the update is settled: `birthmark firmware status`"},
	{"pending", as[*enroll.PendingError], "somebody has to approve the request at the CA"},
	{"untrusted", as[*enroll.UntrustedError], untrustedHint},
	{"untrusted", as[*clock.VerifyError], untrustedHint}, // the broker's, or one with bundles
	{"refused", as[*enroll.RefusedError], "ask the CA's operator; a one-time password can be used by one key only"},
	{"answer", as[*enroll.AnswerError], "the CA's answer breaks the rules and was not used: ask its operator"},
	{"network", is(enroll.ErrProxy), proxyHint},
	{"network", is(telemetry.ErrProxy), proxyHint}, // on the way to the broker
	{"network", unreachableProxy, proxyHint},
	{"network", as[*enroll.UnavailableError], networkHint},
	{"network", ofNetwork, networkHint},
	{"disk", is(syscall.ENOSPC), fullHint},
	{"disk", is(syscall.EIO), "the disk is failing: the kernel's log says which one"},
	{"network", is(io.EOF), networkHint},
	{otherKind, func(error) bool { return true }, ""},
}

const (
	untrustedHint = "compare the server's root certificate with the configured anchors, and the clock with the real time"
	networkHint   = "is the server running, the address right, the network up?"
	proxyHint     = "look at HTTPS_PROXY and NO_PROXY where the agent runs: is the proxy right, does it want a user and password, may it connect to this server?"
	fullHint      = "make room on the disk; nothing was lost"
	otherKind     = "other"
)

func is(target error) func(error) bool {
	return func(err error) bool { return errors.Is(err, target) }
}

func as[T error](err error) bool {
	var target T
	return errors.As(err, &target)
}

// unreachableProxy tells whether err is net/http's about a proxy that cannot be reached.
func unreachableProxy(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "proxyconnect"
}

// ofNetwork tells whether err is about a connection. A bare error of the kernel's is a
// net.Error, too, by its methods, and may be about anything.
func ofNetwork(err error) bool {
	var network net.Error
	if !errors.As(err, &network) {
		return false
	}
	_, bare := network.(syscall.Errno)
	return !bare
}

// troubleOf is the class of err.
func troubleOf(err error) trouble {
	return troubles[slices.IndexFunc(troubles, func(t trouble) bool { return t.is(err) })]
}

// Hint is what a person can do about err; empty when there is nothing to say.
func Hint(err error) string { return troubleOf(err).hint }
