package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"birthmark/internal/agent/api"
	"birthmark/internal/agent/diag"
	"birthmark/internal/cli"
	"birthmark/internal/config"
	"birthmark/internal/version"
)

// The verbs that look at a device. They need no complete configuration, since they
// are asked when something is wrong, and by people who may not read all of it.

func statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "say where this device stands in its life, and how it is going", Args: cobra.NoArgs,
		Long: `Ask the agent that runs, as everybody may, or else read the state file.`,
		Example: `  birthmark status
  birthmark status --json | jq .live.broker.up`,
	}
	file := configFlag(cmd)
	asJSON := cli.JSONFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		conf, err := config.Load(config.Options{File: *file, Env: os.Environ()})
		if err != nil {
			return err
		}
		s, err := status(cmd.Context(), conf, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		if *asJSON {
			return cli.PrintJSON(cmd.OutOrStdout(), s)
		}
		return s.Print(cmd.OutOrStdout())
	}
	return cmd
}

func doctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "doctor", Short: "look for what is wrong, and say what to do", Args: cobra.NoArgs,
		Long: `Look at TPM, clock, disk, configuration, state, certificates, EST servers and
brokers, and print a line for each. Servers are asked without any credential. An
agent that runs examines itself, for root and members of group birthmark-admin.

Exit code 0: all is well, or works with warnings. 1: something failed. 3: all that
failed did because somebody did not answer. It takes 15 seconds at most, and 20 beside an
agent that hangs.`,
		Example: `  birthmark doctor
  birthmark doctor --json | jq '.checks[] | select(.result != "ok")'`,
	}
	file := configFlag(cmd)
	asJSON := cli.JSONFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		tellPlayed(cmd)
		conf, err := config.Load(config.Options{File: *file, Env: os.Environ()})
		if err != nil {
			return err
		}
		r := examine(cmd.Context(), conf, cmd.ErrOrStderr())
		print := r.Print
		if *asJSON {
			print = func(w io.Writer) error { return cli.PrintJSON(w, r) }
		}
		return errors.Join(print(cmd.OutOrStdout()), r.Err())
	}
	return cmd
}

func diagCommand() *cobra.Command {
	var out string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "diag", Short: "gather what somebody who helps needs to see, in one file", Args: cobra.NoArgs,
		Long: `Write a .tar.gz with version, OS release, configuration and origins, status, the
doctor's report, metrics and the end of the audit log. No password, no key and no
request is in it. What could not be had stands in its missing.txt.`,
		Example: `  birthmark diag
  birthmark diag --out - | ssh support@example.com 'cat > device-7.tar.gz'`,
	}
	file := configFlag(cmd)
	cmd.Flags().StringVar(&out, "out", "", "new `file`, or - for standard output; birthmark-diag-TIME.tar.gz when not given")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the name of the file as JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		conf, err := config.Load(config.Options{File: *file, Env: os.Environ()})
		if err != nil {
			return err
		}
		now := time.Now()
		if out == "" {
			out = "birthmark-diag-" + now.UTC().Format("20060102T150405Z") + ".tar.gz"
		}
		parts := diagParts(cmd, conf, now)
		if out == "-" {
			return diag.Write(cmd.OutOrStdout(), now, parts...)
		}
		f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		if err := errors.Join(diag.Write(f, now, parts...), f.Close()); err != nil {
			return errors.Join(err, os.Remove(out))
		}
		if asJSON {
			return cli.PrintJSON(cmd.OutOrStdout(), struct {
				File string `json:"file"`
			}{out})
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), "wrote", out)
		return err
	}
	return cmd
}

// diagParts are the parts of a bundle. Nothing is noted on a terminal: what is missing
// is said in the bundle.
func diagParts(cmd *cobra.Command, conf *config.Loaded, now time.Time) []diag.Part {
	ctx := cmd.Context()
	return []diag.Part{
		diag.JSON("version.json", func() (any, error) {
			kernel, err := config.ReadFile("/proc/sys/kernel/osrelease")
			return struct {
				Version  version.Info `json:"version"`
				Kernel   string       `json:"kernel"`
				Gathered time.Time    `json:"gathered"`
			}{version.This(), strings.TrimSpace(string(kernel)), now.UTC()}, err
		}),
		diag.System(),
		diag.Configuration(conf),
		diag.JSON("status.json", func() (any, error) { return status(ctx, conf, io.Discard) }),
		diag.JSON("doctor.json", func() (any, error) { return examine(ctx, conf, io.Discard), nil }),
		{Name: "metrics.txt", Read: func() ([]byte, error) {
			return api.Get(ctx, conf.Config.Doors.Folder, api.Control, "/v1/metrics")
		}},
		diag.Audit(conf.Config.Device.State),
	}
}
