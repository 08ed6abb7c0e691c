package api

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestMessagesComeAtARate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		desk := &desk{}
		h := newTeller(desk.agent().Tell)
		post := func(target string) (int, string) {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("POST", target, strings.NewReader("{}")))
			return w.Code, w.Header().Get("Retry-After")
		}
		for i := range tellBurst {
			if code, _ := post("/v1/tele/x"); code != 202 {
				t.Fatalf("message %d of a burst: status %d, want 202", i, code)
			}
		}
		if code, after := post("/v1/tele/x"); code != 429 || after != "1" {
			t.Errorf("after the burst: status %d, Retry-After %q; want 429, 1", code, after)
		}
		if code, after := post("/v1/tele/x?durable"); code != 429 || after != "1" {
			t.Errorf("a durable one: status %d, Retry-After %q; want 429, 1", code, after)
		}
		time.Sleep(time.Second) // in the bubble
		if code, _ := post("/v1/tele/x?durable"); code != 202 {
			t.Errorf("a durable one after a second: status %d, want 202", code)
		}
		if code, _ := post("/v1/tele/x"); code != 429 {
			t.Errorf("one more: status %d, want 429: a durable one counts for %d", code, durableCost)
		}
		time.Sleep(24 * time.Hour)
		taken := 0
		for code := 202; code == 202; taken++ {
			code, _ = post("/v1/tele/x")
		}
		if taken-1 != tellBurst {
			t.Errorf("%d messages at once after a day, want %d", taken-1, tellBurst)
		}
	})
}

// A pipes listener accepts what is connected to it in memory.
type pipes struct {
	ends   chan net.Conn
	closed chan struct{}
}

func newPipes() *pipes { return &pipes{make(chan net.Conn, 2*connLimit), make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.ends:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{} }

func (p *pipes) connect() net.Conn {
	ours, theirs := net.Pipe()
	p.ends <- theirs
	return ours
}

// TestADoorServesSoManyAtATime comes with more silent connections than a door
// serves: the surplus stays where it is until the silent ones are sent away.
func TestADoorServesSoManyAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, desk := newPipes(), &desk{}
		s := serve(l, newTeller(desk.agent().Tell), slog.New(slog.DiscardHandler))
		start := time.Now()
		for range connLimit {
			c := l.connect()
			defer c.Close()
		}
		c := l.connect()
		defer c.Close()
		synctest.Wait()
		if left := len(l.ends); left != 1 {
			t.Errorf("%d connections wait, want 1", left)
		}
		go io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		answer, _ := io.ReadAll(c)
		if !bytes.HasPrefix(answer, []byte("HTTP/1.1 404")) {
			t.Errorf("the one that waited got %q", answer)
		}
		if waited := time.Since(start); waited < requestLimit || waited > requestLimit+time.Second {
			t.Errorf("it waited for %v, want %v", waited, requestLimit)
		}
		s.Close()
	})
}

func TestASlowRequestIsCutOff(t *testing.T) {
	for name, begin := range map[string]string{
		"nothing":     "",
		"half a line": "POST /v1/te",
		"no body":     "POST /v1/tele/x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{",
	} {
		synctest.Test(t, func(t *testing.T) {
			l, desk := newPipes(), &desk{}
			s := serve(l, newTeller(desk.agent().Tell), slog.New(slog.DiscardHandler))
			c := l.connect()
			defer c.Close()
			start := time.Now()
			go io.WriteString(c, begin)
			answer, _ := io.ReadAll(c)
			if took := time.Since(start); took < requestLimit || took > requestLimit+time.Second {
				t.Errorf("%s: cut off after %v, want %v: %q", name, took, requestLimit, answer)
			}
			if len(desk.told) != 0 {
				t.Errorf("%s: told %v", name, desk.told)
			}
			s.Close()
		})
	}
}

func TestAHeaderHasAnEnd(t *testing.T) {
	for size, want := range map[int]string{7 << 10: "HTTP/1.1 202", 8 << 10: "HTTP/1.1 431"} {
		synctest.Test(t, func(t *testing.T) {
			l, desk := newPipes(), &desk{}
			s := serve(l, newTeller(desk.agent().Tell), slog.New(slog.DiscardHandler))
			c := l.connect()
			defer c.Close()
			go io.WriteString(c, "POST /v1/tele/x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nX: "+strings.Repeat("x", size)+"\r\n\r\n{}")
			answer, _ := io.ReadAll(c)
			if !bytes.HasPrefix(answer, []byte(want)) {
				t.Errorf("a header of %d bytes: %q, want %s", size, answer, want)
			}
			s.Close()
		})
	}
}

func TestOneRequestAConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, desk := newPipes(), &desk{}
		s := serve(l, newTeller(desk.agent().Tell), slog.New(slog.DiscardHandler))
		c := l.connect()
		defer c.Close()
		const request = "POST /v1/tele/x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
		go io.WriteString(c, request+request)
		answer, _ := io.ReadAll(c)
		if n := bytes.Count(answer, []byte("HTTP/1.1 ")); n != 1 || len(desk.told) != 1 {
			t.Errorf("%d answers, %d messages; want 1 and 1: %q", n, len(desk.told), answer)
		}
		s.Close()
	})
}

func TestDepth(t *testing.T) {
	for text, want := range map[string]int{
		``: 0, `1`: 0, `{}`: 1, `{"a":[{}]}`: 3, `{"[[[[":1}`: 1, `{"\"[[":"]"}`: 1, `[[],[]]`: 2, `"\\"[[`: 2,
	} {
		if got := depth([]byte(text)); got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
}

// FuzzRequest sends bytes to a door. What comes through must be a message by the
// rules, and whatever comes back one answer, and nothing of ours may panic, which
// net/http would catch and log.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /v1/doctor HTTP/1.0\r\n\r\n",
		"POST /v1/tele/gps HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{\"lat\":1}",
		"POST /v1/tele/gps?durable HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"POST /v1/tele/a%2fb HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
		"POST http://x/v1/tele/system HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
		"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"GET /v1/status HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
	} {
		for door := range byte(3) {
			f.Add(door, []byte(seed))
		}
	}
	folder := newFolder(f)
	if err := makeFolder(folder); err != nil {
		f.Fatal(err)
	}
	told := make(chan Message, 1)
	d := &Doors{doctor: make(chan struct{}, 1), agent: (&desk{}).agent()}
	generous := newTeller(func(m Message) error { told <- m; return nil })
	generous.quota = newBucket(1e9, 1e9)
	var complaints complaints
	log := slog.New(slog.NewTextHandler(&complaints, nil))
	var sockets []string
	for _, door := range []struct {
		name    string
		handler *teller
		gets    gets
	}{{Status, nil, gets{"/v1/status": d.status}}, {Control, nil, gets{"/v1/status": d.status, "/v1/metrics": d.metrics, "/v1/doctor": d.examine}}, {Telemetry, generous, nil}} {
		s, err := listen(folder+"/"+door.name, everybody)
		if err != nil {
			f.Fatal(err)
		}
		sockets = append(sockets, s.path)
		if door.handler != nil {
			defer serve(s, door.handler, log).Close()
		} else {
			defer serve(s, door.gets, log).Close()
		}
	}
	f.Fuzz(func(t *testing.T, door byte, request []byte) {
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: sockets[int(door)%len(sockets)], Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		go func() {
			_, _ = c.Write(request) // it may hang up before the end
			_ = c.CloseWrite()
		}()
		answer, _ := io.ReadAll(c)
		select {
		case m := <-told:
			var object map[string]json.RawMessage
			if len(m.Object) > objectLimit || json.Unmarshal(m.Object, &object) != nil || object == nil || object["seq"] != nil ||
				!isName(m.Name) || m.Name == ownName {
				t.Errorf("told %+v", m)
			}
			if !bytes.Contains(answer, []byte("HTTP/1.1 202 ")) && !bytes.Contains(answer, []byte("HTTP/1.0 202 ")) {
				t.Errorf("a message was taken, and the answer is %q", answer)
			}
		default:
			if bytes.Contains(answer, []byte(" 202 Accepted\r\n")) {
				t.Errorf("nothing was told, and the answer is %q", answer)
			}
		}
		if said := complaints.String(); strings.Contains(said, "panic") {
			t.Fatalf("a handler panicked: %s", said)
		}
	})
}

// complaints are what net/http logs.
type complaints struct {
	mu   sync.Mutex
	text []byte
}

func (c *complaints) Write(line []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = append(c.text, line...)
	return len(line), nil
}

func (c *complaints) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text)
}
