package telemetry

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// proxyHeaderLimit is the most that a proxy may say before it is out of the way, in
// bytes.
const proxyHeaderLimit = 16 << 10

// ErrProxy: the proxy that the environment names does not lead to the broker.
var ErrProxy = errors.New("no way through the proxy")

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// dialEnvironment connects to addr the way that the environment names.
func dialEnvironment(ctx context.Context, network, addr string) (net.Conn, error) {
	direct := (&net.Dialer{Control: limitUnacked}).DialContext
	proxy, err := proxyFor(addr)
	if err != nil {
		return nil, err
	}
	if proxy == nil {
		return direct(ctx, network, addr)
	}
	c, err := tunnel(ctx, direct, proxy, addr)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrProxy, proxy.Host, reason(ctx, err))
	}
	return c, nil
}

// proxyFor is the proxy that the environment names for https://addr, nil for none:
// HTTPS_PROXY and NO_PROXY, in upper or lower case; one that is no URL counts as none.
// No error tells its password.
func proxyFor(addr string) (*url.URL, error) {
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: "https", Host: addr}})
	switch {
	case err != nil || proxy == nil:
		return nil, err
	case proxy.Scheme != "http" || proxy.Hostname() == "":
		return nil, fmt.Errorf("%w %s: it is not http://HOST:PORT, and no other can be used", ErrProxy, proxy.Redacted())
	}
	own := *proxy // net/http gives everybody the same one
	if own.Port() == "" {
		own.Host = net.JoinHostPort(own.Hostname(), "80")
	}
	return &own, nil
}

// tunnel connects to a proxy and asks it for the way to addr (RFC 9110 section
// 9.3.6). The proxy is not believed more than the network is: TLS begins after it.
func tunnel(ctx context.Context, dial dialFunc, proxy *url.URL, addr string) (net.Conn, error) {
	c, err := dial(ctx, "tcp", proxy.Host)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	err = askForTunnel(c, proxy.User, addr)
	if !stop() && err == nil {
		err = context.Cause(ctx) // the deadline is set, or is just being set
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func askForTunnel(c net.Conn, user *url.Userinfo, addr string) error {
	ask := "CONNECT " + addr + " HTTP/1.1\r\nHost: " + addr + "\r\n"
	if user != nil { // RFC 7617 section 2
		password, _ := user.Password()
		ask += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)) + "\r\n"
	}
	if _, err := io.WriteString(c, ask+"\r\n"); err != nil {
		return err
	}
	limited := &io.LimitedReader{R: c, N: proxyHeaderLimit}
	in := bufio.NewReader(limited)
	answer, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect})
	switch {
	case err != nil && limited.N == 0:
		return fmt.Errorf("its answer has more than %d bytes", proxyHeaderLimit)
	case err != nil:
		return err
	case answer.StatusCode == http.StatusProxyAuthRequired:
		return errors.New("it wants a user name and password, or others (407)")
	case answer.StatusCode/100 != 2:
		return fmt.Errorf("it refuses: %d %s", answer.StatusCode, http.StatusText(answer.StatusCode))
	case in.Buffered() > 0:
		return errors.New("it speaks where the broker has to wait for us")
	}
	return nil
}
