package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"birthmark/internal/agent"
	"birthmark/internal/agent/api"
	"birthmark/internal/agent/update"
	"birthmark/internal/cli"
	"birthmark/internal/config"
	"birthmark/internal/sysroot"
)

// checksFolder is a variable for tests.
var checksFolder = sysroot.Path("/etc/birthmark/health.d")

const (
	checkLimit  = time.Minute
	checkOutput = 2 << 10 // bytes of it that are kept
	// healthLimit is less than what its unit gives it, and a release on trial has.
	healthLimit = 4*time.Minute + 45*time.Second
	healthStep  = time.Second
)

func healthCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "health", Short: "say whether this boot is a good one", Args: cobra.NoArgs,
		Long: `Stand in the way of boot-complete.target while new firmware is on trial. If the agent
says that there is no trial, or there is no agent, this boot is a good one.

In a trial the executable files in ` + checksFolder + ` are run, one after another,
in the order of their names, each for at most a minute. A name that begins with a dot,
or ends with "~", is passed over. The first that does not end with exit code 0 makes
the boot a bad one; what it wrote is the reason that the owner is told. The agent is
told either way: it lets the release stay, or restarts the device.

Exit code 0: a good boot. 1: a bad one. 3: the agent does not say, or may not be told.`,
		Example: "  birthmark health && echo good",
	}
	file := configFlag(cmd)
	asJSON := cli.JSONFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		log := slog.New(newLog(cmd.ErrOrStderr(), slog.LevelInfo, false))
		sysroot.Tell(log)
		doors := config.Default().Doors.Folder
		if conf, err := config.Load(config.Options{File: *file, Env: os.Environ()}); err == nil {
			doors = conf.Config.Doors.Folder
		} else { // the agent says more about it
			log.Warn("the configuration is not used", "err", err)
		}
		ctx, cancel := context.WithTimeoutCause(cmd.Context(), healthLimit, fmt.Errorf("the boot could not be judged within %v", healthLimit))
		defer cancel()
		trial, err := onTrial(ctx, doors)
		if err != nil {
			return err
		}
		verdict := ""
		if trial {
			if err := runChecks(ctx, checksFolder, log); err != nil {
				verdict = err.Error()
			}
			if _, err := api.Post(ctx, doors, "/v1/firmware/verdict", api.Verdict{Unwell: verdict}); err != nil {
				return notTaken(err)
			}
		}
		if *asJSON {
			err = cli.PrintJSON(cmd.OutOrStdout(), struct {
				Trial  bool   `json:"trial"`
				Unwell string `json:"unwell,omitempty"`
			}{trial, verdict})
		} else if verdict == "" {
			said := "no firmware is on trial; this boot is a good one"
			if trial {
				said = "all checks of the firmware on trial are well"
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), said)
		}
		if verdict != "" {
			err = errors.Join(err, errors.New(verdict))
		}
		return err
	}
	return cmd
}

// onTrial asks the agent whether firmware is on trial, and waits until it knows. Where no
// agent is, there is none that could have begun one.
func onTrial(ctx context.Context, folder string) (bool, error) {
	look := time.NewTicker(healthStep)
	defer look.Stop()
	for {
		asking, cancel := context.WithTimeout(ctx, statusPatience)
		text, err := api.Get(asking, folder, api.Status, "/v1/status")
		cancel()
		var s agent.Status
		if err == nil {
			err = json.Unmarshal(text, &s)
		}
		switch {
		case errors.Is(err, api.ErrNobody):
			return false, nil
		case err == nil && s.Live != nil && s.Live.Update.Looked:
			return s.Update != nil && s.Update.Phase == update.Trial, nil
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return false, errors.Join(context.Cause(ctx), err)
		}
	}
}

// runChecks runs the executable files of a folder, and says which was not well, and why.
// Without a folder there is nothing to check.
func runChecks(ctx context.Context, folder string, log *slog.Logger) error {
	entries, err := os.ReadDir(folder) // in the order of their names
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(folder, e.Name())
		if strings.HasPrefix(e.Name(), ".") || strings.HasSuffix(e.Name(), "~") {
			continue
		}
		info, err := os.Stat(path)
		switch {
		case err != nil:
			return err
		case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
			log.Warn("not executable, and passed over", "path", path)
			continue
		}
		began := time.Now()
		if err := runCheck(ctx, path); err != nil {
			return fmt.Errorf("check %s: %w", e.Name(), err)
		}
		log.Info("a check is well", "path", path, "took", time.Since(began).Round(time.Millisecond))
	}
	return nil
}

// runCheck runs a program in a process group of its own, all of which ends with it.
func runCheck(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, checkLimit, fmt.Errorf("it took more than %v", checkLimit))
	defer cancel()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	p, err := os.StartProcess(path, []string{path}, &os.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []*os.File{null, in, in}, Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	in.Close()
	if err != nil {
		return err
	}
	end := func() { _ = syscall.Kill(-p.Pid, syscall.SIGKILL) } // it may be over
	var said []byte
	var reading sync.WaitGroup
	reading.Go(func() { said = readHead(out, checkOutput) })
	stop := context.AfterFunc(ctx, end)
	state, err := p.Wait()
	stop()
	end() // what it has left behind, and what keeps the pipe open
	reading.Wait()
	text := strings.Join(strings.Fields(agent.Printable(string(said))), " ")
	switch {
	case err != nil:
		return err
	case state.Success():
		return nil
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	default:
		err = errors.New(state.String())
	}
	if text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return err
}

// readHead reads all that there is, and keeps the first n bytes.
func readHead(r io.Reader, n int64) []byte {
	head, _ := io.ReadAll(io.LimitReader(r, n)) // what there is, counts
	_, _ = io.Copy(io.Discard, r)
	return head
}
