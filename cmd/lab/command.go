package main

import (
	"github.com/spf13/cobra"

	"birthmark/internal/cli"
)

// command is the whole command line.
func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "birthmark-lab",
		Short: "everything that is not on the device, on one machine",
		Long: `Birthmark-lab is a maker's CA, an owner's CA and an MQTT broker in one folder, on the
loopback interface: for demonstrations, tests and small fleets.

Exit codes: 0 done; 1 refused or does not verify; 2 usage or configuration;
3 something needed (a port, a folder, permission) is not available.`,
	}
	root.AddCommand(upCommand(), demoCommand(), passwordCommand(), mosquittoCommand(), signCommand(), cli.Version(root.Name()))
	return root
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
