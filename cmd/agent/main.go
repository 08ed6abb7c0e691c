// Birthmark gives a device its identity and keeps it: it makes keys inside the
// TPM, enrols over EST and talks to its owner over mutual-TLS MQTT.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"unicode"

	"birthmark/internal/agent"
	"birthmark/internal/agent/doctor"
	"birthmark/internal/agent/once"
	"birthmark/internal/config"
	"birthmark/pkg/enroll"
	"birthmark/pkg/rot"
	"birthmark/pkg/store"
)

// Exit codes, the same for every verb.
const (
	exitDone        = 0
	exitRefused     = 1 // refused, or does not verify
	exitUsage       = 2 // usage or configuration
	exitUnavailable = 3 // something needed is not there, or still pending
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:]))
}

func run(ctx context.Context, args []string) int {
	started := false
	cmd := command(&started)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	lines := []error{err}
	var found mistakes
	if errors.As(err, &found) {
		lines = found
	}
	for _, err := range lines {
		fmt.Fprintln(os.Stderr, "birthmark: "+oneLine(err))
	}
	if !started { // the command line itself was not understood
		return exitUsage
	}
	return exitCode(err)
}

// oneLine is err with its next step, without anything that a server or a file
// could do to a terminal.
func oneLine(err error) string {
	text := err.Error()
	if hint := agent.Hint(err); hint != "" {
		text += " (" + hint + ")"
	}
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
	return strings.Join(strings.Fields(text), " ")
}

func exitCode(err error) int {
	var usage *once.UsageError
	var conf *config.Error
	var pending *enroll.PendingError
	var unavailable *enroll.UnavailableError
	var failed *doctor.FailedError
	switch {
	case errors.As(err, &failed):
		if failed.Unreachable {
			return exitUnavailable
		}
		return exitRefused
	case errors.As(err, &usage), errors.As(err, &conf):
		return exitUsage
	case errors.As(err, &pending), errors.As(err, &unavailable),
		errors.Is(err, rot.ErrUnavailable), errors.Is(err, rot.ErrBusy), errors.Is(err, rot.ErrLockout),
		errors.Is(err, store.ErrLocked), errors.Is(err, store.ErrFull),
		errors.Is(err, os.ErrPermission), errors.Is(err, os.ErrNotExist),
		errors.Is(err, context.Canceled):
		return exitUnavailable
	}
	return exitRefused
}
