// Birthmark gives a device its identity and keeps it: it makes keys inside the
// TPM, enrols over EST and talks to its owner over mutual-TLS MQTT.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"

	"birthmark/internal/agent"
	"birthmark/internal/agent/api"
	"birthmark/internal/agent/doctor"
	"birthmark/internal/agent/firmware"
	"birthmark/internal/agent/once"
	"birthmark/internal/cli"
	"birthmark/internal/config"
	"birthmark/internal/sysroot"
	"birthmark/pkg/enroll"
	"birthmark/pkg/fota"
	"birthmark/pkg/rot"
	"birthmark/pkg/store"
)

func main() {
	// It waits for the TPM, the disk and the network, never for a second processor. With
	// one, no thread is made and woken for what can be done one thing after another;
	// GOMAXPROCS in the environment says otherwise. See docs/decisions/005.
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
	if err := sysroot.Check(); err != nil {
		fmt.Fprintln(os.Stderr, "birthmark:", err)
		os.Exit(cli.Usage)
	}
	cli.Main(cli.Program{Command: command(), Hint: hint, ExitCode: exitCode})
}

// tellPlayed says that what a verb finds is not of the device that it runs on.
func tellPlayed(cmd *cobra.Command) {
	sysroot.Tell(slog.New(newLog(cmd.ErrOrStderr(), slog.LevelInfo, false)))
}

func hint(err error) string {
	return cmp.Or(firmware.Hint(err), agent.Hint(err))
}

func exitCode(err error) int {
	var usage *once.UsageError
	var conf *config.Error
	var pending *enroll.PendingError
	var unavailable *enroll.UnavailableError
	var failed *doctor.FailedError
	var refusal *fota.Refusal
	var unread *firmware.UnavailableError
	switch {
	case errors.As(err, &failed):
		if failed.Unreachable {
			return cli.Unavailable
		}
		return cli.Refused
	case errors.As(err, &refusal):
		return cli.Refused
	case errors.As(err, &usage), errors.As(err, &conf):
		return cli.Usage
	case errors.As(err, &pending), errors.As(err, &unavailable), errors.As(err, &unread),
		errors.Is(err, rot.ErrUnavailable), errors.Is(err, rot.ErrBusy), errors.Is(err, rot.ErrLockout),
		errors.Is(err, store.ErrLocked), errors.Is(err, store.ErrFull),
		errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EIO),
		errors.Is(err, os.ErrPermission), errors.Is(err, os.ErrNotExist),
		errors.Is(err, api.ErrNobody), errors.Is(err, context.Canceled):
		return cli.Unavailable
	}
	return cli.Refused
}
