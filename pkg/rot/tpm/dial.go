package tpm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"birthmark/pkg/rot"
)

// isSocket tells whether an address leads past the kernel's resource manager, to
// a TPM where a client that was killed leaves its keys and sessions behind.
func isSocket(address string) bool { return !filepath.IsAbs(address) }

// dial connects to the TPM at an address in the form of Config.Address.
func dial(ctx context.Context, address string) (io.ReadWriteCloser, error) {
	if !isSocket(address) {
		return openDevice(address)
	}
	network, where, _ := strings.Cut(address, ":")
	if (network != "unix" && network != "tcp") || where == "" {
		return nil, fmt.Errorf("TPM address %q is neither /dev/…, unix:PATH nor tcp:HOST:PORT", address)
	}
	c, err := new(net.Dialer).DialContext(ctx, network, where)
	if err != nil {
		var op *net.OpError // its own text repeats the address
		if errors.As(err, &op) {
			err = op.Err
		}
		return nil, fmt.Errorf("%w: cannot connect to the TPM at %s: %w", rot.ErrUnavailable, address, err)
	}
	return c, nil
}

// openDevice opens a character device for blocking reads and writes. Not with
// os.Open: in non-blocking mode the kernel takes a command and returns at once,
// and a read that comes too early gets the end of file instead of "not yet".
func openDevice(path string) (*os.File, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EBUSY):
			return nil, fmt.Errorf("%w: cannot open %s: %w", rot.ErrBusy, path, err)
		case err != nil:
			return nil, fmt.Errorf("%w: cannot open %s: %w", rot.ErrUnavailable, path, err)
		}
		f := os.NewFile(uintptr(fd), path)
		if info, err := f.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
			f.Close()
			return nil, fmt.Errorf("%w: %s is not a character device", rot.ErrUnavailable, path)
		}
		return f, nil
	}
}
