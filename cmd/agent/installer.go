package main

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"birthmark/internal/cli"
	"birthmark/internal/installer"
	"birthmark/internal/version"
)

// The verbs that systemd starts on the root side. No setting changes what they do.

const (
	agentUser     = "birthmark"
	installerDoor = "installer.sock" // FileDescriptorName= of its socket unit
	installerIdle = 30 * time.Second
)

func installerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "installer", Short: "serve the root side of an update, at a socket from systemd", Args: cobra.NoArgs,
		Long: `Answer the agent's user and root at the socket that birthmark-installer.socket has
made, and end when nobody has come for 30 seconds. This version answers one request:
which version it is.`,
		Example: "  systemctl start birthmark-installer.socket",
	}
	asJSON := cmd.Flags().Bool("json", false, "write the log as JSON, a line an entry")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		log := slog.New(newLog(cmd.ErrOrStderr(), slog.LevelInfo, *asJSON))
		l, ok := givenSockets(log, installerDoor)[installerDoor].(*net.UnixListener)
		if !ok {
			return fmt.Errorf("cannot serve without the socket of birthmark-installer.socket: %w", os.ErrNotExist)
		}
		s := installer.Server{Version: version.String(), Idle: installerIdle, Log: log}
		uid, err := uidOf(agentUser)
		if err != nil {
			log.Warn("nobody but root may ask", "err", err)
		} else {
			s.Users = append(s.Users, uid)
		}
		return s.Serve(cmd.Context(), l)
	}
	return cmd
}

func uidOf(name string) (uint32, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	return uint32(uid), err
}

func healthCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "health", Short: "say whether this boot is a good one", Args: cobra.NoArgs,
		Long: `Stand in the way of boot-complete.target while new firmware is on trial. This version
installs no firmware, so no boot is a trial, and all are good.`,
		Example: "  birthmark health && echo good",
	}
	asJSON := cli.JSONFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *asJSON {
			return cli.PrintJSON(cmd.OutOrStdout(), struct {
				Trial bool `json:"trial"`
			}{})
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "no firmware is on trial; this boot is a good one")
		return err
	}
	return cmd
}
