package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"birthmark/internal/cli"
	"birthmark/internal/lab"
)

func passwordCommand() *cobra.Command {
	var dir, whose string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "password ID", Short: "make a one-time password for a device", Args: cobra.ExactArgs(1),
		Long: `Make a password with which the device ID gets its first certificate, at the maker's CA
or at the owner's, and print it. It is good for one key, the first that it is used
for. One that the device had before is void. The lab may be up or not.`,
		Example: "  birthmark-lab password --dir ~/lab --ca maker dev-1 > ~/lab/device/password",
	}
	dirFlag(cmd, &dir)
	cmd.Flags().StringVar(&whose, "ca", "", "whose `CA`: maker or owner")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if whose != lab.Maker && whose != lab.Owner {
			return usageError(fmt.Sprintf("--ca is %q: choose maker or owner", whose))
		}
		password, err := lab.NewPassword(dir, whose, args[0])
		if err != nil {
			return err
		}
		if asJSON {
			return cli.PrintJSON(cmd.OutOrStdout(), struct {
				CA       string `json:"ca"`
				ID       string `json:"id"`
				Password string `json:"password"`
			}{whose, args[0], password})
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), password)
		return err
	}
	return cmd
}
