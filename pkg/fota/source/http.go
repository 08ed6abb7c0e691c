package source

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
)

// Options say how a server is reached: as anybody would, if they are zero. Proxies are those
// of the environment (HTTPS_PROXY, NO_PROXY), reached over http or socks5.
type Options struct {
	// TLS verifies the server and holds the certificate of the device. Every loss may
	// cost a handshake: with a key in a TPM, a ClientSessionCache saves its signature.
	TLS *tls.Config
	// BytesPerSecond bounds what is read of the server's answers; 0 is no bound.
	BytesPerSecond int64
	// Dial connects; nil is a [net.Dialer].
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// A Remote is a source on a server.
type Remote struct {
	url       *url.URL
	transport *http.Transport
	ctx       context.Context
	cancel    context.CancelCauseFunc

	requests, retries, fetched atomic.Int64

	mu        sync.Mutex // of what follows: one reads at a time
	pin       Pin        // its Size is 0 until the first answer
	spans     []*span
	last      *span // that was fetched for
	run       int64 // bytes fetched for it in a row
	uses      int64 // of spans
	allowance allowance
	failed    error // for good
}

// HTTP opens the file at an https address. It asks for the beginning, and pins the
// version that it gets. The source ends with ctx, or when it is closed.
func HTTP(ctx context.Context, address string, opts Options) (*Remote, error) {
	return open(ctx, Pin{URL: address}, opts)
}

// Resume opens the file that was pinned. If there is another one now, the error is an
// [ErrChanged].
func Resume(ctx context.Context, pin Pin, opts Options) (*Remote, error) {
	if err := pin.usable(); err != nil {
		return nil, err
	}
	return open(ctx, pin, opts)
}

func open(ctx context.Context, pin Pin, opts Options) (*Remote, error) {
	u, err := url.Parse(pin.URL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		// Not the address itself: it may hold what opens the door.
		return nil, errors.New("cannot open the address: it has to be https://HOST/PATH, without a password")
	}
	r := &Remote{url: u, pin: pin, allowance: allowance{rate: opts.BytesPerSecond}}
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	r.transport = r.newTransport(&opts)
	if err := r.begin(); err != nil {
		r.cancel(nil)
		return nil, fmt.Errorf("cannot open the file at %s: %w", u.Host, err)
	}
	return r, nil
}

// Size is the size of the pinned version.
func (r *Remote) Size() int64 { return r.pin.Size }

// Pin is what to remember for [Resume].
func (r *Remote) Pin() Pin { return r.pin }

// Counters tell what a source has cost so far.
type Counters struct {
	Fetched  int64 // bytes of the file, again if they came again; not what was under way when we hung up
	Requests int64 // redirects count, too
	Retries  int64
}

// Counters may be called while others read.
func (r *Remote) Counters() Counters {
	return Counters{r.fetched.Load(), r.requests.Load(), r.retries.Load()}
}

// ReadAt reads from the pinned version. It waits for others that read, and for the server
// as long as that makes progress.
func (r *Remote) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("cannot read before the beginning")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	n := 0
	for n < len(p) {
		at := off + int64(n)
		if at >= r.pin.Size || at < off {
			return n, io.EOF
		}
		got, err := r.at(at, int64(len(p)-n))
		if err != nil {
			return n, fmt.Errorf("cannot read byte %d of %d: %w", at, r.pin.Size, err)
		}
		n += copy(p[n:], got)
	}
	return n, nil
}

// Close ends what is under way, in other goroutines too, and closes all connections, as
// the end of the context does.
func (r *Remote) Close() error {
	r.cancel(os.ErrClosed)
	return nil
}

func (r *Remote) opened() bool { return r.pin.Size > 0 }
