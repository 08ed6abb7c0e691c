package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/google/go-tpm/tpm2"

	"birthmark/pkg/rot"
)

const (
	headerSize    = 10   // bytes of a response's header: tag, size, code
	responseLimit = 4096 // bytes of a response; what TPMs offer and Linux reserves

	firstRetry = 10 * time.Millisecond  // after the first "try again"
	lastRetry  = 500 * time.Millisecond // between two tries, at most
)

// A transport carries commands to a TPM, one at a time, for go-tpm. It does what
// go-tpm's own transports do not: it bounds every command in time, waits while
// the TPM says "try again", puts a response together from several reads and does
// not believe its header. Its owner makes sure that one goroutine uses it.
type transport struct {
	link     io.ReadWriteCloser // nil when there is no connection
	ctx      context.Context    // of whoever is using the transport
	deadline time.Duration      // per command, retries included

	commands atomic.Uint64
	last     atomic.Int64 // nanoseconds
}

// Send implements transport.TPM of go-tpm. A brokenError ends the connection: what
// came next might be an answer to this command.
func (t *transport) Send(command []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(t.ctx, t.deadline, fmt.Errorf("no answer within %v", t.deadline))
	defer cancel()
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		response, err := t.exchange(ctx, command)
		if err != nil {
			return nil, err
		}
		if !wantsRetry(response) {
			return response, nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", rot.ErrBusy, context.Cause(ctx))
		}
	}
}

// exchange sends one command and reads its response. A goroutine of its own does
// both, since a read of /dev/tpmrm0 cannot be given a deadline: the kernel takes
// the command in the call to write and answers later. It ends when link is
// closed, at the latest when the kernel's own time for the command is over.
func (t *transport) exchange(ctx context.Context, command []byte) ([]byte, error) {
	if t.link == nil { // who cleans up does not ask
		return nil, broken(errors.New("the connection is gone"))
	}
	type result struct {
		response []byte
		err      error
	}
	done := make(chan result, 1)
	start := time.Now()
	t.commands.Add(1)
	go func(link io.ReadWriter) {
		response, err := roundTrip(link, command)
		done <- result{response, err}
	}(t.link)
	select {
	case r := <-done:
		t.last.Store(int64(time.Since(start)))
		if r.err != nil {
			t.disconnect()
			return nil, broken(r.err)
		}
		return r.response, nil
	case <-ctx.Done():
		t.last.Store(int64(time.Since(start)))
		t.disconnect()
		return nil, broken(context.Cause(ctx))
	}
}

// disconnect may be called again.
func (t *transport) disconnect() {
	if t.link != nil {
		t.link.Close() // nothing was promised about a connection that is given up
		t.link = nil
	}
}

func roundTrip(link io.ReadWriter, command []byte) ([]byte, error) {
	if _, err := link.Write(command); err != nil {
		return nil, err
	}
	return readResponse(link)
}

// readResponse reads one response (TPM 2.0 Part 1, 18.1): 2 bytes of tag, 4 of
// size, 4 of code, then the rest. It asks for all at once, because older kernels
// throw away what a short read left over, and takes what comes.
func readResponse(r io.Reader) ([]byte, error) {
	buf := make([]byte, responseLimit)
	n, err := io.ReadAtLeast(r, buf, headerSize)
	if err != nil {
		return nil, fmt.Errorf("no response: %w", err)
	}
	tag, size := tpm2.TPMST(binary.BigEndian.Uint16(buf)), binary.BigEndian.Uint32(buf[2:])
	switch {
	case tag != tpm2.TPMSTNoSessions && tag != tpm2.TPMSTSessions && tag != tpm2.TPMSTRspCommand:
		return nil, fmt.Errorf("a response with tag %#x: not a TPM 2.0", uint16(tag))
	case size < headerSize || size > responseLimit:
		return nil, fmt.Errorf("a response of %d bytes, at most %d", size, responseLimit)
	case n > int(size):
		return nil, errors.New("a response longer than it says")
	}
	if _, err := io.ReadFull(r, buf[n:size]); err != nil {
		return nil, fmt.Errorf("half a response: %w", err)
	}
	return buf[:size], nil
}

// wantsRetry tells whether a TPM asks for the same command again (TPM 2.0 Part 2,
// 6.6.3): it did not begin, and nothing has changed.
func wantsRetry(response []byte) bool {
	switch tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])) {
	case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate:
		return true
	}
	return false
}
