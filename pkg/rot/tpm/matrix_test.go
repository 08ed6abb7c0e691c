package tpm_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"birthmark/pkg/rot"
	"birthmark/pkg/rot/tpm"
)

const (
	matrixDeadline = 25 * time.Millisecond // of a command that is told "try again" for ever
	raceShare      = 10                    // one in so many, with the race detector
)

// Where a code of format 1 says the mistake is (TPM 2.0 Part 2, 6.6.2).
const (
	handle1    tpm2.TPMRC = 0x100
	parameter1 tpm2.TPMRC = 0x140
	parameter2 tpm2.TPMRC = 0x240
	session1   tpm2.TPMRC = 0x900
)

// refusals are response codes of every kind (TPM 2.0 Part 2, 6.6): any TPM may
// give any of them to any command.
var refusals = []tpm2.TPMRC{
	// Format 0.
	tpm2.TPMRCInitialize, tpm2.TPMRCFailure, tpm2.TPMRCSequence, tpm2.TPMRCPrivate, tpm2.TPMRCHMAC, tpm2.TPMRCDisabled,
	tpm2.TPMRCExclusive, tpm2.TPMRCAuthType, tpm2.TPMRCAuthMissing, tpm2.TPMRCPolicy, tpm2.TPMRCPCR, tpm2.TPMRCUpgrade,
	tpm2.TPMRCAuthUnavailable, tpm2.TPMRCReboot, tpm2.TPMRCUnbalanced, tpm2.TPMRCCommandSize, tpm2.TPMRCCommandCode,
	tpm2.TPMRCAuthSize, tpm2.TPMRCAuthContext, tpm2.TPMRCNVLocked, tpm2.TPMRCNVAuthorization, tpm2.TPMRCNVUninitialized,
	tpm2.TPMRCBadContext, tpm2.TPMRCNeedsTest,

	// Format 1: about a handle, a parameter, a session.
	tpm2.TPMRCHandle + handle1, tpm2.TPMRCValue + handle1, tpm2.TPMRCHierarchy + handle1, tpm2.TPMRCKey + handle1,
	tpm2.TPMRCHandle, tpm2.TPMRCAttributes + parameter1, tpm2.TPMRCValue + parameter1, tpm2.TPMRCIntegrity + parameter1,
	tpm2.TPMRCScheme + parameter2, tpm2.TPMRCHash + parameter2, tpm2.TPMRCCurve + parameter2, tpm2.TPMRCSize + parameter1,
	tpm2.TPMRCInsufficient + parameter1, tpm2.TPMRCReservedBits + parameter2, tpm2.TPMRCTicket + parameter2,
	tpm2.TPMRCAuthFail + session1, tpm2.TPMRCBadAuth + session1, tpm2.TPMRCNonce + session1, tpm2.TPMRCExpired + session1,

	// Warnings.
	tpm2.TPMRCContextGap, tpm2.TPMRCObjectMemory, tpm2.TPMRCSessionMemory, tpm2.TPMRCMemory, tpm2.TPMRCSessionHandles,
	tpm2.TPMRCObjectHandles, tpm2.TPMRCLocality, tpm2.TPMRCYielded, tpm2.TPMRCCanceled, tpm2.TPMRCTesting,
	tpm2.TPMRCReferenceH0, tpm2.TPMRCReferenceH1, tpm2.TPMRCReferenceS0, tpm2.TPMRCReferenceS1, tpm2.TPMRCNVRate,
	tpm2.TPMRCLockout, tpm2.TPMRCRetry, tpm2.TPMRCNVUnavailable,

	// A vendor's, a TPM 1.2's, a driver's, none at all.
	0x501, 0x90501, 0x1e, 0xa0008, 0xffffffff,
}

// forEver are the refusals after which a command is sent again.
var forEver = []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate}

// Whatever a TPM answers to whatever it is asked at a first and at a later boot,
// there is an end, an error that a caller can decide by, nothing believed that is
// not true, and nothing left in the TPM.
func TestEveryRefusalOfEveryCommand(t *testing.T) {
	t.Run("first boot", func(t *testing.T) { t.Parallel(); refuseEverything(t, true) })
	t.Run("later boot", func(t *testing.T) { t.Parallel(); refuseEverything(t, false) })
}

func refuseEverything(t *testing.T, firstBoot bool) {
	s := tpm.Start(t)
	eks := tpm.EKHashes(t, s)
	p := interpose(t, s)
	boot := spoiltLife{config: tpm.Config{Address: p.address}, bare: firstBoot}
	record(t, p, boot.config) // makes the storage root key
	truth, _ := record(t, p, boot.config)
	stays := handlesOf(t, p, firstPersistent) // the storage root key, and what the maker put there
	known := tpm.Config{Address: p.address, Known: truth.identity}
	known.Known.EKCertificate = nil // as it is saved
	if firstBoot {
		evictSRK(t, p)
	} else {
		boot.config = known
	}
	_, answers := record(t, p, boot.config)

	lives, errs, made := 0, 0, map[string]believed{}
	for n, answer := range answers {
		for i, code := range refusals {
			if raceDetector && (n+i)%raceShare != 0 {
				continue
			}
			life := boot
			life.name = fmt.Sprintf("command %d (%#x) refused with %#x", n, uint32(answer.code), uint32(code))
			life.answer = n
			if life.bare {
				evictSRK(t, p)
			}
			b := life.refuse(t, p, code)
			lives, errs = lives+1, errs+len(b.errs)
			for _, err := range b.errs {
				if !hasType(err) {
					t.Errorf("%s: nobody can decide by %v", life.name, err)
				}
			}
			for _, lie := range append(b.false, lies(b, truth, eks)...) {
				t.Errorf("%s: believed %s", life.name, lie)
			}
			// What was not unloaded because the TPM did not want to, or was not asked
			// because of the short deadline, the next connection would unload.
			if answer.code == tpm2.TPMCCFlushContext || slices.Contains(forEver, code) {
				flushAll(t, p)
			}
			wantNothingLeft(t, p, life.name, stays)
			if b.blob != nil {
				made[life.name] = b
			}
		}
	}
	t.Logf("%d of %d × %d refusals of a command, %d errors, %d keys made all the same", lives, len(answers), len(refusals), errs, len(made))
	wantLoadable(t, p, known, made)
}

// refuse lives with one command refused: the TPM does not get to see it.
func (l spoiltLife) refuse(t *testing.T, p *interposer, code tpm2.TPMRC) believed {
	t.Helper()
	if slices.Contains(forEver, code) {
		l.config.Deadline = matrixDeadline
	}
	seen := 0
	var refused []byte
	return l.lives(t, p.onCommand(func(_ tpm2.TPMCC, command []byte) []byte {
		if seen++; seen == l.answer+1 {
			refused = bytes.Clone(command)
			return refusal(code)
		}
		if slices.Contains(forEver, code) && bytes.Equal(command, refused) {
			return refusal(code)
		}
		return nil
	}))
}

// hasType tells whether an error is one of those that package rot promises.
func hasType(err error) bool {
	for _, kind := range []error{rot.ErrUnavailable, rot.ErrFailure, rot.ErrBusy, rot.ErrLockout, rot.ErrReplaced, rot.ErrCleared, rot.ErrNotOurs, rot.ErrUnsupported} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// Handles of the kinds that a life could leave behind.
const (
	firstObject     = 0x80000000
	firstSession    = 0x02000000
	firstSaved      = 0x03000000
	firstPersistent = 0x81000000
)

// wantNothingLeft fails the test if a life that is over left something in the TPM
// but what stays.
func wantNothingLeft(t *testing.T, p *interposer, name string, stays []tpm2.TPMHandle) {
	t.Helper()
	for what, first := range map[string]uint32{"objects": firstObject, "sessions": firstSession, "saved sessions": firstSaved, "persistent keys": firstPersistent} {
		left := slices.DeleteFunc(handlesOf(t, p, first), func(h tpm2.TPMHandle) bool { return slices.Contains(stays, h) })
		if len(left) > 0 {
			t.Errorf("%s: left %s %#x", name, what, left)
		}
	}
}

// flushAll unloads what a TPM refused to unload when it was asked.
func flushAll(t *testing.T, p *interposer) {
	t.Helper()
	for _, first := range []uint32{firstObject, firstSession} {
		for _, h := range handlesOf(t, p, first) {
			must[tpm2.FlushContextResponse](t)(tpm2.FlushContext{FlushHandle: h}.Execute(onBus{p}))
		}
	}
}

func handlesOf(t *testing.T, p *interposer, first uint32) []tpm2.TPMHandle {
	t.Helper()
	answer := must[tpm2.GetCapabilityResponse](t)(tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(onBus{p}))
	list, err := answer.CapabilityData.Data.Handles()
	if err != nil {
		t.Fatal(err)
	}
	return list.Handle
}
