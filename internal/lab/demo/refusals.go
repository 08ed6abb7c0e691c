package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// refusals tries what must fail, with the thief's TPM: the device's own is in use.
func (s *stage) refusals(ctx context.Context) error {
	for _, r := range []struct {
		tried string
		try   func(context.Context) (exit int, said string, err error)
		want  string // in what the agent says
	}{
		{"an EST server of a CA that the device does not trust", s.foreignCA, "anchors"},
		{"an EST server that answers with a certificate for another key", s.lyingCA, "key"},
		{"the device's state folder, stolen, in a machine with another TPM", s.stolenState, "another device"},
	} {
		exit, said, err := r.try(ctx)
		if err != nil {
			return fmt.Errorf("cannot try %s: %w", r.tried, err)
		}
		s.report.Refusals = append(s.report.Refusals, Refusal{r.tried, exit, said})
		s.say("refused", "%s: exit code %d\n%s", r.tried, exit, said)
		if exit != 1 || !strings.Contains(said, r.want) {
			return fmt.Errorf("%s was not refused as it must be, with exit code 1 and a word about %q", r.tried, r.want)
		}
	}
	return nil
}

// foreignCA enrols at the maker's server and believes only the owner's root.
func (s *stage) foreignCA(ctx context.Context) (int, string, error) {
	return s.enroll(ctx, s.lab.MakerURL())
}

// lyingCA enrols at a server of the owner's CA that swaps the key.
func (s *stage) lyingCA(ctx context.Context) (int, string, error) {
	l, err := startLiar(s.lab.OwnerCA())
	if err != nil {
		return 0, "", err
	}
	exit, said, err := s.enroll(ctx, l.url)
	return exit, said, errors.Join(err, l.stop())
}

// enroll is `birthmark enroll` at an EST server, trusting the owner's root. It must
// believe nothing: what it asked for may stay, to ask again, but no certificate.
func (s *stage) enroll(ctx context.Context, url string) (int, string, error) {
	out := filepath.Join(s.dir, "enrolled")
	password, err := s.lab.NewPassword("owner", "sensor-2")
	if err != nil {
		return 0, "", err
	}
	file := filepath.Join(s.dir, "other-password")
	if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
		return 0, "", err
	}
	exit, said, err := s.run(ctx, nil, "enroll", "--est-url", url, "--anchors", filepath.Join(s.lab.Dir(), "device", "owner-root.pem"),
		"--username", "sensor-2", "--password-file", file, "--subject", "CN=sensor-2", "--tpm", s.otherTPM.Address(), "--out", out)
	if err != nil {
		return 0, "", err
	}
	for _, name := range []string{"cert.pem", "key.pem", "pending/cert.pem"} {
		if _, err := os.Stat(filepath.Join(out, name)); err == nil {
			return 0, "", fmt.Errorf("the agent took %s", name)
		}
	}
	return exit, said, os.RemoveAll(out)
}

// stolenState runs the agent on a copy of the device's state, with another TPM.
func (s *stage) stolenState(ctx context.Context) (int, string, error) {
	stolen := filepath.Join(s.dir, "stolen")
	if err := os.CopyFS(stolen, os.DirFS(s.device.Path("var/lib/birthmark"))); err != nil {
		return 0, "", err
	}
	return s.run(ctx, []string{"BIRTHMARK_DEVICE__STATE=" + stolen, "BIRTHMARK_DOORS__FOLDER=" + stolen, "BIRTHMARK_TPM__ADDRESS=" + s.otherTPM.Address()},
		"run", "--config", s.configFile())
}

// run runs the agent to its end, which must be soon, and returns its exit code and
// its last line on standard error.
func (s *stage) run(ctx context.Context, env []string, args ...string) (exit int, said string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Agent, args...)
	cmd.Env = append(os.Environ(), env...)
	exit, said, err = toEnd(cmd)
	return exit, said, errors.Join(err, ctx.Err())
}

// toEnd runs a program to its end.
func toEnd(cmd *exec.Cmd) (exit int, said string, err error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err = cmd.Run()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		return 0, "", err
	}
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	return cmd.ProcessState.ExitCode(), lines[len(lines)-1], nil
}
