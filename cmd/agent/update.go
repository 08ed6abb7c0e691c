package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"birthmark/internal/agent"
	"birthmark/internal/agent/api"
	"birthmark/internal/agent/firmware"
	"birthmark/internal/agent/update"
	"birthmark/internal/cli"
	"birthmark/internal/config"
	"birthmark/internal/installer"
	"birthmark/internal/sysroot"
	"birthmark/pkg/fota"
)

// rootSide is the installer of this device, as the agent wants it.
type rootSide struct{ installer.Client }

var thisInstaller = rootSide{installer.Client{Path: sysroot.Path(installer.Path)}}

func (r rootSide) Status(ctx context.Context) (fota.Status, error) {
	s, err := r.Client.Status(ctx)
	switch {
	case err != nil:
		return fota.Status{}, err
	case s.Device == nil:
		return fota.Status{}, fmt.Errorf("the installer cannot handle this device: %s", strings.Join(s.Notes, "; "))
	}
	s.Device.Notes = append(s.Device.Notes, s.Notes...)
	return *s.Device, nil
}

func (r rootSide) Install(ctx context.Context, bundle io.ReaderAt, size int64, progress func(done, total int64)) error {
	_, err := r.Client.Install(ctx, bundle, size, progress)
	return err
}

// takeInstall hands an order to the agent, and says why it was not taken.
func takeInstall(a *agent.Agent) func(context.Context, api.Install) (string, error) {
	return func(ctx context.Context, order api.Install) (string, error) {
		from, err := update.ParseFrom(order.From)
		if err != nil {
			return "", &api.Refusal{Status: http.StatusBadRequest, Reason: err.Error()}
		}
		v, err := a.Updates().Order(ctx, from, order.Restart)
		var refusal *fota.Refusal
		var conf *config.Error
		switch {
		case err == nil:
			return v.String(), nil
		case errors.As(err, &refusal):
			return "", &api.Refusal{Status: http.StatusUnprocessableEntity, Stage: string(refusal.Stage), Code: refusal.Code, Reason: refusal.Err.Error()}
		case errors.As(err, &conf):
			return "", &api.Refusal{Status: http.StatusBadRequest, Reason: err.Error()}
		case errors.Is(err, update.ErrBusy):
			return "", &api.Refusal{Status: http.StatusConflict, Reason: err.Error()}
		}
		return "", &api.Refusal{Status: http.StatusServiceUnavailable, Reason: cli.Line(err, agent.Hint(err))}
	}
}

// takeVerdict hands the agent what `birthmark health` has found.
func takeVerdict(a *agent.Agent) func(api.Verdict) error {
	return func(v api.Verdict) error {
		err := a.Updates().Judge(v.Unwell)
		if errors.Is(err, update.ErrNoTrial) {
			return &api.Refusal{Status: http.StatusConflict, Reason: err.Error()}
		}
		return err
	}
}

func firmwareInstallCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "install FILE|URL", Short: "have the agent install a firmware bundle", Args: cobra.ExactArgs(1),
		Long: `Ask the agent, as root and group birthmark-admin may, to install a bundle in the slot
that does not run, and wait until that is done. What it would refuse, it refuses
before anything is written. The agent reads the bundle itself: a file has to be where
the user birthmark may read it, which is not /tmp or a home; a URL (https) has to be
of a server whose root certificate is in firmware.server_anchors, which is shown the
device's certificate.

The release is tried at the next restart, which --reboot asks for. It stays if it is
found healthy (birthmark health); or else the one that runs now comes back.

A release that is older than what runs takes a permit, which its owner has signed for
it (--permit, root only); one below the floor is never taken.

Exit code 0: it is written and armed. 1: refused, "STAGE: REASON". 2: usage or
configuration. 3: agent, installer or bundle cannot be reached; another is on trial.`,
		Example: `  birthmark firmware install /var/cache/release.raucb --reboot
  birthmark firmware install https://updates.example.com/gw/1.1.0.raucb`,
	}
	file := configFlag(cmd)
	reboot := cmd.Flags().Bool("reboot", false, "restart the device for it, when it is written")
	permit := cmd.Flags().String("permit", "", "`file` with the owner's permit for an older release")
	asJSON := cli.JSONFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		tellPlayed(cmd)
		conf, err := config.Load(config.Options{File: *file, Env: os.Environ()})
		if err != nil {
			return err
		}
		if *permit != "" {
			if err := handOver(cmd.Context(), *permit); err != nil {
				return err
			}
		}
		order := api.Install{From: args[0], Restart: *reboot}
		if !strings.Contains(order.From, "://") {
			if order.From, err = filepath.Abs(order.From); err != nil {
				return err
			}
		}
		if _, err := api.Post(cmd.Context(), conf.Config.Doors.Folder, "/v1/firmware/install", order); err != nil {
			return notTaken(err)
		}
		var m *meter
		if stderr, ok := cmd.ErrOrStderr().(*os.File); ok && !*asJSON && isTerminal(stderr) {
			m = &meter{w: stderr}
			defer m.clear()
		}
		s, err := follow(cmd.Context(), conf, m)
		if err != nil {
			return err
		}
		if *asJSON {
			return errors.Join(cli.PrintJSON(cmd.OutOrStdout(), s), outcome(s))
		}
		if err := outcome(s); err != nil {
			return err
		}
		then := "restart the device to try it"
		if s.Restart {
			then = "the device restarts to try it"
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is installed; %s\n", s.Version, then)
		return err
	}
	return cmd
}

// handOver gives a permit to the installer, which verifies it.
func handOver(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return &config.Error{Msg: "--permit: " + err.Error()}
	}
	defer f.Close()
	err = thisInstaller.Permit(ctx, f)
	var refusal *fota.Refusal
	if err != nil && !errors.As(err, &refusal) {
		err = &firmware.UnavailableError{Err: fmt.Errorf("cannot hand over the permit: %w", err)}
	}
	return err
}

// notTaken is why the agent did not take an order, so that the exit code is right.
func notTaken(err error) error {
	var refusal *api.Refusal
	switch {
	case !errors.As(err, &refusal):
		return err
	case refusal.Stage != "":
		return &fota.Refusal{Stage: fota.Stage(refusal.Stage), Code: refusal.Code, Err: errors.New(agent.Printable(refusal.Reason))}
	case refusal.Status == http.StatusBadRequest:
		return &config.Error{Msg: refusal.Reason}
	case refusal.Status == http.StatusConflict, refusal.Status == http.StatusServiceUnavailable:
		return &firmware.UnavailableError{Err: refusal}
	}
	return refusal
}

const (
	followStep  = 500 * time.Millisecond // between two looks at how far the agent is
	followLimit = time.Minute            // for an agent that says nothing
)

// follow waits until what was ordered is armed, or over.
func follow(ctx context.Context, conf *config.Loaded, m *meter) (*agent.UpdateSummary, error) {
	look := time.NewTicker(followStep)
	defer look.Stop()
	for heard := time.Now(); ; {
		s, ok := ask(ctx, conf, api.Status, "/v1/status", statusPatience, func(s agent.Status) string { return s.Folder }, io.Discard)
		if ok {
			heard = time.Now()
		}
		switch {
		case time.Since(heard) > followLimit:
			return nil, &firmware.UnavailableError{Err: errors.New("the agent has the order, and does not answer any more")}
		case ok && s.Update != nil && (s.Update.Phase == update.Armed || s.Update.Phase == update.Trial || s.Update.Phase == update.Settled):
			return s.Update, nil
		case ok && m != nil && s.Live.Update.Progress != nil:
			m.show("writing", s.Live.Update.Progress.Done, s.Live.Update.Progress.Total)
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w; the agent goes on: birthmark firmware status", context.Cause(ctx))
		}
	}
}

// outcome is why an update came to a bad end, if it did.
func outcome(s *agent.UpdateSummary) error {
	switch {
	case s.Phase != update.Settled || s.Outcome == update.Installed:
		return nil
	case s.Why == nil:
		return fmt.Errorf("the update to %s was %s", s.Version, s.Outcome)
	case s.Why.Stage != "":
		return &fota.Refusal{Stage: s.Why.Stage, Code: s.Why.Code, Err: errors.New(agent.Printable(s.Why.Reason))}
	}
	return fmt.Errorf("the update to %s has %s: %s", s.Version, s.Outcome, agent.Printable(s.Why.Reason))
}

// A firmwareReport is what `birthmark firmware status` prints.
type firmwareReport struct {
	Running  string               `json:"running,omitempty"`
	Update   *agent.UpdateSummary `json:"update,omitempty"` // the last one
	Progress *update.Progress     `json:"progress,omitempty"`
	Device   *fota.Status         `json:"device,omitempty"` // by the installer, which answers root only
}

func firmwareStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "say which firmware runs, and how its update is going", Args: cobra.NoArgs,
		Long: `Ask the agent that runs, as everybody may, or else read the state file. Root is told
what the installer finds, too: the floor, below which no security version is
installed, and what lies in the other slot.`,
		Example: `  birthmark firmware status
  birthmark firmware status --json | jq .update.phase
  sudo birthmark firmware status --json | jq .device.floor`,
	}
	file := configFlag(cmd)
	asJSON := cli.JSONFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		tellPlayed(cmd)
		conf, err := config.Load(config.Options{File: *file, Env: os.Environ()})
		if err != nil {
			return err
		}
		s, err := status(cmd.Context(), conf, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		r := firmwareReport{Update: s.Update}
		running, err := fota.Running(sysroot.FS())
		if err == nil {
			r.Running = running.String()
		}
		if s.Live != nil {
			r.Progress = s.Live.Update.Progress
		}
		if device, err := thisInstaller.Status(cmd.Context()); err == nil {
			r.Device = &device
		}
		if *asJSON {
			return cli.PrintJSON(cmd.OutOrStdout(), r)
		}
		return r.print(cmd.OutOrStdout())
	}
	return cmd
}

func (r firmwareReport) print(w io.Writer) error {
	var b strings.Builder
	line := func(name, text string) { fmt.Fprintf(&b, "%-9s %s\n", name, agent.Printable(text)) }
	if r.Running == "" {
		r.Running = "the image does not say which release it is"
	}
	line("runs", r.Running)
	if r.Device != nil {
		line("floor", fmt.Sprintf("security version %d", r.Device.Floor))
	}
	if r.Update == nil {
		line("update", "none so far")
	} else {
		line("update", r.Update.String())
		line("from", r.Update.From)
	}
	if p := r.Progress; p != nil {
		line("written", fmt.Sprintf("%d %%, %d of %d bytes, %d bytes a second", percent(p.Done, p.Total), p.Done, p.Total, p.Rate))
	}
	if r.Device != nil {
		for _, note := range r.Device.Notes {
			line("note", note)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
