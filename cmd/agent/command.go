package main

import (
	"crypto/fips140"
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
		Use:   "birthmark",
		Short: "gives a device its identity and keeps it",
		Long: `Birthmark makes a device's keys inside its TPM, enrols them over EST and keeps
the device connected to its owner over mutual-TLS MQTT.

Exit codes: 0 done; 1 refused or does not verify; 2 usage or configuration;
3 something needed (TPM, network, permission) is not available, or a request is pending.`,
		SilenceUsage: true, SilenceErrors: true,
		PersistentPreRun: func(*cobra.Command, []string) { *started = true },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(runCommand(), enrollCommand(), statusCommand(), doctorCommand(), diagCommand(), configCommand(), versionCommand())
	return root
}

func versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "version", Short: "print the version", Args: cobra.NoArgs,
		Example: "  birthmark version --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := thisVersion()
			if asJSON {
				return printJSON(cmd.OutOrStdout(), v)
			}
			line := fmt.Sprintf("birthmark %s, built %s, %s, %s", v.Version, v.Built, v.Go, v.Arch)
			if v.FIPS != "" {
				line += ", FIPS 140-3 module " + v.FIPS
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), line)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// A version says what this binary is.
type version struct {
	Version string `json:"version"`
	Built   string `json:"built"`
	Go      string `json:"go"`
	Arch    string `json:"arch"`
	FIPS    string `json:"fips,omitempty"` // version of Go's FIPS 140-3 module, while in its mode
}

func thisVersion() version {
	return version{agent.Version, clock.Build().UTC().Format("2006-01-02T15:04:05Z"), runtime.Version(), runtime.GOARCH, fips()}
}

func fips() string {
	if !fips140.Enabled() {
		return ""
	}
	return fips140.Version()
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
