package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"birthmark/internal/sysroot"
)

// systemBus is where D-Bus is on a device, by its specification.
var systemBus = sysroot.Path("/run/dbus/system_bus_socket")

const (
	busLimit     = 10 * time.Second // for all that is said there
	busLineLimit = 256              // bytes of a line, while it is text
	busTextLimit = 64 << 10         // bytes of a message
)

// restartSystem asks logind to restart the system, which packaging/polkit lets the agent's
// user do. It speaks as much of D-Bus as one call without an answer to read takes; a
// library would be twenty times as long, and the device binary has no other use for one.
func restartSystem(ctx context.Context, bus string) error {
	ctx, cancel := context.WithTimeout(ctx, busLimit)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", bus)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	b := busConn{conn: conn, in: bufio.NewReaderSize(conn, busLineLimit)}
	if err := b.greet(); err != nil {
		return fmt.Errorf("cannot speak to D-Bus: %w", err)
	}
	if err := b.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello", ""); err != nil {
		return fmt.Errorf("cannot speak to D-Bus: %w", err)
	}
	// Reboot(b interactive): nobody is there to be asked for a password.
	if err := b.call("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager", "Reboot", "\x00\x00\x00\x00"); err != nil {
		return fmt.Errorf("logind does not restart the system: %w", err)
	}
	return nil
}

// A busConn is a connection to D-Bus (dbus.freedesktop.org, specification 0.43).
type busConn struct {
	conn   net.Conn
	in     *bufio.Reader
	serial uint32
}

// greet says who we are, which the bus compares with what the kernel says (EXTERNAL).
func (b *busConn) greet() error {
	uid := hex.EncodeToString([]byte(strconv.Itoa(os.Getuid())))
	if _, err := io.WriteString(b.conn, "\x00AUTH EXTERNAL "+uid+"\r\n"); err != nil {
		return err
	}
	answer, err := b.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(answer), "OK ") {
		return fmt.Errorf("it says %q", answer)
	}
	_, err = io.WriteString(b.conn, "BEGIN\r\n")
	return err
}

// Types of messages, and the fields of their headers that are used.
const (
	busCall, busReturn, busError                                            = 1, 2, 3
	fieldPath, fieldInterface, fieldMember, fieldError, fieldReply, fieldTo = 1, 2, 3, 4, 5, 6
	fieldSignature                                                          = 8
)

// call calls a method, whose one argument, a boolean, is in body if there is one, and
// waits until it has returned.
func (b *busConn) call(to, path, iface, member, body string) error {
	b.serial++
	fields := &busText{}
	fields.field(fieldPath, "o", path)
	fields.field(fieldTo, "s", to)
	fields.field(fieldInterface, "s", iface)
	fields.field(fieldMember, "s", member)
	if body != "" {
		fields.field(fieldSignature, "g", "b")
	}
	m := &busText{}
	m.Write([]byte{'l', busCall, 0, 1})
	m.number(uint32(len(body)))
	m.number(b.serial)
	m.number(uint32(fields.Len()))
	m.Write(fields.Bytes())
	m.align(8)
	m.WriteString(body)
	if _, err := b.conn.Write(m.Bytes()); err != nil {
		return err
	}
	for {
		kind, reply, name, err := b.read()
		switch {
		case err != nil:
			return err
		case reply != b.serial: // a signal, such as NameAcquired
		case kind == busReturn:
			return nil
		case kind == busError:
			return fmt.Errorf("it says %.200q", name)
		}
	}
}

// read reads a message as far as to tell what it answers, and how: with the name of an
// error, if it is one.
func (b *busConn) read() (kind byte, reply uint32, name string, err error) {
	var head [16]byte
	if _, err := io.ReadFull(b.in, head[:]); err != nil {
		return 0, 0, "", err
	}
	var order binary.ByteOrder = binary.LittleEndian
	if head[0] == 'B' {
		order = binary.BigEndian
	}
	size := order.Uint32(head[4:])
	fields := order.Uint32(head[12:])
	if size > busTextLimit || fields > busTextLimit {
		return 0, 0, "", errors.New("a message is too long")
	}
	rest := make([]byte, (fields+7)&^7+size)
	if _, err := io.ReadFull(b.in, rest); err != nil {
		return 0, 0, "", err
	}
	reply, name, err = readFields(order, rest[:fields])
	return head[1], reply, name, err
}

var errBus = errors.New("a message is not well formed")

// readFields finds, among the fields of a header, what it answers and the name of an
// error.
func readFields(order binary.ByteOrder, b []byte) (reply uint32, name string, err error) {
	for at := 0; at < len(b); at = (at + 7) &^ 7 {
		// A structure of a code and a variant: here the signature of one basic type.
		if at+4 > len(b) || b[at+1] != 1 || b[at+3] != 0 {
			return 0, "", errBus
		}
		code, kind := b[at], b[at+2]
		at += 4
		switch kind {
		case 'u':
			if at+4 > len(b) {
				return 0, "", errBus
			}
			if code == fieldReply {
				reply = order.Uint32(b[at:])
			}
			at += 4
		case 's', 'o':
			if at+5 > len(b) || uint64(order.Uint32(b[at:])) > uint64(len(b)-at-5) {
				return 0, "", errBus
			}
			n := int(order.Uint32(b[at:]))
			if code == fieldError {
				name = string(b[at+4 : at+4+n])
			}
			at += 4 + n + 1
		case 'g':
			if at+2 > len(b) || int(b[at]) > len(b)-at-2 {
				return 0, "", errBus
			}
			at += 1 + int(b[at]) + 1
		default:
			return 0, "", errBus
		}
	}
	return reply, name, nil
}

// A busText is written in the little-endian form of D-Bus.
type busText struct{ bytes.Buffer }

func (t *busText) align(n int) {
	for t.Len()%n != 0 {
		t.WriteByte(0)
	}
}

func (t *busText) number(n uint32) {
	t.align(4)
	t.Write(binary.LittleEndian.AppendUint32(nil, n))
}

// field adds a field of a header. Its value is a text in one of the three kinds.
func (t *busText) field(code byte, kind, value string) {
	t.align(8)
	t.Write([]byte{code, 1, kind[0], 0})
	if kind == "g" {
		t.WriteByte(byte(len(value)))
	} else {
		t.number(uint32(len(value)))
	}
	t.WriteString(value)
	t.WriteByte(0)
}
