package demo

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"

	"log"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"birthmark/internal/lab"
	"birthmark/internal/lab/board"
	"birthmark/internal/lab/sign"
	"birthmark/pkg/fota"
)

const (
	product = "acme-gw"

	// Bytes of a release, and how many the device fetches in a second: people want to
	// see it.
	releaseLoad  = 4 << 20
	downloadRate = 2 << 20
)

// A desk is the maker's, where releases are built and signed, and the server on which the
// owner lays them out for devices that have a certificate of his.
type desk struct {
	dir        string
	signer     sign.Signer
	secureBoot *board.Key
	agent      string
	server     http.Server
	url        string
	client     atomic.Pointer[string] // who fetched last, by the certificate
}

func openDesk(l *lab.Lab, dir, agent string) (*desk, error) {
	k := &desk{dir: dir, agent: agent}
	err := os.MkdirAll(filepath.Join(dir, "server"), 0o700)
	if err == nil {
		k.signer, err = sign.Lab(l.Dir())
	}
	if err == nil {
		k.secureBoot, err = board.NewKey(dir, "db")
	}
	if err == nil {
		err = k.serve(l)
	}
	return k, err
}

// serve is a server of files, over mutual TLS.
func (k *desk) serve(l *lab.Lab) error {
	cert, err := l.OwnerCA().Server("updates")
	if err != nil {
		return err
	}
	devices := x509.NewCertPool()
	devices.AddCert(l.OwnerCA().Root())
	socket, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: devices})
	if err != nil {
		return err
	}
	k.url = "https://" + socket.Addr().(*net.TCPAddr).String() + "/"
	files := http.FileServer(http.Dir(filepath.Join(k.dir, "server")))
	k.server = http.Server{ReadTimeout: patience, ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		k.client.Store(&r.TLS.PeerCertificates[0].Subject.CommonName)
		// A file that was written just now has no Last-Modified that says which version it
		// is (RFC 9110, 8.8.2.2).
		if info, err := os.Stat(k.file(filepath.Base(r.URL.Path))); err == nil {
			w.Header().Set("ETag", fmt.Sprintf(`"%x-%x"`, info.ModTime().UnixNano(), info.Size()))
		}
		files.ServeHTTP(w, r)
	})}
	go k.server.Serve(socket)
	return nil
}

// build builds a release, which has the device's own binary, and trusts the maker.
func (k *desk) build(ctx context.Context, version fota.Version, more map[string]board.File) (*board.Image, error) {
	files := map[string]board.File{}
	for name, path := range map[string]string{"anchors.pem": k.signer.Anchors, "signing-cas.pem": k.signer.SigningCAs, "crls.pem": k.signer.CRLs} {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		files["usr/lib/birthmark/firmware/"+name] = board.File{Text: text, Mode: 0o644}
	}
	maps.Copy(files, more)
	return board.Release{Name: product, Version: version, Agent: k.agent, Files: files, Load: releaseLoad}.Build(ctx, k.dir, k.secureBoot)
}

// ship has a release signed, and lays the bundle out under a name.
func (k *desk) ship(ctx context.Context, i *board.Image, by sign.Signer, name string) (*sign.Record, error) {
	release := sign.Release{Compatible: product, Version: i.Version, Compression: sign.Zstd, Time: time.Now(),
		Images: []sign.Image{{Slot: fota.RootSlot, Path: i.Root}, {Slot: fota.UKISlot, Path: i.UKI}}}
	return sign.Firmware(ctx, release, by, k.file(name), func(string) {})
}

func (k *desk) file(name string) string { return filepath.Join(k.dir, "server", name) }

// spoil lays out a copy of a bundle that something was done to.
func (k *desk) spoil(from, to string, spoil func([]byte) []byte) error {
	b, err := os.ReadFile(k.file(from))
	if err != nil {
		return err
	}
	return os.WriteFile(k.file(to), spoil(b), 0o600)
}

func (k *desk) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return errors.Join(k.server.Shutdown(ctx), k.server.Close())
}
