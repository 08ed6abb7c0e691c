package installer

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// patience is how long a test waits for what takes no time.
const patience = 10 * time.Second

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
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	return socket, done
}

// ask sends text and returns all that comes back.
func ask(t *testing.T, socket, text string) string {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, text) // who is refused may be hung up on
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		t.Logf("closing: %v", err)
	}
	got, _ := io.ReadAll(c)
	return string(got)
}

func TestOnlyStatusIsAnswered(t *testing.T) {
	s := &Server{Version: "1.2.3", Users: []uint32{uint32(os.Getuid())}, Idle: time.Hour}
	socket, _ := serve(t, t.Context(), s)
	status := `{"version":"1.2.3","protocol":1}` + "\n"
	refused := func(why string) string { return `{"error":"` + why }
	for _, c := range []struct{ name, send, want string }{
		{"status", `{"verb":"status"}` + "\n", status},
		{"spaces", ` { "verb" : "status" } ` + "\n", status},
		{"install", `{"verb":"install"}` + "\n", refused(`no verb \"install\"`)},
		{"no verb", "{}\n", refused(`no verb \"\"`)},
		{"null", `{"verb":null}` + "\n", refused(`no verb \"\"`)},
		{"another case", `{"Verb":"status"}` + "\n", refused(`member \"Verb\" is not known`)},
		{"another member", `{"verb":"status","path":"/etc/shadow"}` + "\n", refused(`member \"path\" is not known`)},
		{"twice", `{"verb":"install","verb":"status"}` + "\n", refused(`member \"verb\" is not known, or comes twice`)},
		{"a number", `{"verb":1}` + "\n", refused(`member \"verb\": json: cannot unmarshal number`)},
		{"two objects", `{"verb":"status"}{}` + "\n", refused("there is something behind the request")},
		{"two lines", `{"verb":"status"}` + "\n" + `{"verb":"status"}` + "\n", refused("a connection is for one request")},
		{"no object", "status\n", refused("a request is a JSON object")},
		{"a list", `["status"]` + "\n", refused("a request is a JSON object")},
		{"half an object", `{"verb":"status"` + "\n", refused("the request is no JSON")},
		{"no end of the line", `{"verb":"status"}`, refused("no whole request came")},
		{"nothing", "", refused("no whole request came")},
		{"too long", strings.Repeat(" ", requestLimit) + `{"verb":"status"}` + "\n", refused("a request has at most 4096 bytes")},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := ask(t, socket, c.send); !strings.HasPrefix(got, c.want) {
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
		if got := ask(t, socket, `{"verb":"status"}`+"\n"); !strings.Contains(got, "1.2.3") {
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
	case <-time.After(patience):
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

// FuzzRequest holds that what is taken for a request is one, to another reader too.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		`{"verb":"status"}` + "\n", `{"Verb":"status"}` + "\n", `{"verb":"a","verb":"b"}` + "\n",
		`{"verb":{"a":[1,2]}}` + "\n", "\n", "{", `{"verb":"status"}` + "\n\n", "\xff\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		line, err := readLine(strings.NewReader(string(text)))
		if err != nil {
			return
		}
		if len(line) > requestLimit || strings.Count(string(line), "\n") != 1 {
			t.Fatalf("a line of %d bytes: %q", len(line), line)
		}
		r, err := parse(line)
		if err != nil {
			return
		}
		var whole map[string]*string
		if err := json.Unmarshal(line, &whole); err != nil || len(whole) > 1 {
			t.Fatalf("%q was taken: %v", line, err)
		}
		verb := whole["verb"]
		if verb == nil {
			verb = new(string)
		}
		if *verb != r.verb {
			t.Errorf("%q became the verb %q", line, r.verb)
		}
	})
}
