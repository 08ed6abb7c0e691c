// Package tpm is the root of trust in a TPM 2.0: keys are made in it and never
// leave it unwrapped.
//
// [Open] connects to a TPM, through the kernel (/dev/tpmrm0) or through a socket
// (swtpm), says which one it is, and returns a [Root]. A device passes the
// [rot.Identity] it remembers: Open refuses every other TPM with
// [rot.ErrReplaced], and the same one with another storage key with
// [rot.ErrCleared].
//
// Three kinds of key, three places:
//
//	IDevID  primary key of the endorsement hierarchy   survives TPM2_Clear
//	AK      the same, restricted to what the TPM says  survives TPM2_Clear
//	LDevID  key file, wrapped by the storage root key  dies with TPM2_Clear
//
// A key that the factory left at 0x81020000 (IDevID) or 0x81020001 (attestation
// key) is used as it is. The storage root key (SRK) lives at 0x81000001, where all
// programs look for it; it is made there if there is none. No other key is left in
// the TPM: keys and the session are loaded while they are used and flushed at
// Close. What a killed process left behind a socket is flushed at the next Open;
// the kernel does that by itself.
//
// All authorizations go through one HMAC session with encrypted parameters, whose
// secret was encrypted to a key that is known to be the TPM's: the endorsement key
// at the first boot, the remembered SRK afterwards. So somebody between processor
// and TPM can break the conversation, but neither follow nor change it. Such a
// break, like a TPM that was reset, and every answer that should not be, is
// answered with [rot.ErrUnavailable]; the next use connects again, and keys load
// themselves again.
//
// TPM commands: 1 for a signature; at most 12 from Open with a remembered Identity
// to the first signature of an LDevID.
//
// Two counters lie in NV ([Root.MakeCounters]): the firmware floor and the
// ownership epoch. Their values are counted from what they began with, which a
// third index holds, written once. TPM2_Clear removes all three.
//
// What this package does not do: PCR policies, credential activation, quotes.
package tpm

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/go-tpm/tpm2"

	"birthmark/pkg/rot"
)

// DefaultDeadline bounds one TPM command. A discrete TPM may need 30 s to make an
// RSA key.
const DefaultDeadline = 60 * time.Second

// Config says which TPM to open, and how.
type Config struct {
	// Address is the path of a character device (/dev/tpmrm0), "unix:PATH" or
	// "tcp:HOST:PORT". Behind a socket there must be no other client.
	Address string
	// Known is the Identity of the first Open, as the device remembers it.
	// Zero at the first boot: then the TPM is believed to be who it says.
	Known rot.Identity
	// OwnerAuth is the authorization value of the owner hierarchy: text, at most
	// 32 bytes, usually empty. Only needed when the SRK has to be made.
	OwnerAuth string
	// Deadline is for one TPM command; zero means DefaultDeadline.
	Deadline time.Duration
	// Log may be nil.
	Log *slog.Logger
}

// A Root is an open TPM. It is safe for concurrent use; commands wait for each
// other.
type Root struct {
	address   string
	ownerAuth string
	log       *slog.Logger

	turn chan struct{} // holds one value while somebody uses what follows

	tpm     *transport
	session *session          // nil when not connected
	srk     tpm2.NamedHandle  // parent of the LDevIDs
	id      rot.Identity      // once known, another TPM is refused
	loaded  map[*Key]struct{} // keys that occupy a slot of the TPM
	clock   uint64            // of uses, so that the oldest key makes room
	closed  bool
}

var (
	_ rot.Root     = (*Root)(nil)
	_ rot.Attester = (*Root)(nil)
	_ rot.Counters = (*Root)(nil)
	_ rot.Meter    = (*Root)(nil)
)

// Open connects to a TPM and finds out which one it is. Errors to decide by:
// rot.ErrUnavailable, rot.ErrBusy, rot.ErrReplaced, rot.ErrCleared.
func Open(ctx context.Context, c Config) (*Root, error) {
	if err := checkText(c.OwnerAuth); err != nil {
		return nil, fmt.Errorf("cannot use the TPM's owner authorization: %w", err)
	}
	r := &Root{
		address:   c.Address,
		ownerAuth: c.OwnerAuth,
		log:       c.Log,
		turn:      make(chan struct{}, 1),
		tpm:       &transport{deadline: c.Deadline},
		id:        c.Known,
		loaded:    make(map[*Key]struct{}),
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.tpm.deadline == 0 {
		r.tpm.deadline = DefaultDeadline
	}
	if err := r.run(ctx, r.completeIdentity); err != nil {
		r.Close()
		return nil, fmt.Errorf("cannot open the TPM: %w", err)
	}
	return r, nil
}

// checkText takes authorization values that mean the same to every program: a
// TPM cuts off zero bytes at the end, other people's code also elsewhere.
func checkText(auth string) error {
	if len(auth) > 32 {
		return fmt.Errorf("%d bytes, at most 32", len(auth))
	}
	for _, c := range []byte(auth) {
		if c < 0x20 || c > 0x7e {
			return errors.New("it is not printable ASCII text")
		}
	}
	return nil
}

// Identity says which TPM this is. EKCertificate is empty when the TPM holds none
// that fits a key of its own.
func (r *Root) Identity() rot.Identity { return r.id }

// Stats counts since Open, over all connections.
func (r *Root) Stats() rot.Stats {
	return rot.Stats{Commands: r.tpm.commands.Load(), Last: time.Duration(r.tpm.last.Load())}
}

// Close unloads keys and session and disconnects. It may be called again.
func (r *Root) Close() error {
	r.turn <- struct{}{}
	defer func() { <-r.turn }()
	if r.closed {
		return nil
	}
	r.closed = true
	r.tpm.ctx = context.Background()
	if err := r.leave(); err != nil {
		return fmt.Errorf("cannot leave the TPM as it was: %w", meaning(err))
	}
	return nil
}

// run gives f the TPM for itself, connected to it, and its error a meaning.
func (r *Root) run(ctx context.Context, f func() error) error {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
	}
	if ctx.Err() != nil { // before a command is sent, which would end the connection
		return context.Cause(ctx)
	}
	if r.closed {
		return fmt.Errorf("%w: it was closed", rot.ErrUnavailable)
	}
	r.tpm.ctx = ctx
	r.clock++
	err := r.connect()
	if err == nil {
		err = f()
	}
	err = meaning(err)
	var end *brokenError
	if errors.As(err, &end) {
		r.leave() // as far as it goes: the break is the error to report
	}
	return err
}

// execute sends one command. Go-tpm's complaints about an answer end the
// connection: nobody knows what the TPM did.
func execute[R any](r *Root, command tpm2.Command[R, *R], extra ...tpm2.Session) (*R, error) {
	for {
		answer, err := command.Execute(r.tpm, extra...)
		if errors.Is(err, tpm2.TPMRCObjectMemory) && r.makeRoom() {
			continue
		}
		var code tpm2.TPMRC
		if err != nil && !errors.As(err, &code) && !errors.Is(err, rot.ErrUnavailable) && !errors.Is(err, rot.ErrBusy) {
			err = broken(err)
		}
		return answer, err
	}
}

func (r *Root) flush(h tpm2.TPMHandle) error {
	_, err := execute(r, tpm2.FlushContext{FlushHandle: h})
	return err
}

func nameText(name tpm2.TPM2BName) string { return hex.EncodeToString(name.Buffer) }
