package enroll

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
)

// proxied is the one host that is reached through the proxy of the environment:
// net/http never uses one for loopback addresses.
const proxied = "est.test"

// theProxy is a proxy that stands in HTTPS_PROXY from the start, for net/http reads
// the environment once.
var theProxy connectProxy

// A connectProxy knows the way to one server, by whatever name.
type connectProxy struct {
	net.Listener

	mu   sync.Mutex
	to   string          // address of the server
	says string          // instead of leading there
	seen []*http.Request // with CONNECT
}

func TestMain(m *testing.M) {
	var err error
	theProxy.Listener, err = net.Listen("tcp", "127.0.0.1:0")
	must(err)
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "no_proxy"} {
		must(os.Unsetenv(name))
	}
	must(os.Setenv("HTTPS_PROXY", "http://user:pass@"+theProxy.Addr().String()))
	must(os.Setenv("NO_PROXY", "direct.test,port.test:8443,192.0.2.0/24"))
	go theProxy.serve()
	code := m.Run()
	theProxy.Close()
	os.Exit(code)
}

func (p *connectProxy) serve() {
	for {
		conn, err := p.Accept()
		if err != nil {
			return
		}
		go p.tunnel(conn)
	}
}

func (p *connectProxy) tunnel(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	req, err := http.ReadRequest(in)
	if err != nil {
		return
	}
	p.mu.Lock()
	p.seen = append(p.seen, req)
	to, says := p.to, p.says
	p.mu.Unlock()
	if says != "" {
		io.WriteString(conn, says)
		return
	}
	server, err := net.Dial("tcp", to)
	if err != nil || req.Method != http.MethodConnect {
		io.WriteString(conn, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
		return
	}
	defer server.Close()
	io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n")
	go func() {
		io.Copy(server, in)
		server.Close()
	}()
	io.Copy(conn, server)
}

// aim lets the proxy lead to a server and forget what it saw.
func (p *connectProxy) aim(s *estServer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.to, p.says, p.seen = s.Listener.Addr().String(), "", nil
}

// refuse lets the proxy answer so, whoever asks.
func (p *connectProxy) refuse(says string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.says = says
}

func (p *connectProxy) connects() []*http.Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen
}

func TestAProxyOfTheEnvironmentLeadsToTheServerAndSeesNoPassword(t *testing.T) {
	s := serve(t)
	theProxy.aim(s)
	c := s.client(t, func(conf *Config) {
		conf.URL = "https://" + proxied
		conf.Username, conf.Password = "sensor-1", "secret"
	})
	if _, err := c.Enroll(t.Context(), ask()); err != nil {
		t.Fatal(err)
	}
	seen := theProxy.connects()
	if len(seen) != 1 || seen[0].Host != proxied+":443" {
		t.Fatalf("the proxy got %d requests, want one CONNECT to %s:443", len(seen), proxied)
	}
	if got := seen[0].Header.Get("Authorization"); got != "" {
		t.Errorf("the proxy got Authorization %q, which is for the EST server", got)
	}
	if !strings.HasPrefix(seen[0].Header.Get("Proxy-Authorization"), "Basic ") {
		t.Error("the proxy did not get the password that stands in its address")
	}
}

func TestAProxyCannotStandInForTheServer(t *testing.T) {
	s := serve(t, servedBy(foreign.server().tls()))
	theProxy.aim(s)
	c := s.client(t, func(conf *Config) { conf.URL = "https://" + proxied })
	_, err := c.Enroll(t.Context(), ask())
	check(t, err, "untrusted", "unknown authority")
}

// Each row is a proxy that does not lead to the server. Nothing of ours gets to it.
func TestAProxyThatRefusesIsNamed(t *testing.T) {
	t.Cleanup(func() { theProxy.refuse("") })
	for name, tc := range map[string]struct{ answer, says string }{
		"it wants another password": {"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", ": 407 Proxy Authentication Required"},
		"it does not know the way":  {"HTTP/1.1 502 Bad\x1b[31m Gateway\r\n\r\n", ": 502 Bad [31m Gateway"},
		"it hangs up":               {"\x00", "malformed"},
	} {
		theProxy.refuse(tc.answer)
		for _, req := range []Request{ask(), (&binder{key: newKey()}).asking()} {
			c := serve(t).client(t, func(conf *Config) { conf.URL = "https://" + proxied })
			_, err := c.Enroll(t.Context(), req)
			check(t, err, "unavailable", tc.says)
			if answered := strings.HasPrefix(tc.answer, "HTTP/"); errors.Is(err, ErrProxy) != answered {
				t.Errorf("%s: got %v, want ErrProxy: %t", name, err, answered)
			}
			if strings.Contains(err.Error(), "pass@") {
				t.Errorf("%s: the error tells the proxy's password: %v", name, err)
			}
		}
	}
}

func TestAProxyOverTLSIsRefused(t *testing.T) {
	for address, ok := range map[string]bool{
		"http://proxy.example:3128": true, "socks5://proxy.example": true, "https://user:secret@proxy.example": false,
	} {
		u, err := url.Parse(address)
		must(err)
		got, err := usable(u, nil)
		if (err == nil) != ok || (got != nil) != ok {
			t.Errorf("%s: got %v, error %v, want it used: %v", address, got, err, ok)
		}
		if err != nil && (!errors.Is(err, ErrProxy) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("got %v, want ErrProxy without the proxy's password", err)
		}
	}
}
