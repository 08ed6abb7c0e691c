package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"birthmark/internal/installer"
	"birthmark/internal/sysroot"
	"birthmark/pkg/fota/source"
)

// unitEnvironment is what a unit sets in the environment of its service.
func unitEnvironment(unit string) (env []string, err error) {
	text, err := os.ReadFile(unit)
	for line := range strings.Lines(string(text)) {
		if words, ok := strings.CutPrefix(line, "Environment="); ok {
			env = append(env, strings.Fields(words)...)
		}
	}
	return env, err
}

// install installs a bundle by `birthmark installer`, in a process of its own as its unit
// starts it, and returns the time of processors that this one took from its start to its
// end. The bundle goes there as a descriptor.
func (f *firmware) install(ctx context.Context, name string) (took time.Duration, err error) {
	file, err := os.Open(f.file(name))
	if err != nil {
		return 0, err
	}
	defer file.Close()
	return f.served(ctx, func(c installer.Client) error {
		_, err := c.InstallFile(ctx, file, nil)
		return err
	})
}

// remember installs what is large, once, for the memory that it takes. The image of the
// second bundle is almost all holes.
func (f *firmware) remember(ctx context.Context, o options) error {
	for _, large := range []struct {
		name, mksquashfs string
		size             int64
		fill             func(*os.File, int64) error
	}{
		{"half", compressions["none"], o.half, fillProgram},
		{"sparse", compressions["zstd"], o.sparse, fillSparse},
	} {
		if err := f.bundle(ctx, large.name, large.mksquashfs, large.size, large.fill); err != nil {
			return err
		}
		if _, err := f.install(ctx, large.name); err != nil {
			return err
		}
		if err := os.Remove(f.file(large.name)); err != nil {
			return err
		}
	}
	return nil
}

// fetched is how many bytes leave a server when a device installs a bundle from it, for
// each byte of the bundle: the agent's part is to fetch what the installer asks for.
func (f *firmware) fetched(ctx context.Context, w *world) (ratio float64, err error) {
	cert, err := w.lab.OwnerCA().Server("localhost")
	if err != nil {
		return 0, err
	}
	l, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		return 0, err
	}
	var sent atomic.Int64
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"1"`)
		http.ServeFile(w, r, f.file("zstd"))
	})}
	go func() {
		_ = server.Serve(tls.NewListener(counted{l, &sent}, &tls.Config{Certificates: []tls.Certificate{*cert}}))
	}()
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(w.lab.OwnerCA().Root())
	src, err := source.HTTP(ctx, "https://"+l.Addr().String()+"/", source.Options{TLS: &tls.Config{RootCAs: roots, ServerName: "localhost"}})
	if err != nil {
		return 0, err
	}
	defer src.Close()
	_, err = f.served(ctx, func(c installer.Client) error {
		_, err := c.Install(ctx, src, src.Size(), nil)
		return err
	})
	return float64(sent.Load()) / float64(src.Size()), err
}

// counted counts what its connections send.
type counted struct {
	net.Listener
	n *atomic.Int64
}

func (l counted) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return countedConn{c, l.n}, err
}

type countedConn struct {
	net.Conn
	n *atomic.Int64
}

func (c countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.n.Add(int64(n))
	return n, err
}

// served starts an installer for what somebody asks of it.
func (f *firmware) served(ctx context.Context, ask func(installer.Client) error) (took time.Duration, err error) {
	path := f.path("door")
	door, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return 0, err
	}
	defer door.Close()
	passed, err := door.File()
	if err != nil {
		return 0, err
	}
	defer passed.Close()
	// A program that is given sockets is told its own number (sd_listen_fds(3)).
	cmd := exec.CommandContext(ctx, "sh", "-c", `LISTEN_PID=$$ exec "$0" installer`, f.agent)
	cmd.Env = append(append(os.Environ(), f.env...), sysroot.Variable+"="+string(f.device),
		"LISTEN_FDS=1", "LISTEN_FDNAMES=installer.sock", "STATE_DIRECTORY="+f.device.path("installer"))
	cmd.ExtraFiles = []*os.File{passed}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	err = ask(installer.Client{Path: path})
	peak, unknown := field(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid), "VmHWM:")
	f.memory = max(f.memory, peak/1024)
	_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself, with an error
	if err := errors.Join(err, unknown, cmd.Wait()); err != nil {
		return 0, fmt.Errorf("birthmark installer: %w\n%s", err, &said)
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}
