// Package e2e tests the binaries as people run them: built by `make build`,
// against real TPMs, brokers and the tools of a Debian machine.
package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// patience is how long a test waits for what takes a second when all is well.
const patience = 60 * time.Second

var (
	birthmark    = binary("birthmark")
	birthmarkLab = binary("birthmark-lab")
)

func binary(name string) string {
	path, err := filepath.Abs(filepath.Join("..", "..", "bin", name))
	if err != nil {
		panic(err)
	}
	return path
}

func TestMain(m *testing.M) {
	for _, need := range []string{birthmark, birthmarkLab} {
		if _, err := os.Stat(need); err != nil {
			fmt.Fprintf(os.Stderr, "%v: run make build first\n", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// need is the path of a program that `make setup` installs. A test that cannot
// run is a failure, not a skip.
func need(tb testing.TB, program string) string {
	tb.Helper()
	for _, folder := range []string{"", "/usr/sbin/"} {
		if path, err := exec.LookPath(folder + program); err == nil {
			return path
		}
	}
	tb.Fatalf("%s is not installed: run make setup", program)
	return ""
}

// A process is a program that runs beside the test.
type process struct {
	*exec.Cmd
	stderr bytes.Buffer
	exited chan struct{} // closed when it ended
}

func start(tb testing.TB, env []string, program string, args ...string) *process {
	tb.Helper()
	p := &process{Cmd: exec.Command(program, args...), exited: make(chan struct{})}
	p.Env = append(os.Environ(), env...)
	p.Stderr = &p.stderr
	if err := p.Start(); err != nil {
		tb.Fatal(err)
	}
	go func() {
		_ = p.Wait() // how it ended is in ProcessState
		close(p.exited)
	}()
	tb.Cleanup(p.kill)
	return p
}

func (p *process) kill() {
	_ = p.Process.Kill() // it may have ended by itself
	<-p.exited
}

// awaitPort waits until the process listens on address.
func (p *process) awaitPort(tb testing.TB, address string) {
	tb.Helper()
	late := time.After(patience)
	for {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			return
		}
		select {
		case <-p.exited:
			tb.Fatalf("%s ended by itself:\n%s", p.Path, &p.stderr)
		case <-late:
			tb.Fatalf("%s does not listen on %s", p.Path, address)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// run runs a program to its end and returns what it printed and its exit code.
func run(tb testing.TB, env []string, program string, args ...string) (stdout, stderr string, code int) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		tb.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// must is run of what has to succeed.
func must(tb testing.TB, env []string, program string, args ...string) string {
	tb.Helper()
	stdout, stderr, code := run(tb, env, program, args...)
	if code != 0 {
		tb.Fatalf("%s %q: exit %d\n%s%s", filepath.Base(program), args, code, stdout, stderr)
	}
	return stdout
}
