package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
)

// A wire leads to the TPM, and counts the commands that pass. It looks at nothing
// but their sizes (TPM 2.0 Part 1, 18: tag, size, code).
type wire struct {
	listener net.Listener
	to       string // path of the TPM's socket
	commands atomic.Int64
}

// commandLimit is more than any command or answer of a TPM is long, in bytes.
const commandLimit = 64 << 10

// openWire listens at path for the agent.
func openWire(path, address string) (*wire, error) {
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	w := &wire{listener: listener, to: strings.TrimPrefix(address, "unix:")}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil { // closed
				return
			}
			w.serve(client)
		}
	}()
	return w, nil
}

// serve passes on one connection's commands and answers, until the client is gone.
// The TPM speaks to one client at a time, and so does this.
func (w *wire) serve(client net.Conn) {
	defer client.Close()
	tpm, err := net.Dial("unix", w.to)
	if err != nil {
		return
	}
	defer tpm.Close()
	for {
		if pass(tpm, client) != nil {
			return
		}
		w.commands.Add(1)
		if pass(client, tpm) != nil {
			return
		}
	}
}

// pass hands on one command, or one answer.
func pass(to io.Writer, from io.Reader) error {
	head := make([]byte, 10)
	if _, err := io.ReadFull(from, head); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(head[2:])
	if size < uint32(len(head)) || size > commandLimit {
		return fmt.Errorf("%d bytes", size)
	}
	whole := append(head, make([]byte, int(size)-len(head))...)
	if _, err := io.ReadFull(from, whole[len(head):]); err != nil {
		return err
	}
	_, err := to.Write(whole)
	return err
}

// commandsOfMessages is how many commands the TPM of the agent gets for a message of
// telemetry, while the agent sends that many.
func (w *world) commandsOfMessages(ctx context.Context, messages int) (_ float64, err error) {
	wire, err := openWire(w.path("wire"), w.tpm.Address())
	if err != nil {
		return 0, err
	}
	defer wire.listener.Close()
	w.broker.forget()
	a, err := w.startAgent("BIRTHMARK_TPM__ADDRESS=unix:"+w.path("wire"), "BIRTHMARK_TELEMETRY__INTERVAL=1s")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, a.stop()) }()
	// The first message says that the device is there, the second is telemetry.
	if _, err := w.broker.await(ctx, deviceID, 2); err != nil {
		return 0, err
	}
	before := wire.commands.Load()
	if before == 0 {
		return 0, errors.New("the agent came into service without its TPM")
	}
	if _, err := w.broker.await(ctx, deviceID, 2+messages); err != nil {
		return 0, err
	}
	return float64(wire.commands.Load()-before) / float64(messages), nil
}
