package telemetry

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestProxyIsThatOfTheEnvironment(t *testing.T) {
	for _, tc := range []struct {
		env  string
		addr string
		want string // or what the error says
	}{
		{"", "broker.example:8883", "<nil> <nil>"},
		{"HTTPS_PROXY=http://proxy.example:3128", "broker.example:8883", "http://proxy.example:3128 <nil>"},
		{"https_proxy=http://proxy.example:3128", "broker.example:8883", "http://proxy.example:3128 <nil>"},
		{"HTTPS_PROXY=http://proxy.example", "broker.example:8883", "http://proxy.example:80 <nil>"},
		{"HTTPS_PROXY=proxy.example:3128", "broker.example:8883", "http://proxy.example:3128 <nil>"},
		{"HTTPS_PROXY=http://proxy.example NO_PROXY=broker.example", "broker.example:8883", "<nil> <nil>"},
		{"HTTPS_PROXY=http://proxy.example no_proxy=.example", "broker.example:8883", "<nil> <nil>"},
		{"HTTPS_PROXY=http://proxy.example NO_PROXY=broker.example:443", "broker.example:8883", "http://proxy.example:80 <nil>"},
		{"HTTPS_PROXY=http://proxy.example NO_PROXY=192.0.2.0/24", "192.0.2.7:8883", "<nil> <nil>"},
		{"HTTPS_PROXY=http://proxy.example", "127.0.0.1:8883", "<nil> <nil>"},
		{"HTTP_PROXY=http://proxy.example", "broker.example:8883", "<nil> <nil>"},
		{"HTTPS_PROXY=https://me:secret@proxy.example", "broker.example:8883", "is not http://HOST:PORT"},
		{"HTTPS_PROXY=socks5://me:secret@proxy.example", "broker.example:8883", "is not http://HOST:PORT"},
	} {
		cmd := child("proxy", strings.Fields(tc.env)...)
		cmd.Stdin = strings.NewReader(tc.addr + "\n")
		said, err := cmd.CombinedOutput()
		if got := string(said); err != nil || !strings.Contains(got, tc.want) || strings.Contains(got, "secret") {
			t.Errorf("%s: the proxy for %s is %q, %v: want %s", tc.env, tc.addr, got, err, tc.want)
		}
	}
}

// TestLinkGoesThroughTheProxy has a process whose environment names a proxy, which
// leads to a broker in this one.
func TestLinkGoesThroughTheProxy(t *testing.T) {
	proxy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	root := filepath.Join(t.TempDir(), "root.der")
	if err := os.WriteFile(root, rootCert.Raw, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := child("link", "HTTPS_PROXY=http://me:p%40ss@"+proxy.Addr().String(), "BROKER=mqtts://broker", "ROOT="+root, "OUTBOX="+t.TempDir())
	stdin, _ := cmd.StdinPipe()
	stdout, _ := cmd.StdoutPipe()
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	silent := time.AfterFunc(patience, func() { _ = cmd.Process.Kill(); proxy.Close() })
	defer silent.Stop()
	device, err := proxy.Accept()
	if err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(device)
	asked, err := http.ReadRequest(in)
	if err != nil {
		t.Fatal(err)
	}
	user, password, ok := (&http.Request{Header: http.Header{"Authorization": asked.Header["Proxy-Authorization"]}}).BasicAuth()
	if asked.Method != "CONNECT" || asked.Host != "broker:8883" || user != "me" || password != "p@ss" || !ok {
		t.Errorf("the proxy was asked for %s %s by %q with %q, want CONNECT broker:8883 by me with p@ss", asked.Method, asked.Host, user, password)
	}
	b := &fakeBroker{}
	broker, _ := b.dial(t.Context(), "tcp", asked.Host)
	go func() {
		defer broker.Close()
		_, _ = io.Copy(broker, in) // ends when either side hangs up, as the other does
	}()
	go func() {
		defer device.Close()
		_, _ = io.WriteString(device, "HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n")
		_, _ = io.Copy(device, broker)
	}()
	up, err := bufio.NewReader(stdout).ReadString('\n')
	stdin.Close()
	if werr := cmd.Wait(); up != "up\n" || err != nil || werr != nil {
		t.Errorf("the link said %q, %v, and ended with %v: want a session through the proxy", up, err, werr)
	}
}

func TestHostileProxy(t *testing.T) {
	endless := strings.Repeat("X: "+strings.Repeat("y", 100)+"\r\n", 10_000)
	for _, tc := range []struct {
		name   string
		answer string
		pause  time.Duration // after each byte
		hangs  bool          // stays there, silent
		want   string
	}{
		{name: "wants a password", answer: "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n", want: "it wants a user name and password, or others (407)"},
		{name: "refuses", answer: "HTTP/1.1 403 \x1b[2JGo away\r\n\r\n", want: "it refuses: 403 Forbidden"},
		{name: "leads elsewhere", answer: "HTTP/1.1 302 Found\r\nLocation: http://elsewhere\r\n\r\n", want: "it refuses: 302 Found"},
		{name: "goes on for ever", answer: "HTTP/1.1 100 Continue\r\n\r\n", hangs: true, want: "it refuses: 100 Continue"},
		{name: "hangs up", answer: "", want: "EOF"},
		{name: "hangs up in its answer", answer: "HTTP/1.1 200 OK\r\nX: y", want: "EOF"},
		{name: "is silent", hangs: true, want: "no answer within 1m0s"},
		{name: "is slow", answer: "HTTP/1.1 200 OK\r\n" + endless, pause: time.Second, want: "no answer within 1m0s"},
		{name: "has an endless header", answer: "HTTP/1.1 200 OK\r\n" + endless, want: "its answer has more than 16384 bytes"},
		{name: "has an endless line", answer: strings.Repeat("x", 1<<20), want: "its answer has more than 16384 bytes"},
		{name: "is no proxy", answer: "SSH-2.0-OpenSSH_9.2p1\r\n\r\n", want: "malformed HTTP"},
		{name: "speaks for the broker", answer: "HTTP/1.1 200 OK\r\n\r\n\x16\x03\x03", want: "it speaks where the broker has to wait for us"},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := testLink(t, nil)
			l.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				device, proxy := net.Pipe()
				go misanswer(proxy, tc.answer, tc.pause, tc.hangs)
				return tunnel(ctx, func(context.Context, string, string) (net.Conn, error) { return device, nil }, &url.URL{Host: "proxy"}, addr)
			}
			start := time.Now()
			err := l.Knock(t.Context())
			if err == nil || !strings.Contains(err.Error(), tc.want) || time.Since(start) > openLimit {
				t.Errorf("a proxy that %s: error %v after %v, want %s within %v", tc.name, err, time.Since(start), tc.want, openLimit)
			}
			pass(tc.pause) // the proxy finds out
		})
	}
}

// misanswer answers CONNECT, in whatever way.
func misanswer(c net.Conn, answer string, pause time.Duration, hangs bool) {
	defer c.Close()
	in := bufio.NewReader(c)
	if _, err := http.ReadRequest(in); err != nil {
		return
	}
	chunk := len(answer)
	if pause > 0 {
		chunk = 1
	}
	for ; len(answer) > 0; answer = answer[chunk:] {
		if _, err := io.WriteString(c, answer[:chunk]); err != nil {
			return // the device has heard enough
		}
		time.Sleep(pause)
	}
	if hangs {
		_, _ = io.Copy(io.Discard, in)
	}
}
