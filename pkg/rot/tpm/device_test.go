package tpm

import (
	"crypto"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"birthmark/internal/swtpm"
	"birthmark/pkg/rot"
	"birthmark/pkg/rot/rottest"
)

// terminal opens a pseudo-terminal that carries all bytes unchanged. Its far end is
// a character device and, like /dev/tpmrm0, one whose reads take no deadline.
func terminal(t *testing.T) (near *os.File, far string) {
	t.Helper()
	near, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	control, err := near.SyscallConn() // not Fd, after which Close would not end a Read
	if err != nil {
		t.Fatal(err)
	}
	var number uint32
	var errs []error
	err = control.Control(func(fd uintptr) {
		raw := unix.Termios{Cflag: unix.CS8 | unix.CREAD}
		raw.Cc[unix.VMIN] = 1
		number, err = unix.IoctlGetUint32(int(fd), unix.TIOCGPTN)
		errs = append(errs, err,
			unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0),
			unix.IoctlSetTermios(int(fd), unix.TCSETS, &raw))
	})
	if err := errors.Join(append(errs, err)...); err != nil {
		t.Fatal(err)
	}
	return near, fmt.Sprintf("/dev/pts/%d", number)
}

// bridge carries commands and responses between a device and a TPM, until the
// device is closed.
func bridge(t *testing.T, device *os.File, s *swtpm.TPM) {
	t.Helper()
	c, err := net.Dial("unix", strings.TrimPrefix(s.Address(), "unix:"))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		command := make([]byte, responseLimit)
		for {
			n, err := device.Read(command)
			if err != nil {
				return
			}
			if _, err := c.Write(command[:n]); err != nil {
				return
			}
			response, err := readResponse(c)
			if err != nil {
				return
			}
			for len(response) > 0 { // in pieces
				piece := response[:min(len(response), 100)]
				device.Write(piece)
				response = response[len(piece):]
			}
		}
	}()
	t.Cleanup(func() {
		device.Close()
		c.Close()
		<-ended
	})
}

func TestSpeaksThroughACharacterDevice(t *testing.T) {
	s := Start(t)
	near, far := terminal(t)
	bridge(t, near, s)
	r, err := Open(t.Context(), Config{Address: far, Deadline: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	k, err := r.Create(t.Context(), rot.P256)
	if err != nil {
		t.Fatal(err)
	}
	if err := rottest.Verify(k, "message", crypto.SHA256); err != nil {
		t.Error(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// A read of a device cannot be given a deadline; a command has one all the same.
func TestDeadlineEndsAMuteDevice(t *testing.T) {
	_, far := terminal(t)
	start := time.Now()
	_, err := Open(t.Context(), Config{Address: far, Deadline: 50 * time.Millisecond})
	if !errors.Is(err, rot.ErrUnavailable) || !strings.Contains(err.Error(), "no answer within 50ms") {
		t.Errorf("got %v, want rot.ErrUnavailable: no answer within 50ms", err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %v, want 50ms", took)
	}
}
