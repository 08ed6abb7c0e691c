package demo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// stopLimit is how long an agent may take to end in good order.
const stopLimit = 15 * time.Second

// A device is the agent, running.
type device struct {
	cmd    *exec.Cmd
	log    chan entry // its log; closed at its end
	exited chan error
}

// An entry is one line of the agent's log.
type entry map[string]any

func (e entry) text(key string) string {
	if v, ok := e[key]; ok {
		return fmt.Sprint(v)
	}
	return ""
}

// stateFolder is where the device of the demonstration remembers.
func (s *stage) stateFolder() string { return filepath.Join(s.dir, "state") }

// boot starts the agent on an empty state folder, with the one-time password that
// the factory gave it.
func (s *stage) boot(ctx context.Context) (*device, error) {
	const id = "sensor-1"
	password, err := s.lab.NewPassword("maker", id)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(s.dir, "password")
	if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
		return nil, err
	}
	env := []string{
		"BIRTHMARK_DEVICE__ID=" + id,
		"BIRTHMARK_DEVICE__STATE=" + s.stateFolder(),
		"BIRTHMARK_DOORS__FOLDER=" + filepath.Join(s.dir, "run"),
		"BIRTHMARK_TPM__ADDRESS=" + s.tpm.Address(),
		"BIRTHMARK_BIRTH__PASSWORD_FILE=" + file,
	}
	if s.Nonce != "" {
		env = append(env, "BIRTHMARK_TELEMETRY__LABELS=nonce="+s.Nonce)
	}
	s.say("factory", "gives the device %s its image, both CAs' addresses and roots, and a one-time password", id)
	s.print("\n")
	s.report.Device = id
	return start(ctx, env, s.Agent, "run", "--json", "--config", s.configFile())
}

func (s *stage) configFile() string { return filepath.Join(s.lab.Dir(), "device", "birthmark.toml") }

// start starts the agent; it is asked to stop when ctx ends.
func start(ctx context.Context, env []string, agent string, args ...string) (*device, error) {
	d := &device{log: make(chan entry, 16), exited: make(chan error, 1)}
	d.cmd = exec.CommandContext(ctx, agent, args...)
	d.cmd.Env = append(os.Environ(), env...)
	d.cmd.Cancel = func() error { return d.cmd.Process.Signal(syscall.SIGTERM) }
	d.cmd.WaitDelay = 5 * time.Second
	stderr, err := d.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start the agent: %w", err)
	}
	go func() {
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			var e entry
			if json.Unmarshal(lines.Bytes(), &e) != nil {
				e = entry{"level": "ERROR", "msg": lines.Text()} // its last words
			}
			d.log <- e
		}
		close(d.log)
		d.exited <- d.cmd.Wait()
	}()
	return d, nil
}

// stop ends the agent in good order, or after a while in any order.
func (d *device) stop() {
	// It may have ended by itself.
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(stopLimit, func() { _ = d.cmd.Process.Kill() })
	defer late.Stop()
	for range d.log {
	}
	<-d.exited
}

// watchLife shows a life from blank to the first telemetry, as the device and the
// broker tell it: either may be the first to speak.
func (s *stage) watchLife(ctx context.Context, d *device) error {
	late := time.After(patience)
	var trouble string
	for connected, heard := false, false; !connected || !heard; {
		select {
		case e, running := <-d.log:
			if !running {
				return fmt.Errorf("the agent ended by itself: %s", trouble)
			}
			if e.text("level") != "INFO" {
				trouble = strings.Join(strings.Fields(e.text("msg")+" "+e.text("err")+" "+e.text("next")), " ")
				s.say("device", "trouble: %s", trouble)
			}
			s.show(e)
			connected = connected || e.text("msg") == "session with the broker"
		case m := <-s.heard:
			heard = s.hear(m) || heard
		case <-late:
			return fmt.Errorf("no telemetry within %v: %s", patience, trouble)
		case <-ctx.Done():
			return errors.New("stopped before the device was in service")
		}
	}
	return nil
}

// show puts what the agent logs on the timeline.
func (s *stage) show(e entry) {
	switch e.text("msg") {
	case "root of trust open":
		s.say("device", "boots for the first time, with a TPM %q whose EK is %.16s…", e.text("vendor"), e.text("ek"))
		if e.text("ek_certificate") == "true" {
			s.proved("the chip maker's certificate in the TPM is for that EK")
		}
	case "IDevID is in the root of trust":
		s.say("device", "makes its IDevID key, for life, inside the TPM")
		s.proved("the TPM says of it: %s", e.text("protected"))
	case "LDevID made in the root of trust":
		s.say("device", "makes an LDevID key, for every day, inside the TPM (%s)", e.text("algorithm"))
		s.proved("the TPM says of it: %s", e.text("protected"))
	case "certificate accepted":
		who, what := "owner", "LDevID"
		if e.text("issued_for") == "IDevID" {
			who, what = "maker", "IDevID"
		}
		s.say(who, "issues the %s certificate %s, serial %s, until %.10s", what, e.text("subject"), e.text("serial"), e.text("until"))
		s.proved("what the key in the TPM signs verifies under it, and its chain leads to the %s's root", who)
	case "state changed":
		s.say("device", "was %s, and now is %s", e.text("from"), strings.ToUpper(e.text("to")))
		s.print("\n")
	case "session with the broker":
		s.say("device", "is connected to the broker over mutual TLS, session %s", e.text("session"))
		s.proved("its client id is the common name of its certificate, or the broker would not have it")
	}
}

// hear puts what the broker got on the timeline, and says whether it was telemetry.
func (s *stage) hear(m message) bool {
	var state struct {
		Online  *bool
		Session int
	}
	if strings.HasSuffix(m.topic, "/state") && json.Unmarshal(m.payload, &state) == nil && state.Online != nil {
		s.say("broker", "hears on %s: online %t, session %d", m.topic, *state.Online, state.Session)
		return false
	}
	s.say("broker", "hears on %s:\n%s", m.topic, m.payload)
	if !strings.HasSuffix(m.topic, "/tele/system") {
		return false
	}
	if s.report.Telemetry == nil {
		s.report.Topic, s.report.Telemetry = m.topic, m.payload
	}
	return true
}

// watchService shows telemetry until ctx ends.
func (s *stage) watchService(ctx context.Context, d *device) error {
	for {
		select {
		case e, running := <-d.log:
			if !running {
				return errors.New("the agent ended by itself")
			}
			if e.text("level") != "INFO" {
				s.say("device", "%s: %s", e.text("msg"), e.text("err"))
			}
		case m := <-s.heard:
			s.hear(m)
		case <-ctx.Done():
			return nil
		}
	}
}
