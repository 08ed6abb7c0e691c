package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"birthmark/internal/agent/firmware"
	"birthmark/internal/cli"
	"birthmark/internal/config"
	"birthmark/pkg/fota"
)

func firmwareCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "firmware", Short: "verify and install firmware bundles", Args: cobra.NoArgs,
		Example: "  birthmark firmware verify release.raucb",
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(firmwareVerifyCommand(), firmwareInstallCommand(), firmwareStatusCommand())
	return cmd
}

func firmwareVerifyCommand() *cobra.Command {
	var o firmware.Options
	var running string
	cmd := &cobra.Command{
		Use: "verify FILE|URL", Short: "say whether a device would accept a bundle, and why not", Args: cobra.ExactArgs(1),
		Long: `Verify a bundle of rauc's as a device does before it installs it: who signed it and
whether he may, what exactly was signed, whether the device wants it, and then every
byte. Nothing is installed, and neither TPM nor root nor configuration is needed. A
URL (https) is read in ranges, and nothing of it is stored.

Whom to believe is in files, each by default the device's own: anchors.pem and
signing-cas.pem in /etc/birthmark/firmware or, where it is not there, in
/usr/lib/birthmark/firmware, and crls.pem in both. What a device knows of itself (--compatible,
--running-version, --floor, --slot) is compared if it is given.

Exit code 0: accepted. 1: refused, for the reason on standard error, "STAGE: REASON".
2: the command line, or a file that it names, is of no use. 3: the bundle cannot be read.`,
		Example: `  birthmark firmware verify release.raucb
  birthmark firmware verify release.raucb --anchors root.pem --signing-cas ca.pem --crls crls.pem \
      --compatible acme-gw --running-version 1.0.0+sv1 --floor 1 --slot rootfs=536870912
  birthmark firmware verify https://example.com/release.raucb --json | jq .manifest.version`,
	}
	f := cmd.Flags()
	f.StringVar(&o.Anchors, "anchors", "", "PEM `file` with the root certificates of the maker's code-signing CA")
	f.StringVar(&o.SigningCAs, "signing-cas", "", "PEM `file` with the CAs that may issue signers")
	f.StringVar(&o.CRLs, "crls", "", "`file` with the CRLs of all these CAs: PEM, or one in DER")
	f.DurationVar(&o.CRLGrace, "crl-grace", 0, "how long a CRL is good after its end")
	f.StringVar(&o.EKU, "eku", "codeSigning", "`purpose` that the signer's certificate must name: codeSigning or emailProtection")
	f.StringVar(&o.Policy.Compatible, "compatible", "", "`name` of the kind of device")
	f.StringVar(&running, "running-version", "", "`release` that runs on it, X.Y.Z+svN")
	f.Uint32Var(&o.Policy.Floor, "floor", 0, "lowest security `version` that it runs")
	f.StringToInt64Var(&o.Policy.Slots, "slot", nil, "class of slots that it has and the size of one, `NAME=BYTES`; may be repeated")
	f.BoolVar(&o.Policy.AllowPlain, "allow-plain", false, "accept format=plain, too, which is read twice")
	f.StringVar(&o.TLSAnchors, "tls-anchors", "", "PEM `file` with root certificates for the server of a URL, in place of the system's")
	f.StringVar(&o.ClientCert, "client-cert", "", "PEM `file` with the certificate to show that server, leaf first")
	f.StringVar(&o.ClientKey, "client-key", "", "PEM `file` with its key")
	f.Lookup("slot").DefValue = ""
	asJSON := cli.JSONFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		tellPlayed(cmd)
		if running != "" {
			var err error
			if o.Policy.Running, err = fota.ParseVersion(running); err != nil {
				return &config.Error{Msg: "--running-version: " + err.Error()}
			}
		}
		clear := func() {}
		if stderr, ok := cmd.ErrOrStderr().(*os.File); ok && !*asJSON && isTerminal(stderr) {
			m := meter{w: stderr}
			o.Progress, clear = m.show, m.clear
		}
		r, err := firmware.Verify(cmd.Context(), args[0], o)
		clear()
		switch {
		case r != nil && *asJSON:
			err = errors.Join(err, cli.PrintJSON(cmd.OutOrStdout(), r))
		case err == nil:
			err = r.Print(cmd.OutOrStdout())
		}
		return err
	}
	return cmd
}

// A meter shows on one line of a terminal how far something is.
type meter struct {
	w     io.Writer
	shown string
}

func (m *meter) show(step string, done, total int64) {
	line := fmt.Sprintf("%s: %d %%", step, percent(done, total))
	if line != m.shown {
		fmt.Fprint(m.w, "\r\x1b[K"+line)
		m.shown = line
	}
}

func (m *meter) clear() {
	if m.shown != "" {
		fmt.Fprint(m.w, "\r\x1b[K")
	}
}

// isTerminal reports whether somebody watches.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func percent(done, total int64) int64 {
	if total <= 0 {
		return 100
	}
	return int64(float64(done) / float64(total) * 100)
}
