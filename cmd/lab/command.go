package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"

	"birthmark/internal/agent"
	"birthmark/pkg/clock"
)

// command is the whole command line. It sets started once a verb runs: errors
// before that are about the command line itself.
func command(started *bool) *cobra.Command {
	root := &cobra.Command{
		Use:   "birthmark-lab",
		Short: "everything that is not on the device, on one machine",
		Long: `Birthmark-lab is a maker's CA, an owner's CA and an MQTT broker in one folder, on the
loopback interface: for demonstrations, tests and small fleets.

Exit codes: 0 done; 1 refused or does not verify; 2 usage or configuration;
3 something needed (a port, a folder, permission) is not available.`,
		SilenceUsage: true, SilenceErrors: true,
		PersistentPreRun: func(*cobra.Command, []string) { *started = true },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(upCommand(), demoCommand(), passwordCommand(), mosquittoCommand(), versionCommand())
	return root
}

func versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "version", Short: "print the version", Args: cobra.NoArgs,
		Example: "  birthmark-lab version --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := struct {
				Version string `json:"version"`
				Built   string `json:"built"`
				Go      string `json:"go"`
				Arch    string `json:"arch"`
			}{agent.Version, clock.Build().UTC().Format("2006-01-02T15:04:05Z"), runtime.Version(), runtime.GOARCH}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), v)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "birthmark-lab %s, built %s, %s, %s\n", v.Version, v.Built, v.Go, v.Arch)
			return err
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func jsonFlag(cmd *cobra.Command, asJSON *bool) {
	cmd.Flags().BoolVar(asJSON, "json", false, "print JSON")
}

// dirFlag adds --dir to a verb that works on a lab.
func dirFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "dir", "", "`folder` of the lab")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if *dir == "" {
			return usageError("--dir is missing: name the folder of the lab, --dir DIR")
		}
		return nil
	}
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
