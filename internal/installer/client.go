package installer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"birthmark/pkg/fota"
)

// Path is where the installer's socket is on a device.
const Path = "/run/birthmark-installer.sock"

// A Client asks the installer. Its errors are
//
//	a *fota.Refusal    what was asked for is refused, for good
//	os.ErrNotExist     there is no socket: the device has no installer
//	ErrBusy            something else is being done
//	the context's      it ended, and with it the install
//	any other          trouble
//
// It is safe for concurrent use.
type Client struct{ Path string }

// Status is answered while an install runs, too.
func (c Client) Status(ctx context.Context) (*Status, error) {
	last, err := c.ask(ctx, message{Verb: "status"}, nil, nil)
	switch {
	case err != nil:
		return nil, err
	case last.Status == nil:
		return nil, errAnswer
	case last.Status.Protocol != Protocol:
		return nil, fmt.Errorf("the installer speaks protocol %d, and this is %d", last.Status.Protocol, Protocol)
	}
	return last.Status, nil
}

// Install lets the installer verify and write the bundle of size bytes that r reads, and
// reads from r whatever it asks for. Progress, if there is one, is told how far it is.
// When it returns, nothing is read any more. An error of r's is what its error wraps.
func (c Client) Install(ctx context.Context, r io.ReaderAt, size int64, progress func(done, total int64)) (*Release, error) {
	return written(c.ask(ctx, message{Verb: "install", Size: &size}, &given{r: r, size: size, progress: progress}, nil))
}

// InstallFile is Install of a regular file, which the installer reads itself.
func (c Client) InstallFile(ctx context.Context, f *os.File, progress func(done, total int64)) (*Release, error) {
	return written(c.ask(ctx, message{Verb: "install"}, &given{progress: progress}, f))
}

func written(last answer, err error) (*Release, error) {
	if err == nil && last.Written == nil {
		err = errAnswer
	}
	return last.Written, err
}

// Arm makes the next starts try the release that the last Install has returned.
func (c Client) Arm(ctx context.Context, v fota.Version) error {
	return c.do(ctx, message{Verb: "arm", Version: &v}, nil)
}

// Bless says that what runs is good.
func (c Client) Bless(ctx context.Context) error { return c.do(ctx, message{Verb: "bless"}, nil) }

// Cancel takes back what Install and Arm did.
func (c Client) Cancel(ctx context.Context) error { return c.do(ctx, message{Verb: "cancel"}, nil) }

// Permit hands over an owner's permit (package permit), as a regular file. An older release
// that it is for may be installed then.
func (c Client) Permit(ctx context.Context, f *os.File) error {
	return c.do(ctx, message{Verb: "permit"}, f)
}

func (c Client) do(ctx context.Context, m message, file *os.File) error {
	last, err := c.ask(ctx, m, nil, file)
	if err == nil && last.Done != m.Verb {
		err = errAnswer
	}
	return err
}

// A message is a request as it is sent.
type message struct {
	Verb    string        `json:"verb"`
	Size    *int64        `json:"size,omitempty"`
	Version *fota.Version `json:"version,omitempty"`
}

var errAnswer = errors.New("the installer's answer is not one to what it was asked")

// ask makes a request, serves what the installer asks meanwhile, and returns its last
// line.
func (c Client) ask(ctx context.Context, m message, g *given, file *os.File) (last answer, err error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", c.Path)
	if err != nil {
		return last, fmt.Errorf("cannot reach the installer: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	last, err = g.talk(conn.(*net.UnixConn), m, file)
	switch {
	case g != nil && g.err != nil:
		err = g.err
	case ctx.Err() != nil && err != nil:
		err = context.Cause(ctx)
	case err == nil:
		return last, last.err()
	}
	return last, fmt.Errorf("the installer did not do its work: %w", err)
}

// Given is what the installer may ask for while it works; nil is nothing.
type given struct {
	r        io.ReaderAt // nil if it has a descriptor
	size     int64
	progress func(done, total int64)

	err error // of r
}

func (g *given) talk(conn *net.UnixConn, m message, file *os.File) (last answer, err error) {
	request, err := line(m, requestLimit)
	if err != nil {
		return last, err
	}
	if err := send(conn, request, file); err != nil {
		return last, err
	}
	in := bufio.NewReaderSize(conn, answerLimit)
	for {
		text, err := readLine(in)
		if err != nil {
			return last, err
		}
		a, err := parseAnswer(text)
		switch {
		case err != nil:
			return last, err
		case a.Read == nil && a.Progress == nil:
			return a, nil
		case g == nil:
			return last, errAnswer
		case a.Progress != nil:
			if g.progress != nil {
				g.progress(a.Progress.Done, a.Progress.Total)
			}
		default:
			if err := g.reply(conn, *a.Read); err != nil {
				return last, err
			}
		}
	}
}

// reply gives the installer what it asks for, or the reason why not, after which it says
// its last line.
func (g *given) reply(conn *net.UnixConn, a ask) error {
	if g.r == nil || a.Length <= 0 || a.Length > readLimit || a.Offset < 0 || a.Offset > g.size-int64(a.Length) {
		return fmt.Errorf("the installer asks for %d bytes at %d, which nobody has offered", a.Length, a.Offset)
	}
	b := make([]byte, a.Length)
	if n, err := g.r.ReadAt(b, a.Offset); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		g.err = err
		text, err := line(struct {
			Error string `json:"error"`
		}{printable(err.Error())}, requestLimit)
		if err != nil {
			return err
		}
		_, err = conn.Write(text)
		return err
	}
	head, err := line(struct {
		Length int `json:"length"`
	}{len(b)}, requestLimit)
	if err != nil {
		return err
	}
	buffers := net.Buffers{head, b}
	_, err = buffers.WriteTo(conn)
	return err
}

func send(conn *net.UnixConn, text []byte, file *os.File) error {
	if file == nil {
		_, err := conn.Write(text)
		return err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	errControl := raw.Control(func(fd uintptr) {
		_, _, err = conn.WriteMsgUnix(text, unix.UnixRights(int(fd)), nil)
	})
	return errors.Join(errControl, err)
}

// parseAnswer reads a line of the installer's: one object with one member.
func parseAnswer(text []byte) (a answer, err error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&a); err != nil {
		return a, fmt.Errorf("cannot take the installer's answer: %w", err)
	}
	members := 0
	for _, there := range []bool{a.Read != nil, a.Progress != nil, a.Status != nil, a.Written != nil, a.Done != "", a.Refused != nil, a.Busy != "", a.Error != ""} {
		if there {
			members++
		}
	}
	if _, err := d.Token(); err != io.EOF || members != 1 {
		return a, errAnswer
	}
	return a, nil
}
