package main

import (
	"github.com/spf13/cobra"

	"birthmark/internal/cli"
)

// extra are verbs of builds that are not shipped: pages.go.
var extra []func() *cobra.Command

// command is the whole command line.
func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "birthmark",
		Short: "gives a device its identity and keeps it",
		Long: `Birthmark makes a device's keys inside its TPM, enrols them over EST and keeps
the device connected to its owner over mutual-TLS MQTT.

Exit codes: 0 done; 1 refused or does not verify; 2 usage or configuration;
3 something needed (TPM, network, permission) is not available, or a request is pending.`,
	}
	root.AddCommand(runCommand(), installerCommand(), healthCommand(), enrollCommand(), statusCommand(), doctorCommand(), diagCommand(), firmwareCommand(), configCommand(), cli.Version(root.Name()))
	for _, verb := range extra {
		root.AddCommand(verb())
	}
	return root
}
