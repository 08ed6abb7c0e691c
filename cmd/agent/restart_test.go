package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// startBus starts a D-Bus daemon at a socket of its own, which serves this user.
func startBus(t *testing.T) (socket string) {
	t.Helper()
	dir := t.TempDir()
	socket = filepath.Join(dir, "bus")
	conf := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(conf, []byte(`<busconfig><type>session</type><listen>unix:path=`+socket+`</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>`), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command("dbus-daemon", "--config-file="+conf, "--nofork", "--print-address=1")
	said, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = daemon.Process.Kill() // what follows says how it ended
		_ = daemon.Wait()
	})
	if _, err := bufio.NewReader(said).ReadString('\n'); err != nil { // it listens
		t.Fatal(err)
	}
	return socket
}

// TestARealBusUnderstandsUs: what is not well formed would end the connection.
func TestARealBusUnderstandsUs(t *testing.T) {
	socket := startBus(t)
	err := restartSystem(t.Context(), socket)
	if err == nil || !strings.Contains(err.Error(), "org.freedesktop.DBus.Error.ServiceUnknown") {
		t.Errorf("without logind: %v, want that nobody offers the service", err)
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(busLimit)); err != nil {
		t.Fatal(err)
	}
	b := busConn{conn: conn, in: bufio.NewReaderSize(conn, busLineLimit)}
	if err := b.greet(); err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{"org.freedesktop.DBus.Hello", "org.freedesktop.DBus.Peer.Ping"} {
		dot := strings.LastIndexByte(method, '.')
		if err := b.call("org.freedesktop.DBus", "/org/freedesktop/DBus", method[:dot], method[dot+1:], ""); err != nil {
			t.Errorf("%s: %v", method, err)
		}
	}
}

// fakeBus is a bus and logind: it says to each call what answers has for it, in turn.
func fakeBus(t *testing.T, greeting string, answers ...[]byte) (socket string, heard *bytes.Buffer, done <-chan struct{}) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	heard = &bytes.Buffer{}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer l.Close()
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		p := make([]byte, 4096)
		for _, answer := range append([][]byte{[]byte(greeting)}, answers...) {
			n, err := c.Read(p)
			heard.Write(p[:n])
			if bytes.HasPrefix(p[:n], []byte("BEGIN")) && n == len("BEGIN\r\n") { // the call is on its way
				n, err = c.Read(p)
				heard.Write(p[:n])
			}
			if err != nil {
				return
			}
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	}()
	return socket, heard, ended
}

// reply is a message that answers the call with that serial.
func reply(kind byte, serial uint32, name string) []byte {
	f := &busText{}
	f.field(fieldError, "s", name)
	f.align(8)
	f.Write([]byte{fieldReply, 1, 'u', 0})
	f.number(serial)
	m := &busText{}
	m.Write([]byte{'l', kind, 0, 1})
	m.number(0)
	m.number(7)
	m.number(uint32(f.Len()))
	m.Write(f.Bytes())
	m.align(8)
	return m.Bytes()
}

func TestTheSystemIsRestartedByLogind(t *testing.T) {
	const ok = "OK 0123456789abcdef0123456789abcdef\r\n"
	long := binary.LittleEndian.AppendUint32([]byte{'l', busReturn, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0}, 1<<30)
	for _, c := range []struct {
		name, greeting string
		answers        [][]byte
		want           string // in the error
	}{
		{"it is", ok, [][]byte{reply(busReturn, 1, ""), reply(busReturn, 2, "")}, ""},
		{"answers to others are passed over", ok, [][]byte{append(reply(busReturn, 9, ""), reply(busReturn, 1, "")...), reply(busReturn, 2, "")}, ""},
		{"polkit says no", ok, [][]byte{reply(busReturn, 1, ""), reply(busError, 2, "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired")}, "InteractiveAuthorizationRequired"},
		{"the bus does not know us", "REJECTED EXTERNAL\r\n", nil, "REJECTED"},
		{"it hangs up", ok, nil, "cannot speak to D-Bus"},
		{"a message without an end", ok, [][]byte{long}, "too long"},
		{"a message that is none", ok, [][]byte{append(binary.LittleEndian.AppendUint32([]byte{'l', busReturn, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0}, 8), 5, 1, 's', 0, 255, 255, 255, 255)}, "not well formed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			socket, heard, done := fakeBus(t, c.greeting, c.answers...)
			err := restartSystem(t.Context(), socket)
			<-done
			if c.want == "" && (err != nil || !strings.Contains(heard.String(), "Reboot")) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, heard was %q; want %q", err, heard, c.want)
			}
		})
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := restartSystem(gone, filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("without a bus: no error")
	}
}

// FuzzBusMessage: whatever the bus sends ends in an answer or an error.
func FuzzBusMessage(f *testing.F) {
	f.Add(reply(busReturn, 1, ""))
	f.Add(reply(busError, 2, "org.freedesktop.DBus.Error.Failed"))
	f.Add([]byte("B\x02\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x08\x05\x01u\x00\x00\x00\x00\x01"))
	f.Fuzz(func(t *testing.T, text []byte) {
		b := busConn{in: bufio.NewReader(bytes.NewReader(text))}
		for {
			if _, _, _, err := b.read(); err != nil {
				return
			}
		}
	})
}
