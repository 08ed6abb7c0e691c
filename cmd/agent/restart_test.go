package main

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
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

// A logind is what the agent needs of logind: it remembers what it was asked, and answers.
type logind struct {
	mu     sync.Mutex
	asked  []bool
	answer *dbus.Error
}

// Reboot is called by the bus.
func (l *logind) Reboot(interactive bool) *dbus.Error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, interactive)
	return l.answer
}

// serve offers l on a bus.
func (l *logind) serve(t *testing.T, socket string) {
	t.Helper()
	conn, err := dbus.Connect("unix:path=" + socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.Export(l, "/org/freedesktop/login1", "org.freedesktop.login1.Manager"); err != nil {
		t.Fatal(err)
	}
	if got, err := conn.RequestName("org.freedesktop.login1", dbus.NameFlagDoNotQueue); err != nil || got != dbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("cannot be logind: %v, %v", got, err)
	}
}

func TestTheSystemIsRestartedByLogind(t *testing.T) {
	socket := startBus(t)
	if err := restartSystem(t.Context(), socket); err == nil || !strings.Contains(err.Error(), "org.freedesktop.login1") {
		t.Errorf("without logind: %v, want that nobody offers the service", err)
	}
	l := &logind{}
	l.serve(t, socket)
	err := restartSystem(t.Context(), socket)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil || len(l.asked) != 1 || l.asked[0] {
		t.Errorf("logind was asked %v, %v; want once, with nobody to be asked", l.asked, err)
	}
}

func TestARefusalOfLogindsIsTold(t *testing.T) {
	socket := startBus(t)
	l := &logind{}
	l.answer = dbus.NewError("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", []any{"not for you"})
	l.serve(t, socket)
	var no dbus.Error
	if err := restartSystem(t.Context(), socket); !errors.As(err, &no) || no.Name != l.answer.Name {
		t.Errorf("polkit says no: %v, want %v", err, l.answer)
	}
}

func TestABusThatIsNoneEndsInAnError(t *testing.T) {
	for name, say := range map[string]func(c net.Conn){
		"it does not know us":      func(c net.Conn) { _, _ = c.Write([]byte("REJECTED\r\n")) },
		"it hangs up":              func(net.Conn) {},
		"it speaks another tongue": func(c net.Conn) { _, _ = c.Write([]byte("220 mail.example.com ESMTP\r\n")) },
	} {
		socket := filepath.Join(t.TempDir(), "bus")
		listener, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer listener.Close()
			if c, err := listener.Accept(); err == nil {
				say(c)
				c.Close()
			}
		}()
		if err := restartSystem(t.Context(), socket); err == nil || !strings.Contains(err.Error(), "cannot speak to D-Bus") {
			t.Errorf("%s: %v, want that it cannot be spoken to", name, err)
		}
	}
}

// TestASilentBusIsLeft: nothing else would end the wait for an answer.
func TestASilentBusIsLeft(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "bus")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		c, err := listener.Accept()
		if err == nil {
			defer c.Close()
			_, _ = bufio.NewReader(c).ReadString('\n') // it was asked who we are
			cancel()
			<-t.Context().Done()
		}
	}()
	if err := restartSystem(ctx, socket); err == nil {
		t.Error("a bus that says nothing: no error")
	}
	if err := restartSystem(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a bus: %v", err)
	}
}
