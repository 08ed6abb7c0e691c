package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"birthmark/internal/agent/once"
	"birthmark/internal/cli"
	"birthmark/pkg/rot"
)

func enrollCommand() *cobra.Command {
	var o once.Options
	cmd := &cobra.Command{
		Use: "enroll", Short: "get one certificate for a key in the TPM, for factory scripts", Args: cobra.NoArgs,
		Long: `Make a key in the TPM, get a certificate for it over EST (RFC 7030) and write both
into a folder: cert.pem (leaf first, then chain), key.pem (wrapped by this TPM),
pub.pem. The agent's own state is neither read nor written.

Exit code 0: done. 1: refused, or the server or its answer does not verify. 3: pending
or unavailable. As long as a certificate may yet come, what is under way is kept in
pending/ below the folder, and the same command line goes on with it; nothing is left
of what the CA refused.`,
		Example: `  birthmark enroll --est-url https://est.example.com --anchors root.pem \
      --username dev-1 --password-file otp --subject CN=dev-1 --out /var/lib/factory/dev-1
  birthmark enroll --op reenroll --est-url https://est.example.com --anchors root.pem \
      --client-cert dev-1/cert.pem --client-key dev-1/key.pem --out dev-1
  birthmark enroll --op cacerts --est-url https://est.example.com --anchor-sha256 3f2a… --out ca`,
	}
	f := cmd.Flags()
	f.StringVar(&o.Server.URL, "est-url", "", "EST server, https://HOST[:PORT], with or without /.well-known/est")
	f.StringVar(&o.Server.Label, "label", "", "label of the CA at that server")
	f.StringVar(&o.Server.Anchors, "anchors", "", "PEM `file` with the root certificates that the server and the answer must chain to")
	f.StringVar(&o.Server.AnchorSHA256, "anchor-sha256", "", "SHA-256 of the root certificate, `hex`: without --anchors the root is fetched and must have it")
	f.StringVar(&o.Username, "username", "", "user name for HTTP Basic")
	f.StringVar(&o.Server.PasswordFile, "password-file", "", "`file` with the password, one line")
	f.StringVar(&o.ClientCert, "client-cert", "", "PEM `file` with the certificate to authenticate with, leaf first")
	f.StringVar(&o.ClientKey, "client-key", "", "PEM `file` with its key")
	f.StringVar(&o.TPM, "tpm", "/dev/tpmrm0", "`address` of the TPM: /dev/tpmrm0, unix:PATH or tcp:HOST:PORT")
	f.StringVar(&o.Op, "op", once.OpEnroll, "`operation`: enroll, reenroll, cacerts or csrattrs")
	f.StringVar(&o.Subject, "subject", "", "subject, for example \"CN=dev-1,O=Acme\"; derived from the TPM's EK when not given")
	f.StringVar((*string)(&o.Algorithm), "algorithm", string(rot.P256), "kind of key where the CA has no wish: P-256, P-384 or RSA-2048")
	f.BoolVar(&o.ReuseKey, "reuse-key", false, "reenroll: keep the key of --client-key")
	f.DurationVar(&o.MaxWait, "max-wait", 0, "how long to go on asking a CA that answers \"later\" or not at all")
	f.StringVar(&o.Out, "out", "", "`folder` for the result")
	asJSON := cli.JSONFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o.Progress = cmd.OutOrStdout()
		if *asJSON {
			o.Progress = io.Discard
		}
		result, err := once.Run(cmd.Context(), o)
		if err != nil {
			return err
		}
		if *asJSON {
			return cli.PrintJSON(cmd.OutOrStdout(), result)
		}
		for _, change := range result.Changes {
			fmt.Fprintln(cmd.OutOrStdout(), "accepted, though not asked for:", change)
		}
		if result.Serial != "" {
			fmt.Fprintf(cmd.OutOrStdout(), "certificate of %s, serial %s, until %s\n", result.Subject, result.Serial, result.NotAfter.Format("2006-01-02"))
		}
		for _, file := range result.Files {
			fmt.Fprintln(cmd.OutOrStdout(), "wrote", file)
		}
		return nil
	}
	return cmd
}
