package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"birthmark/internal/cli"
	"birthmark/internal/lab/sign"
	"birthmark/pkg/fota"
	"birthmark/pkg/fota/permit"
)

func signPermitCommand() *cobra.Command {
	var dir, compatible, device, version, out string
	var days int
	var by sign.Signer
	cmd := &cobra.Command{
		Use: "permit", Short: "sign an owner's permit for an older release, and verify it as a device does", Args: cobra.NoArgs,
		Long: `Sign an owner's permit: a device that has it takes the one release that it names,
though it is older than what runs. Nothing makes a device go below its floor. openssl
signs (Debian's package openssl).

The signer is the owner of the lab in --dir, whose CA is made at the first time. A device
is given DIR/permits/anchors.pem, signing-cas.pem and crls.pem, in the folder owner of the
one where it has the maker's. Whoever has a CA names files in place of --dir, as for
sign firmware.`,
		Example: `  birthmark-lab sign permit --dir ~/lab --compatible acme-gw --version 1.0.0+sv2 --days 7 --out permit.pem
  birthmark firmware install --permit permit.pem acme-gw-1.0.0.raucb   # on the device, as root`,
	}
	f := cmd.Flags()
	signerFlags(cmd, &dir, &by)
	f.StringVar(&compatible, "compatible", "", "the `devices` that the release is for")
	f.StringVar(&device, "device", permit.Any, "one of them: the SHA-256 of its TPM's endorsement `key`, in hex")
	f.StringVar(&version, "version", "", "`X.Y.Z+svN`, of the release")
	f.IntVar(&days, "days", 7, "how long it is good")
	f.StringVar(&out, "out", "", "the `file` to write")
	asJSON := cli.JSONFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkSigner(dir, by); err != nil {
			return err
		}
		v, err := fota.ParseVersion(version)
		switch {
		case err != nil:
			return usageError(fmt.Sprintf("--version: %v", err))
		case days < 1:
			return usageError("--days is less than one")
		case out == "":
			return usageError("--out is missing: name the file to write, --out FILE")
		}
		if dir != "" {
			if by, err = sign.Owner(dir); err != nil {
				return err
			}
		}
		p := permit.New(compatible, device, v, time.Now().AddDate(0, 0, days))
		if err := sign.Permit(cmd.Context(), p, by, out); err != nil {
			return err
		}
		if *asJSON {
			return cli.PrintJSON(cmd.OutOrStdout(), p)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), `Wrote %s. Until %s, %s takes %s with it, if its owner's files are

  %s
  %s
  %s
`, out, p.Until.Format(time.DateOnly), p.Compatible, p.Version, by.Anchors, by.SigningCAs, by.CRLs)
		return err
	}
	return cmd
}
