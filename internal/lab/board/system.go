package board

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	installerSocket = "run/birthmark-installer.sock"
	notifySocket    = "run/notify"

	againAfter = time.Second     // the agent, when it has ended by itself
	stopLimit  = 5 * time.Second // for a program to end in good order
	lookEvery  = 50              // milliseconds: whether somebody is at the installer's door
)

// errCut is why programs end at once.
var errCut = errors.New("the power was cut")

// live is the system between two starts: what systemd does by our units, and logind.
func (b *Board) live(ctx context.Context, s Start) error {
	select {
	case <-b.restart: // of the start before
	default:
	}
	bus, err := b.openBus()
	if err != nil {
		return err
	}
	defer bus.Close()
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: b.path(notifySocket), Net: "unixgram"})
	if err != nil {
		return err
	}
	defer notify.Close()
	door, err := net.ListenUnix("unix", &net.UnixAddr{Name: b.path(installerSocket), Net: "unix"})
	if err != nil {
		return err
	}
	defer door.Close()
	if err := b.tellTime(0); err != nil {
		return err
	}
	if b.Started != nil {
		b.Started(s)
	}
	on, off := context.WithCancelCause(ctx)
	defer context.AfterFunc(on, func() { notify.SetReadDeadline(time.Unix(1, 0)) })()
	var all sync.WaitGroup
	errs := make(chan error, 4)
	part := func(run func() error) {
		all.Go(func() {
			if err := run(); err != nil && on.Err() == nil {
				errs <- err
				off(err)
			}
		})
	}
	part(func() error { return b.keepTime(on) })
	part(func() error { return b.serveAgent(on) })
	part(func() error { return b.serveInstaller(on, door) })
	part(func() error {
		if !ready(notify) {
			return nil
		}
		_, err := b.execute(on, b.Command(on, "health", "--config", b.Conf), "health")
		return err
	})
	select {
	case <-on.Done():
	case orderly := <-b.restart:
		var why error
		if !orderly {
			why = errCut
		}
		off(why)
	}
	off(nil)
	all.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// ready waits until the agent has said that it is (sd_notify(3)).
func ready(c *net.UnixConn) bool {
	text := make([]byte, 4096)
	for {
		n, err := c.Read(text)
		if err != nil {
			return false
		}
		for line := range strings.Lines(string(text[:n])) {
			if strings.TrimSpace(line) == "READY=1" {
				go func() { // what it says later is of no interest, and has to go somewhere
					for _, err := c.Read(text); err == nil; _, err = c.Read(text) {
					}
				}()
				return true
			}
		}
	}
}

// keepTime is /proc/uptime.
func (b *Board) keepTime(ctx context.Context) error {
	began := time.Now()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := b.tellTime(time.Since(began)); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (b *Board) tellTime(up time.Duration) error {
	path := b.path("proc/uptime")
	if err := os.WriteFile(path+".new", fmt.Appendf(nil, "%.2f 0.00\n", up.Seconds()), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// serveAgent is birthmark-agent.service: an agent that has ended is started again, unless
// it says that this is of no use.
func (b *Board) serveAgent(ctx context.Context) error {
	for {
		cmd := b.Command(ctx, "run", "--json", "--config", b.Conf)
		cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+b.path(notifySocket))
		code, err := b.execute(ctx, cmd, "agent")
		if err != nil || code == 1 || code == 2 {
			return err
		}
		select {
		case <-time.After(againAfter):
		case <-ctx.Done():
			return nil
		}
	}
}

// serveInstaller is birthmark-installer.socket and its service.
func (b *Board) serveInstaller(ctx context.Context, door *net.UnixListener) error {
	passed, err := door.File()
	if err != nil {
		return err
	}
	defer passed.Close()
	for {
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(passed.Fd()), Events: unix.POLLIN}}, lookEvery)
			if err != nil && err != unix.EINTR {
				return err
			}
			if ctx.Err() != nil {
				return nil
			}
			if n > 0 {
				break
			}
		}
		// A program that is given sockets is told its own number, by which nobody can
		// be called before he is there (sd_listen_fds(3)).
		cmd := b.Command(ctx, "installer", "--json")
		cmd.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
		cmd.Path = "/bin/sh"
		cmd.Env = append(cmd.Env, "LISTEN_FDS=1", "LISTEN_FDNAMES=installer.sock", "STATE_DIRECTORY="+b.path("var/lib/birthmark-installer"))
		cmd.ExtraFiles = []*os.File{passed}
		if _, err := b.execute(ctx, cmd, "installer"); err != nil {
			return err
		}
	}
}

// execute runs a program of the device to its end, which ctx brings: in good order, or at
// once if its cause is errCut. How it has ended is no error.
func (b *Board) execute(ctx context.Context, cmd *exec.Cmd, name string) (code int, err error) {
	said := &lines{tell: func(line string) {
		if b.Log != nil {
			b.Log(name, line)
		}
	}}
	cmd.Stdout, cmd.Stderr = said, said
	cmd.Cancel = func() error {
		if context.Cause(ctx) == errCut {
			return cmd.Process.Kill()
		}
		return cmd.Process.Signal(syscall.SIGTERM)
	}
	cmd.WaitDelay = stopLimit
	// A group of its own: Ctrl-C is for who holds the board. And no end without it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	said.end()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) && cmd.ProcessState == nil {
		return 0, fmt.Errorf("cannot run %s: %w", name, err)
	}
	code = cmd.ProcessState.ExitCode()
	if b.Exited != nil && ctx.Err() == nil {
		b.Exited(name, code)
	}
	return code, nil
}

// lines cuts what is written into lines.
type lines struct {
	tell func(string)
	rest []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		l.tell(string(line))
		l.rest = rest
	}
}

func (l *lines) end() {
	if len(l.rest) > 0 {
		l.tell(string(l.rest))
	}
}
