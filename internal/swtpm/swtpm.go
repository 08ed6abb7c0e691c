// Package swtpm runs a TPM 2.0 in software, Debian's swtpm, for tests and for
// the lab's demonstration. It is no root of trust: whoever owns the folder owns
// its keys. The device binary does not link it.
//
// [Manufacture] makes a TPM in a folder once, as a chip maker would: endorsement
// keys with certificates from a small authority of that TPM's own. [Start] powers
// it on and listens on a unix socket in the folder, about 10 ms later; [StartTCP]
// does the same for programs that use Debian's tpm2-tools. Either may be called
// again after [TPM.Stop] or [TPM.Kill]: the folder keeps what a chip would keep.
//
// Files of the folder:
//
//	tpm/    the state of the TPM
//	ca/     the authority that signed the endorsement certificates
//	sock    where it listens (Start)
//	log     what swtpm had to say the last time
//
// swtpm serves one connection at a time: a second one waits until the first is
// closed. It has no resource manager, so what a client leaves loaded stays
// loaded until somebody flushes it or the TPM is powered off.
package swtpm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

const (
	startTimeout = 10 * time.Second       // to answer; usually 10 ms
	stopTimeout  = 2 * time.Second        // to leave after SIGTERM
	pollInterval = 2 * time.Millisecond   // between two looks whether it answers
	quitTimeout  = 500 * time.Millisecond // for TPM2_Shutdown to be answered

	pathLimit = 107  // bytes of a unix socket's path, unix(7)
	logLimit  = 1024 // bytes of swtpm's log that an error quotes
	portTries = 8    // to find two neighbouring free TCP ports
)

// A TPM is a running swtpm.
type TPM struct {
	dir     string
	network string // "unix" or "tcp"
	addr    string // path or HOST:PORT
	cmd     *exec.Cmd
	gone    chan struct{} // closed when the process has ended
}

// Start powers on the TPM that Manufacture made in dir. It listens on dir/sock,
// a path that must not be longer than 107 bytes. ctx bounds the start, not the
// life of the TPM: end it with Stop or Kill. It also ends with this process.
func Start(ctx context.Context, dir string) (*TPM, error) {
	sock := filepath.Join(dir, "sock")
	if len(sock) > pathLimit {
		return nil, fmt.Errorf("cannot start swtpm: socket path of %d bytes, at most %d: %s", len(sock), pathLimit, sock)
	}
	if err := os.Remove(sock); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot start swtpm: %w", err)
	}
	return start(ctx, dir, "unix", sock, "--server", "type=unixio,path="+sock)
}

// StartTCP is Start for Debian's tpm2-tools: the TPM listens on two neighbouring
// ports of 127.0.0.1, for commands and for control; TCTI names them.
func StartTCP(ctx context.Context, dir string) (t *TPM, err error) {
	for range portTries {
		var port int
		if port, err = freePorts(); err != nil {
			continue
		}
		t, err = start(ctx, dir, "tcp", fmt.Sprintf("127.0.0.1:%d", port),
			"--server", fmt.Sprintf("type=tcp,port=%d,bindaddr=127.0.0.1", port),
			"--ctrl", fmt.Sprintf("type=tcp,port=%d,bindaddr=127.0.0.1", port+1))
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	return t, err
}

// freePorts finds a port that is free together with the next one. Somebody else
// may take either before swtpm does.
func freePorts() (int, error) {
	first, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("cannot find a free port: %w", err)
	}
	defer first.Close()
	port := first.Addr().(*net.TCPAddr).Port
	second, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+1))
	if err != nil {
		return 0, fmt.Errorf("cannot find two free ports: %w", err)
	}
	return port, second.Close()
}

func start(ctx context.Context, dir, network, addr string, args ...string) (*TPM, error) {
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, fmt.Errorf("cannot start swtpm: %w", err)
	}
	defer log.Close()
	cmd := exec.Command("swtpm", append([]string{"socket", "--tpm2",
		"--tpmstate", "dir=" + filepath.Join(dir, "tpm"),
		"--flags", "not-need-init,startup-clear"}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own, so that Ctrl-C in a terminal does not cut the TPM's
	// power before the agent has said goodbye; and no swtpm outlives its test.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start swtpm: %w", err)
	}
	t := &TPM{dir: dir, network: network, addr: addr, cmd: cmd, gone: make(chan struct{})}
	go func() {
		cmd.Wait() // how it ended is in the log
		close(t.gone)
	}()
	if err := t.awaitAnswer(ctx); err != nil {
		t.Kill()
		return nil, fmt.Errorf("cannot start swtpm: %w: %s", err, t.logTail())
	}
	return t, nil
}

// awaitAnswer waits until the TPM answers TPM2_GetRandom (TPM 2.0 Part 3, 16.1): a
// swtpm that is about to give up listens, too.
func (t *TPM) awaitAnswer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if t.ask(deadline, []byte{0x80, 1, 0, 0, 0, 12, 0, 0, 0x01, 0x7b, 0, 1}) == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-t.gone:
			return errors.New("it ended at once")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ask sends one command over a connection of its own and awaits an answer,
// whatever it says.
func (t *TPM) ask(deadline time.Time, command []byte) error {
	c, err := net.DialTimeout(t.network, t.addr, time.Until(deadline))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := c.Write(command); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 10)) // tag, size, code
	return err
}

func (t *TPM) logTail() string {
	b, err := os.ReadFile(filepath.Join(t.dir, "log"))
	if err != nil || len(b) == 0 {
		return "no log"
	}
	return string(b[max(0, len(b)-logLimit):])
}

// Dir is the folder of the TPM, for another Start.
func (t *TPM) Dir() string { return t.dir }

// Address is where the TPM listens, in the form that rot/tpm takes.
func (t *TPM) Address() string { return t.network + ":" + t.addr }

// TCTI is the address in the form that tpm2-tools take (--tcti, TPM2TOOLS_TCTI);
// empty unless the TPM was started with StartTCP.
func (t *TPM) TCTI() string {
	if t.network != "tcp" {
		return ""
	}
	host, port, err := net.SplitHostPort(t.addr)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("swtpm:host=%s,port=%s", host, port)
}

// Stop powers the TPM off in the orderly way, with TPM2_Shutdown, as the kernel
// does before a reboot. While a client holds its connection that command cannot
// be sent, and the TPM counts an unorderly power cut. Stop may be called again.
func (t *TPM) Stop() error {
	// TPM2_Shutdown(TPM_SU_CLEAR), Part 3, 9.4; whether it came through does not
	// change what follows.
	t.ask(time.Now().Add(quitTimeout), []byte{0x80, 1, 0, 0, 0, 12, 0, 0, 0x01, 0x45, 0, 0})
	t.cmd.Process.Signal(syscall.SIGTERM) // an error means that it is gone
	select {
	case <-t.gone:
		return nil
	case <-time.After(stopTimeout):
		t.Kill()
		return fmt.Errorf("swtpm had to be killed: it did not stop within %v", stopTimeout)
	}
}

// Kill cuts the power of the TPM. It may be called again, and after Stop.
func (t *TPM) Kill() {
	t.cmd.Process.Kill() // an error means that it is gone
	<-t.gone
}
