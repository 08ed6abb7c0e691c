package main

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"birthmark/internal/cli/clitest"
)

// patience is how long a script waits for what takes a second when all is well.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin") // mosquitto
	testscript.Main(m, map[string]func(){"birthmark-lab": main})
}

// TestScript runs the binary as people do.
//
// Commands of the scripts: `start NAME TEXT program …` starts a program and waits
// until it prints TEXT; `end NAME` asks it to end, which must be with exit code 0,
// and leaves what it printed in NAME.out; `port DIR` sets $PORT to the broker's
// port of the lab in DIR; `exits CODE program …`.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Values["running"] = running{}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start": start, "end": end, "port": port, "exits": exits,
		},
	})
}

// running is the programs that run, by their names in the script.
type running map[string]*program

type program struct {
	*exec.Cmd
	output strings.Builder // of both streams; may be read when ended is closed
	ended  chan struct{}
}

func start(ts *testscript.TestScript, _ bool, args []string) {
	name, text := args[0], args[1]
	path, err := exec.LookPath(args[2])
	if err != nil {
		ts.Fatalf("%s is not installed: run make setup: %v", args[2], err)
	}
	p := &program{Cmd: exec.Command(path, args[3:]...), ended: make(chan struct{})}
	p.Dir = ts.Getenv("WORK")
	out, err := p.StdoutPipe()
	ts.Check(err)
	p.Stderr = p.Stdout
	ts.Check(p.Start())
	said := make(chan struct{})
	go func() {
		defer close(p.ended)
		waiting := true
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.output.WriteString(lines.Text() + "\n")
			if waiting && strings.Contains(lines.Text(), text) {
				waiting = false
				close(said)
			}
		}
	}()
	ts.Value("running").(running)[name] = p
	ts.Defer(func() {
		if p.ProcessState == nil {
			_ = p.Process.Kill() // it may have ended by itself
			<-p.ended
			_ = p.Wait() // killed
		}
	})
	select {
	case <-said:
	case <-p.ended:
		ts.Fatalf("%s ended:\n%s", name, &p.output)
	case <-time.After(patience):
		ts.Fatalf("%s does not say %q within %v", name, text, patience)
	}
}

func end(ts *testscript.TestScript, _ bool, args []string) {
	p := ts.Value("running").(running)[args[0]]
	ts.Check(p.Process.Signal(syscall.SIGTERM))
	select {
	case <-p.ended:
	case <-time.After(patience):
		ts.Fatalf("%s runs on %v after SIGTERM", args[0], patience)
	}
	if err := p.Wait(); err != nil {
		ts.Fatalf("%s: %v\n%s", args[0], err, &p.output)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".out"), []byte(p.output.String()), 0o600))
}

// port reads the port of the broker of the lab in a folder.
func port(ts *testscript.TestScript, _ bool, args []string) {
	var lab struct{ Broker int }
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0]+"/lab.json")), &lab))
	ts.Setenv("PORT", strconv.Itoa(lab.Broker))
}

// exits is clitest.Exits, and what fails says why on one line.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	clitest.Exits(ts, neg, args)
	if said := ts.ReadFile("stderr"); args[0] != "0" && strings.Count(said, "\n") != 1 {
		ts.Fatalf("%s said on standard error, in more or less than one line:\n%s", strings.Join(args[1:], " "), said)
	}
}
