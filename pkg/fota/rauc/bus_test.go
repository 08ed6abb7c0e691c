package rauc

import (
	"bufio"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"birthmark/pkg/fota"
)

// A falseBus answers every call with what it has for the method, and is silent if that is
// nothing. RAUC is :1.7 there.
type falseBus struct {
	answers map[string][]any
	asked   chan string // of whom, and what
}

// listen makes a bus for one connection, on which RAUC is a user's.
func listen(t *testing.T, uid uint32, answers map[string][]any) (socket string, b falseBus) {
	socket = filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	b = falseBus{map[string][]any{
		"Hello": {":1.1"}, "StartServiceByName": {uint32(1)}, "GetNameOwner": {":1.7"}, "GetConnectionUnixUser": {uid},
	}, make(chan string, 100)}
	for method, answer := range answers {
		b.answers[method] = answer
	}
	go func() {
		if conn, err := l.Accept(); err == nil {
			defer conn.Close()
			b.serve(conn)
		}
	}()
	return socket, b
}

// serve serves a connection until it ends. What is wrong with it the other end notices.
func (b falseBus) serve(conn net.Conn) {
	r := bufio.NewReader(conn)
	for line := ""; !strings.HasPrefix(line, "BEGIN"); {
		var err error
		if line, err = r.ReadString('\n'); err != nil {
			return
		}
		says := "ERROR\r\n"
		switch word := strings.TrimLeft(line, "\x00"); {
		case strings.HasPrefix(word, "AUTH EXTERNAL"):
			says = "OK 0123456789abcdef0123456789abcdef\r\n"
		case strings.HasPrefix(word, "AUTH"):
			says = "REJECTED EXTERNAL\r\n"
		case strings.HasPrefix(word, "BEGIN"):
			continue
		}
		if _, err := conn.Write([]byte(says)); err != nil {
			return
		}
	}
	for {
		call, err := dbus.DecodeMessage(r)
		if err != nil {
			return
		}
		method, _ := call.Headers[dbus.FieldMember].Value().(string)
		to, _ := call.Headers[dbus.FieldDestination].Value().(string)
		b.asked <- to + " " + method
		answer := b.answers[method]
		if answer == nil {
			continue
		}
		reply := dbus.Message{Type: dbus.TypeMethodReply, Body: answer, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldReplySerial: dbus.MakeVariant(call.Serial()),
			dbus.FieldSender:      dbus.MakeVariant(to),
			dbus.FieldSignature:   dbus.MakeVariant(dbus.SignatureOf(answer...)),
		}}
		if reply.EncodeTo(conn, binary.LittleEndian) != nil {
			return
		}
	}
}

// Who is not root, and has RAUC's name, is asked nothing.
func TestRAUCIsRoots(t *testing.T) {
	socket, b := listen(t, uint32(os.Getuid())+1, nil)
	_, err := dial(t.Context(), socket, busLimit)
	var no *fota.Refusal
	if !errors.As(err, &no) || no.Code != "settings" || !strings.Contains(err.Error(), "want root") {
		t.Errorf("got %v, want a refusal: RAUC is not root's", err)
	}
	for range len(b.asked) {
		if call := <-b.asked; !strings.HasPrefix(call, "org.freedesktop.DBus ") {
			t.Errorf("%s was asked", call)
		}
	}
}

// Whoever takes RAUC's name later is asked nothing either.
func TestRAUCIsWhoItWas(t *testing.T) {
	socket, b := listen(t, uint32(os.Getuid()), map[string][]any{"GetPrimary": {"rootfs.0"}})
	s, err := dial(t.Context(), socket, busLimit)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if slot, err := s.primary(t.Context()); err != nil || slot != "rootfs.0" {
		t.Errorf("got %q, %v, want rootfs.0", slot, err)
	}
	last := ""
	for range len(b.asked) {
		last = <-b.asked
	}
	if want := ":1.7 GetPrimary"; last != want {
		t.Errorf("asked %q, want %q", last, want)
	}
}

// The time for calls is one for all of them: who waits for the end does not wait for each.
func TestCallsShareTheirTime(t *testing.T) {
	socket, _ := listen(t, uint32(os.Getuid()), map[string][]any{"GetPrimary": {"rootfs.0"}})
	s, err := dial(t.Context(), socket, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := s.mark(t.Context(), "good", "rootfs.0"); err == nil || !strings.Contains(err.Error(), "left for its answer") {
		t.Errorf("marked: %v, want that there was no answer", err)
	}
	if slot, err := s.primary(t.Context()); err == nil || !strings.Contains(err.Error(), "left for its answer") {
		t.Errorf("got %q, %v, want that no time is left", slot, err)
	}
}
