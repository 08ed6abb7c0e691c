package installer

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// long is how long a test waits for what takes no time.
const long = 20 * time.Second

// serve starts s at a socket of its own. ended has the error of Serve.
func serve(t *testing.T, ctx context.Context, s *Server) (socket string, ended <-chan error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "bm") // short enough for the path of a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	s.Log = slog.New(slog.DiscardHandler)
	if s.State == "" {
		s.State = filepath.Join(dir, "state")
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	return socket, done
}

// say sends text and returns all that comes back.
func say(t *testing.T, socket, text string) string {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(long)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, text) // who is refused may be hung up on
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		t.Logf("closing: %v", err)
	}
	got, _ := io.ReadAll(c)
	return string(got)
}

func TestRequests(t *testing.T) {
	s := &Server{Version: "1.2.3", Users: []uint32{uint32(os.Getuid())}, Idle: time.Hour}
	socket, _ := serve(t, t.Context(), s)
	status := `{"status":{"version":"1.2.3","protocol":1,`
	refused := func(why string) string { return `{"error":"` + why }
	loader := `{"refused":{"stage":"boot","code":"loader","reason":"this device has no boot loader that this version can handle"}}` + "\n"
	for _, c := range []struct{ name, send, want string }{
		{"status", `{"verb":"status"}` + "\n", status},
		{"spaces", ` { "verb" : "status" } ` + "\n", status},
		{"install", `{"verb":"install","size":1}` + "\n", loader},
		{"arm", `{"verb":"arm","version":"1.0.0+sv1"}` + "\n", loader},
		{"bless", `{"verb":"bless"}` + "\n", loader},
		{"cancel", `{"verb":"cancel"}` + "\n", loader},
		{"another verb", `{"verb":"reboot"}` + "\n", refused(`no verb \"reboot\" is known`)},
		{"no verb", "{}\n", refused(`no verb \"\"`)},
		{"null", `{"verb":null}` + "\n", refused(`no verb \"\"`)},
		{"another case", `{"Verb":"status"}` + "\n", refused(`cannot take the request: member \"Verb\" is not known`)},
		{"another member", `{"verb":"status","path":"/etc/shadow"}` + "\n", refused(`cannot take the request: member \"path\" is not known`)},
		{"twice", `{"verb":"install","verb":"status"}` + "\n", refused(`cannot take the request: member \"verb\" is not known, or comes twice`)},
		{"a number", `{"verb":1}` + "\n", refused(`cannot take the request: member \"verb\": json: cannot unmarshal number`)},
		{"a size for status", `{"verb":"status","size":1}` + "\n", refused("cannot take the request: only install takes a size")},
		{"a size for nothing", `{"size":1}` + "\n", refused("cannot take the request: only install takes a size")},
		{"half a byte", `{"verb":"install","size":0.5}` + "\n", refused(`cannot take the request: member \"size\"`)},
		{"an install of nothing", `{"verb":"install"}` + "\n", refused("install takes a size, or a descriptor")},
		{"a version for bless", `{"verb":"bless","version":"1.0.0+sv1"}` + "\n", refused("cannot take the request: only arm takes a version")},
		{"arm without a version", `{"verb":"arm"}` + "\n", refused("cannot take the request: arm takes a version")},
		{"arm with no version", `{"verb":"arm","version":""}` + "\n", refused("cannot take the request: arm takes a version")},
		{"arm with no real version", `{"verb":"arm","version":"../b"}` + "\n", refused(`cannot take the request: member \"version\"`)},
		{"two objects", `{"verb":"status"}{}` + "\n", refused("cannot take the request: there is something behind it")},
		{"two lines", `{"verb":"status"}` + "\n" + `{"verb":"status"}` + "\n", refused("a connection is for one request")},
		{"no object", "status\n", refused("cannot take the request: it is no JSON object")},
		{"a list", `["status"]` + "\n", refused("cannot take the request: it is no JSON object")},
		{"half an object", `{"verb":"status"` + "\n", refused("cannot take the request: it is no JSON")},
		{"no end of the line", `{"verb":"status"}`, refused("no whole request came")},
		{"nothing", "", refused("no whole request came")},
		{"too long", strings.Repeat(" ", requestLimit) + `{"verb":"status"}` + "\n", refused("no whole request came: a line has at most 4096 bytes")},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := say(t, socket, c.send); !strings.HasPrefix(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestOthersAreNotListenedTo needs root, which may ask whatever Users says, to become
// somebody else; without it, it is somebody else already.
func TestOthersAreNotListenedTo(t *testing.T) {
	if os.Getuid() == 0 {
		s := &Server{Version: "1.2.3", Idle: time.Hour}
		socket, _ := serve(t, t.Context(), s)
		if got := say(t, socket, `{"verb":"status"}`+"\n"); !strings.Contains(got, "1.2.3") {
			t.Errorf("root got %q, want the status", got)
		}
	}
	for _, c := range []struct {
		uid   uint32
		users []uint32
		want  bool
	}{
		{0, nil, true},
		{998, []uint32{998}, true},
		{998, nil, false},
		{65534, []uint32{998}, false},
	} {
		if got := (&Server{Users: c.users}).may(c.uid); got != c.want {
			t.Errorf("user %d, of %v: %t, want %t", c.uid, c.users, got, c.want)
		}
	}
}

func TestItEndsWhenNobodyComes(t *testing.T) {
	_, ended := serve(t, t.Context(), &Server{Idle: time.Millisecond})
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("it ended with %v, want nil", err)
		}
	case <-time.After(long):
		t.Error("it did not end")
	}
}

// TestASilentPeerDoesNotHoldUpAStop connects, says nothing, and stops the server.
func TestASilentPeerDoesNotHoldUpAStop(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	socket, ended := serve(t, ctx, &Server{Idle: time.Hour})
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("it ended with %v, want nil", err)
		}
	case <-time.After(peerLimit - time.Second):
		t.Error("it did not end")
	}
}

// TestTheLongestStatusIsAnswered has a boot loader say as much as it can.
func TestTheLongestStatusIsAnswered(t *testing.T) {
	d := newDevice(t)
	d.loader.set(func() {
		d.loader.status.Notes = slices.Repeat([]string{strings.Repeat(`<"\`, textLimit)}, 2*notesLimit)
	})
	st, err := d.Status(t.Context())
	if err != nil || len(st.Notes) != notesLimit {
		t.Fatalf("got %v, want %d notes", err, notesLimit)
	}
	if want := strings.Repeat(`<"\`, textLimit)[:textLimit] + "..."; st.Notes[0] != want {
		t.Errorf("a note has %d bytes, want its first %d", len(st.Notes[0]), textLimit)
	}
}
