package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"birthmark/internal/agent/firmware"
	"birthmark/internal/installer"
	"birthmark/internal/sysroot"
	"birthmark/internal/version"
	"birthmark/pkg/clock"
	"birthmark/pkg/fota"
	"birthmark/pkg/fota/rauc"
	"birthmark/pkg/fota/sdboot"
	"birthmark/pkg/rot"
	"birthmark/pkg/rot/tpm"
)

// The verbs that systemd starts on the root side. No setting changes what they do.

const (
	agentUser      = "birthmark"
	installerDoor  = "installer.sock" // FileDescriptorName= of its socket unit
	installerIdle  = 30 * time.Second
	installerState = "/var/lib/birthmark-installer" // if systemd gives no StateDirectory=
	installerTPM   = "/dev/tpmrm0"                  // shared with the agent: the kernel keeps them apart
)

func installerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "installer", Short: "serve the root side of an update, at a socket from systemd", Args: cobra.NoArgs,
		Long: `Answer the agent's user and root at the socket that birthmark-installer.socket has
made, and end when nobody has come for 30 seconds. It verifies firmware by the files
anchors.pem, signing-cas.pem and crls.pem in /etc/birthmark/firmware or
/usr/lib/birthmark/firmware, writes it to the slot that does not run, and says what
starts next. The lowest security version that it installs is a counter in the TPM,
/dev/tpmrm0, which goes up to what runs when that was found good.`,
		Example: "  systemctl start birthmark-installer.socket",
	}
	asJSON := cmd.Flags().Bool("json", false, "write the log as JSON, a line an entry")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		log := slog.New(newLog(cmd.ErrOrStderr(), slog.LevelInfo, *asJSON))
		sysroot.Tell(log)
		l, ok := givenSockets(log, installerDoor)[installerDoor].(*net.UnixListener)
		if !ok {
			return fmt.Errorf("cannot serve without the socket of birthmark-installer.socket: %w", os.ErrNotExist)
		}
		state := cmp.Or(os.Getenv("STATE_DIRECTORY"), installerState)
		boot, err := bootLoader(sysroot.Dir(), state)
		if err != nil {
			log.Warn("no firmware can be installed", "err", err)
		}
		s := installer.Server{Version: version.String(), Idle: installerIdle, Log: log, Boot: boot, Chip: openChip(log),
			Trust: firmware.Folders, Grace: firmware.CRLGrace, Clock: clock.System(), State: state}
		s.Users = []uint32{uint32(os.Getuid())} // root's, on a device
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

// openChip opens the TPM. To recognise one that holds the floor takes no authorization
// value; the counters are made with the owner's, which is taken to be empty.
func openChip(log *slog.Logger) func(context.Context, rot.Identity) (installer.Chip, error) {
	return func(ctx context.Context, known rot.Identity) (installer.Chip, error) {
		r, err := tpm.Open(ctx, tpm.Config{Address: sysroot.Device(installerTPM), Known: known, Log: log})
		if err != nil {
			return nil, err // and no Chip that is a nil *tpm.Root
		}
		return r, nil
	}
}

// bootTries are the starts that a release gets to be found good.
const bootTries = 3

// bootLoader is what the device at root starts by, RAUC if it is set up; an error if this
// version cannot handle it.
func bootLoader(root, state string) (fota.Installer, error) {
	if rauc.Has(root) {
		return rauc.Installer{Root: root, Bus: systemBus, State: filepath.Join(state, "rauc")}, nil
	}
	if _, err := os.Stat(filepath.Join(root, "sys/firmware/efi")); err != nil {
		return nil, fmt.Errorf("there is neither systemd-boot, on UEFI, nor RAUC: %w", err)
	}
	return sdboot.Installer{Root: root, Tries: bootTries}, nil
}

func uidOf(name string) (uint32, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	return uint32(uid), err
}
