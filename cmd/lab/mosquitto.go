package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"birthmark/internal/cli"
	"birthmark/internal/lab"
)

func mosquittoCommand() *cobra.Command {
	var dir string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "mosquitto", Short: "write a configuration for mosquitto 2 as the lab's broker", Args: cobra.NoArgs,
		Long: `Write DIR/mosquitto/mosquitto.conf and acl. With them mosquitto 2 is the broker of the
lab: on the port that devices of the lab are configured with, with the same clients
and the same rules as the lab's own broker, which is then left out by
birthmark-lab up --no-broker. The lab may be up or not, or yet to be made.

The broker's certificate is good for at least 30 days from then on. Run it again, and
send mosquitto a SIGHUP, before they are over.`,
		Example: "  birthmark-lab mosquitto --dir ~/lab\n  mosquitto -c ~/lab/mosquitto/mosquitto.conf",
	}
	dirFlag(cmd, &dir)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		conf, url, err := lab.Mosquitto(cmd.Context(), dir)
		if err != nil {
			return err
		}
		if asJSON {
			return cli.PrintJSON(cmd.OutOrStdout(), struct {
				Config string `json:"config"`
				Broker string `json:"broker"`
			}{conf, url})
		}
		place := filepath.Dir(conf)
		_, err = fmt.Fprintf(cmd.OutOrStdout(), `Wrote mosquitto.conf and acl in %s. The broker will be at %s.

Start it, with the CAs beside it:

  mosquitto -c %s
  birthmark-lab up --dir %s --no-broker

Hear what devices say:

  %s
`, place, url, quote(conf), quote(filepath.Dir(place)), subscribeCommand(url, filepath.Join(filepath.Dir(place), "operator")))
		return err
	}
	return cmd
}
