package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"birthmark/internal/lab/demo"
)

func demoCommand() *cobra.Command {
	var o demo.Options
	cmd := &cobra.Command{
		Use: "demo", Short: "show a device being born, enrolling, speaking and updated", Args: cobra.NoArgs,
		Long: `Make a TPM in software, bring up a maker's CA, an owner's CA and a broker, start the
real agent, and print what happens from its first boot to its first telemetry. Then
update its firmware, which rauc bundle signs and the real installer writes, in slots
that are files, behind a boot loader that is played; offer it bundles that it must not
take, and a release that does not work. In the end, try three more things that must
fail. All of it is in one temporary folder, which is removed at the end, and on free
ports of the loopback interface.`,
		Example: "  birthmark-lab demo\n  birthmark-lab demo --oneshot --json demo.json",
	}
	f := cmd.Flags()
	f.StringVar(&o.Agent, "agent", "", "the agent's `binary`; birthmark beside this one when not given")
	f.BoolVar(&o.Once, "oneshot", false, "end by itself, with exit code 0 or 1")
	f.StringVar(&o.JSON, "json", "", "write what was shown to this `file`")
	f.StringVar(&o.BrokerLog, "broker-log", "", "keep the broker's own log as this `file`")
	f.StringVar(&o.Nonce, "nonce", "", "`text` that the device puts into its telemetry, as label \"nonce\"")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if o.Agent == "" {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			o.Agent = filepath.Join(filepath.Dir(self), "birthmark")
		}
		o.Out = cmd.OutOrStdout()
		return demo.Run(cmd.Context(), o)
	}
	return cmd
}
