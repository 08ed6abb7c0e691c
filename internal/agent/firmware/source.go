package firmware

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"

	"birthmark/internal/config"
	"birthmark/pkg/clock"
	"birthmark/pkg/fota/source"
)

// open opens the bundle. A link is followed: whoever asks has the rights of the process
// that reads, and could have followed it himself.
func (o *Options) open(ctx context.Context, c *clock.Clock, from string) (source.Source, error) {
	scheme, _, isURL := strings.Cut(from, "://")
	switch {
	case !isURL && o.TLSAnchors+o.ClientCert+o.ClientKey != "":
		return nil, &config.Error{Msg: from + " is a file: --tls-anchors, --client-cert and --client-key go with an address"}
	case !isURL:
		return openFile(from)
	case scheme != "https":
		return nil, &config.Error{Msg: "an address has to be https://HOST/PATH"}
	}
	conf, err := o.tls(c, from)
	if err != nil {
		return nil, err
	}
	return openURL(ctx, from, conf)
}

func openFile(path string) (source.Source, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	f, err := source.File(path)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// openURL opens a file on a server. A device has time, and makes good what was lost;
// somebody who waits for an answer wants to hear at once that there is nobody at that
// address.
func openURL(ctx context.Context, address string, conf *tls.Config) (source.Source, error) {
	ctx, end := context.WithCancelCause(ctx)
	var opened atomic.Bool
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil && !opened.Load() {
			end(err)
		}
		return conn, err
	}
	r, err := source.HTTP(ctx, address, source.Options{TLS: conf, Dial: dial})
	if err != nil {
		end(nil)
		return nil, err
	}
	opened.Store(true)
	return r, nil
}

// tls says how the server at an address is verified, and what it is shown.
func (o *Options) tls(c *clock.Clock, address string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, Time: c.Now}
	if o.TLSAnchors != "" {
		roots, err := config.ReadCertificates(o.TLSAnchors)
		if err != nil {
			return nil, &config.Error{Msg: err.Error()}
		}
		u, err := url.Parse(address)
		if err != nil { // not itself: it may hold what opens the door
			return nil, &config.Error{Msg: "the address cannot be read: it has to be https://HOST/PATH"}
		}
		conf = c.TLS(roots, u.Hostname())
	}
	if o.ClientCert != "" {
		pair, err := tls.LoadX509KeyPair(o.ClientCert, o.ClientKey)
		if err != nil {
			return nil, &config.Error{Msg: fmt.Sprintf("cannot use --client-cert and --client-key: %v", err)}
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf, nil
}

// A counter counts what is read.
type counter struct {
	r io.ReaderAt
	n atomic.Int64
}

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.r.ReadAt(p, off)
	c.n.Add(int64(n))
	return n, err
}
