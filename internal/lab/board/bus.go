package board

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
)

const busSocket = "run/dbus/system_bus_socket"

// openBus is D-Bus, with a logind who can one thing: to start the system anew. A call is
// understood by the name of its method.
func (b *Board) openBus() (net.Listener, error) {
	l, err := net.Listen("unix", b.path(busSocket))
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if b.serveBus(c) == nil {
					b.Restart()
				}
			}()
		}
	}()
	return l, nil
}

// busLimit is the most that a message has, in bytes.
const busLimit = 64 << 10

// serveBus serves a connection until it asks for a restart, and has the answer.
func (b *Board) serveBus(c net.Conn) error {
	in := bufio.NewReader(c)
	for line := ""; line != "BEGIN"; {
		text, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		answer := ""
		switch line = strings.TrimSpace(strings.TrimPrefix(text, "\x00")); {
		case strings.HasPrefix(line, "AUTH EXTERNAL"): // who it is, the kernel says
			answer = "OK 0123456789abcdef0123456789abcdef\r\n"
		case line == "AUTH":
			answer = "REJECTED EXTERNAL\r\n"
		case line != "BEGIN":
			answer = "ERROR\r\n"
		}
		if _, err := io.WriteString(c, answer); err != nil {
			return err
		}
	}
	for {
		var head [16]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return err
		}
		le := binary.LittleEndian
		fields := int(le.Uint32(head[12:])+7) &^ 7
		size := fields + int(le.Uint32(head[4:]))
		if head[0] != 'l' || size > busLimit {
			return fmt.Errorf("a message has %d bytes", size)
		}
		rest := make([]byte, size)
		if _, err := io.ReadFull(in, rest); err != nil {
			return err
		}
		if _, err := c.Write(busReturn(head[8:12])); err != nil {
			return err
		}
		if bytes.Contains(rest[:fields], []byte("Reboot\x00")) {
			return nil
		}
	}
}

// busReturn is the answer to the call of that serial number: a text, which is the caller's
// name where that was asked for.
func busReturn(serial []byte) []byte {
	return slices.Concat(
		[]byte{'l', 2, 1, 1, 9, 0, 0, 0, 1, 0, 0, 0, 15, 0, 0, 0}, // a return, 9 bytes of body, 15 of fields
		[]byte{5, 1, 'u', 0}, serial,
		[]byte{8, 1, 'g', 0, 1, 's', 0, 0}, // up to a multiple of 8
		[]byte{4, 0, 0, 0, ':', '1', '.', '1', 0})
}
