package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"birthmark/internal/cli"
	"birthmark/internal/lab"
)

func upCommand() *cobra.Command {
	o := lab.Options{}
	var asJSON bool
	cmd := &cobra.Command{
		Use: "up", Short: "run the CAs and the broker, until Ctrl-C", Args: cobra.NoArgs,
		Long: `Run a maker's CA and an owner's, each behind its EST server, and the owner's MQTT
broker, until SIGINT or SIGTERM. All of them listen on 127.0.0.1 only.

The folder is made at the first start; the next one goes on where the last stopped,
on the same ports. What the CAs issue and refuse is told on standard error, what
clients of the broker do in DIR/broker.log.`,
		Example: "  birthmark-lab up --dir ~/lab\n  birthmark-lab up --dir ~/lab --no-broker   # the broker is mosquitto, see birthmark-lab mosquitto",
	}
	dirFlag(cmd, &o.Dir)
	cmd.Flags().BoolVar(&o.NoBroker, "no-broker", false, "leave the broker's port free, for mosquitto")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the addresses as JSON, and the log, too, a line an entry")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
		if asJSON {
			o.Log = slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), nil))
		}
		l, err := lab.Up(cmd.Context(), o)
		if err != nil {
			return err
		}
		if err := printLab(cmd.OutOrStdout(), l, o.NoBroker, asJSON); err != nil {
			return errors.Join(err, l.Close())
		}
		<-cmd.Context().Done()
		o.Log.Info("stopping")
		return l.Close()
	}
	return cmd
}

// printLab tells where everything is, and what to do next.
func printLab(w io.Writer, l *lab.Lab, noBroker, asJSON bool) error {
	file := func(elem ...string) string { return filepath.Join(append([]string{l.Dir()}, elem...)...) }
	if asJSON {
		return cli.PrintJSON(w, struct {
			Dir      string `json:"dir"`
			Maker    string `json:"maker"`
			Owner    string `json:"owner"`
			Broker   string `json:"broker"`
			NoBroker bool   `json:"no_broker"`
			Device   string `json:"device"`
			Operator string `json:"operator"`
		}{l.Dir(), l.MakerURL(), l.OwnerURL(), l.BrokerURL(), noBroker, file("device", "birthmark.toml"), file("operator")})
	}
	broker := ""
	if noBroker {
		broker = "   nobody yet: birthmark-lab mosquitto --dir " + quote(l.Dir())
	}
	_, err := fmt.Fprintf(w, `The lab is up. Ctrl-C stops it; the next start goes on from there.

  maker's EST server  %s
  owner's EST server  %s
  owner's broker      %s%s

A device, with its TPM at /dev/tpmrm0:

  birthmark-lab password --dir %s --ca maker dev-1 > %s
  BIRTHMARK_DEVICE__ID=dev-1 birthmark run --config %s

Hear what devices say:

  %s

`, l.MakerURL(), l.OwnerURL(), l.BrokerURL(), broker,
		quote(l.Dir()), quote(file("device", "password")), quote(file("device", "birthmark.toml")),
		subscribeCommand(l.BrokerURL(), file("operator")))
	return err
}

// subscribeCommand is a command line that hears everything at a broker, with the
// operator's certificate in a folder.
func subscribeCommand(brokerURL, operator string) string {
	// The lab made both.
	host, port, _ := net.SplitHostPort(strings.TrimPrefix(brokerURL, "mqtts://"))
	file := func(name string) string { return quote(filepath.Join(operator, name)) }
	return fmt.Sprintf("mosquitto_sub -h %s -p %s -t 'birthmark/v1/#' -v \\\n      --cafile %s \\\n      --cert %s \\\n      --key %s",
		host, port, file("ca.pem"), file("cert.pem"), file("key.pem"))
}

// quote is a path as a shell reads it.
func quote(path string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+,:@%", r)
	}
	if path != "" && strings.IndexFunc(path, func(r rune) bool { return !plain(r) }) < 0 {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
