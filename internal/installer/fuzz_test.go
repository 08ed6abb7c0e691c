package installer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/bundle/bundletest"
)

// FuzzRequest holds that what is taken for a request is one, to another reader too.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		`{"verb":"status"}` + "\n", `{"Verb":"status"}` + "\n", `{"verb":"a","verb":"b"}` + "\n",
		`{"verb":"install","size":138384}` + "\n", `{"verb":"arm","version":"1.1.0+sv2"}` + "\n",
		`{"verb":"arm","version":null,"size":1e3}` + "\n",
		`{"verb":{"a":[1,2]}}` + "\n", "\n", "{", `{"verb":"status"}` + "\n\n", "\xff\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		line, err := readLine(bufio.NewReaderSize(bytes.NewReader(text), requestLimit))
		if err != nil {
			return
		}
		if len(line) > requestLimit || strings.Count(string(line), "\n") != 1 {
			t.Fatalf("a line of %d bytes: %q", len(line), line)
		}
		r, err := parseRequest(line)
		if err != nil {
			return
		}
		var m message
		d := json.NewDecoder(bytes.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&m); err != nil {
			t.Fatalf("%q was taken: %v", line, err)
		}
		if m.Verb != r.verb || (m.Size == nil) != (r.size == nil) || m.Size != nil && *m.Size != *r.size ||
			(m.Version == nil) != (r.version == nil) || m.Version != nil && *m.Version != *r.version {
			t.Errorf("%q became %+v, want %+v", line, r, m)
		}
	})
}

// ends are both ends of a connection.
func ends(tb testing.TB) (ours, theirs *net.UnixConn) {
	tb.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(file)
		file.Close()
		if err != nil {
			tb.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
		if err := c.SetDeadline(time.Now().Add(long)); err != nil {
			tb.Fatal(err)
		}
	}
	return conns[0], conns[1]
}

// FuzzReply lets a peer reply to each ask with the next part of text: as a good bundle
// has it, if the part is "+", and else with the part itself. Parts end with a NUL. What
// is staged in the end is the good bundle.
func FuzzReply(f *testing.F) {
	for _, seed := range []string{
		strings.Repeat("+\x00", 40), "+\x00+\x00+\x00{\"length\":4096}\n\x00", "{\"length\":8}\n\x01\x02", "{\"length\":-8}\n",
		"{\"error\":\"no\"}\n", "+\x00{\"error\":\"\x1b[2J\"}\n", "+\x00{\"length\":8,\"length\":8}\n", "+\x00\n", strings.Repeat("{", 5000), "",
	} {
		f.Add([]byte(seed))
	}
	pki := bundletest.NewPKI(f, "P-256", "P-256")
	release := bundletest.NewRelease("acme-gw", "1.1.0+sv2")
	good := release.Parts(f, pki.Signer).Bytes()
	f.Fuzz(func(t *testing.T, text []byte) {
		d := &device{T: t, loader: newLoader(t), pki: pki, etc: t.TempDir(), state: t.TempDir()}
		d.hear = impatient
		d.makeTrust()
		s := d.newServer()
		s.Log = slog.New(slog.DiscardHandler)
		defer s.remember()()
		ours, theirs := ends(t)
		defer ours.Close()
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.answer(context.Background(), theirs)
		}()
		parts := bytes.Split(text, []byte{0})
		c := &talker{t, ours, bufio.NewReaderSize(ours, answerLimit)}
		c.say(fmt.Appendf(nil, `{"verb":"install","size":%d}`+"\n", len(good)))
		for {
			line, err := readLine(c.in)
			if err != nil {
				break // hung up, as it may
			}
			a, err := parseAnswer(line)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			if a.Read == nil && a.Progress == nil {
				break
			}
			if a.Read == nil {
				continue
			}
			if len(parts) == 0 || len(parts[0]) == 0 { // it would be waited for
				break
			}
			if string(parts[0]) == "+" {
				parts[0] = honest(good, *a.Read)
			}
			c.say(parts[0])
			parts = parts[1:]
		}
		ours.Close()
		<-done
		if d.loader.status.Other == (fota.Other{}) {
			return
		}
		for slot, file := range release.Slots {
			if !bytes.Equal(d.loader.slots[slot], release.Files[file]) {
				t.Errorf("%s was staged, and is not what was signed", slot)
			}
		}
	})
}

// FuzzAnswer lets an installer say text to a client. The client ends, and reads nothing
// that it did not offer.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		`{"read":{"offset":4000,"length":96}}` + "\n" + `{"written":{"version":"1.1.0+sv2","root":"00"}}` + "\n",
		`{"read":{"offset":4000,"length":97}}` + "\n", `{"read":{"offset":-1,"length":1}}` + "\n", `{"read":{"offset":9223372036854775807,"length":9}}` + "\n",
		`{"progress":{"done":1,"total":2}}` + "\n" + `{"refused":{"stage":"policy","code":"same","reason":"it runs"}}` + "\n",
		`{"busy":"install"}` + "\n", `{"error":"x","busy":"y"}` + "\n", "{}\n", "{}{}\n", strings.Repeat(" ", answerLimit) + "\n", "",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		client, installer := ends(t)
		defer client.Close()
		go func() {
			defer installer.Close()
			go func() { _, _ = io.Copy(io.Discard, installer) }()
			_, _ = installer.Write(text)
			_ = installer.CloseWrite()
		}()
		const size = 4096
		g := &given{r: within{t, size}, size: size}
		last, err := g.talk(client, message{Verb: "install"}, nil)
		if err == nil && last.err() == nil && last.Written == nil && last.Status == nil && last.Done == "" {
			t.Errorf("%q ended with %+v", text, last)
		}
	})
}

// A within is so many bytes, and fails a test that reads others.
type within struct {
	*testing.T
	size int64
}

func (w within) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || len(b) == 0 || off+int64(len(b)) > w.size {
		w.Errorf("%d bytes were read at %d", len(b), off)
	}
	return len(b), nil
}
