package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"birthmark/internal/lab"
	"birthmark/internal/swtpm"
)

const (
	// patience is how long may take what takes a second on an idle machine.
	patience = time.Minute

	deviceID = "bench-device" // the agent's
	peerID   = "bench-peer"   // mosquitto_pub's and mosquitto_sub's
)

// A world is what all measurements share: one lab, one broker, one TPM, a device in
// service, and a peer with a certificate of the same CA for a key in a file.
type world struct {
	dir    string
	agent  string // the device binary
	tpm    *swtpm.TPM
	lab    *lab.Lab
	broker *broker
	made   int // devices that enrolled, for their names
}

func newWorld(ctx context.Context, agent string) (_ *world, err error) {
	dir, err := os.MkdirTemp("", "bm-bench") // short enough for the path of a socket
	if err != nil {
		return nil, err
	}
	w := &world{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if w.agent, err = filepath.Abs(agent); err != nil {
		return nil, err
	}
	if err := os.Mkdir(w.path("tpm"), 0o700); err != nil {
		return nil, err
	}
	if err := swtpm.Manufacture(ctx, w.path("tpm")); err != nil {
		return nil, err
	}
	if w.tpm, err = swtpm.Start(ctx, w.path("tpm")); err != nil {
		return nil, err
	}
	if w.lab, err = lab.Up(ctx, lab.Options{Dir: w.path("lab"), NoBroker: true}); err != nil {
		return nil, err
	}
	conf, _, err := lab.Mosquitto(ctx, w.path("lab"))
	if err != nil {
		return nil, err
	}
	mosquitto, err := find("mosquitto")
	if err != nil {
		return nil, err
	}
	if w.broker, err = startBroker(ctx, mosquitto, conf); err != nil {
		return nil, err
	}
	if err := w.enrolPeer(ctx); err != nil {
		return nil, err
	}
	return w, w.putInService(ctx)
}

func (w *world) close() error {
	var errs []error
	if w.broker != nil {
		w.broker.stop()
	}
	if w.lab != nil {
		errs = append(errs, w.lab.Close())
	}
	if w.tpm != nil {
		w.tpm.Kill()
	}
	return errors.Join(append(errs, os.RemoveAll(w.dir))...)
}

func (w *world) path(elem ...string) string {
	return filepath.Join(append([]string{w.dir}, elem...)...)
}

// putInService takes the device from blank to its first session in service.
func (w *world) putInService(ctx context.Context) error {
	password, err := w.lab.NewPassword(lab.Maker, deviceID)
	if err != nil {
		return err
	}
	if err := os.WriteFile(w.path("password"), []byte(password+"\n"), 0o600); err != nil {
		return err
	}
	a, err := w.startAgent("BIRTHMARK_BIRTH__PASSWORD_FILE=" + w.path("password"))
	if err != nil {
		return err
	}
	// The first session only knocks at the broker's door.
	for range 2 {
		if _, err := w.broker.await(ctx, deviceID, 1); err != nil {
			return errors.Join(err, a.stop())
		}
	}
	return a.stop()
}

// An agent is `birthmark run` of the device, in a process of its own.
type agent struct {
	cmd     *exec.Cmd
	log     string
	started time.Time
}

// startAgent starts the device with the configuration of the lab, the intervals of
// the product, and env.
func (w *world) startAgent(env ...string) (*agent, error) {
	a := &agent{log: w.path("agent.log")}
	log, err := os.Create(a.log) // a file costs this process nothing
	if err != nil {
		return nil, err
	}
	defer log.Close()
	a.cmd = exec.Command(w.agent, "run", "--config", w.path("lab", "device", "birthmark.toml"))
	a.cmd.Env = append(append(os.Environ(),
		"BIRTHMARK_DEVICE__ID="+deviceID,
		"BIRTHMARK_DEVICE__STATE="+w.path("state"),
		"BIRTHMARK_DOORS__FOLDER="+w.path("run"),
		"BIRTHMARK_TPM__ADDRESS="+w.tpm.Address(),
		"BIRTHMARK_TELEMETRY__INTERVAL=1m",
	), env...)
	a.cmd.Stderr = log
	a.started = time.Now()
	return a, a.cmd.Start()
}

// stop ends the agent in good order.
func (a *agent) stop() error {
	_ = a.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself, with an error
	late := time.AfterFunc(patience, func() { _ = a.cmd.Process.Kill() })
	defer late.Stop()
	if err := a.cmd.Wait(); err != nil {
		text, _ := os.ReadFile(a.log)
		return fmt.Errorf("birthmark run: %w\n%s", err, text[max(0, len(text)-2000):])
	}
	return nil
}

// mosquitto are the arguments with which mosquitto_pub and mosquitto_sub reach the
// broker as the peer.
func (w *world) mosquitto(args ...string) []string {
	host, port, _ := strings.Cut(strings.TrimPrefix(w.lab.BrokerURL(), "mqtts://"), ":")
	return append([]string{"-h", host, "-p", port, "-i", peerID, "-q", "1", "--cafile", w.ownerRoot(),
		"--cert", w.path("peer", "chain.pem"), "--key", w.path("peer", "key.pem")}, args...)
}

func (w *world) ownerRoot() string { return w.path("lab", "device", "owner-root.pem") }

// run runs a program in dir to its end, with stdin and stdout at files of that folder,
// as a shell would; "" is none.
func run(ctx context.Context, dir, stdin, stdout, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	if stdin != "" {
		in, err := os.Open(filepath.Join(dir, stdin))
		if err != nil {
			return err
		}
		defer in.Close()
		cmd.Stdin = in
	}
	if stdout != "" {
		out, err := os.OpenFile(filepath.Join(dir, stdout), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		defer out.Close()
		cmd.Stdout = out
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(program), err, &stderr)
	}
	return nil
}

// find is the path of a program that `make setup` installs; daemons are not in
// everybody's PATH.
func find(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + program)
	}
	if err != nil {
		return "", fmt.Errorf("%s is not installed: run make setup", program)
	}
	return path, nil
}
