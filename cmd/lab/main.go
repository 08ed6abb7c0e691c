// Birthmark-lab is everything that is not on the device: a maker's CA, an owner's CA
// and a broker, for demonstrations, tests and small fleets.
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

	"birthmark/internal/lab"
	"birthmark/internal/lab/ca"
)

// Exit codes, the same for every verb, and the same as the device's.
const (
	exitDone        = 0
	exitRefused     = 1 // refused, or does not verify
	exitUsage       = 2 // usage or configuration
	exitUnavailable = 3 // something needed is not there
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop) // a second signal ends the process
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
	fmt.Fprintln(os.Stderr, "birthmark-lab: "+oneLine(err))
	if !started { // the command line itself was not understood
		return exitUsage
	}
	return exitCode(err)
}

// oneLine is err with its next step, without anything that could be done to a
// terminal.
func oneLine(err error) string {
	text := err.Error()
	if next := hint(err); next != "" {
		text += " (" + next + ")"
	}
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
	return strings.Join(strings.Fields(text), " ")
}

// hint is what to do about err, if anything general can be said.
func hint(err error) string {
	switch {
	case errors.Is(err, lab.ErrInUse):
		return "stop it, or name another folder with --dir"
	case errors.Is(err, lab.ErrNoLab):
		return "start one with birthmark-lab up --dir DIR"
	case errors.Is(err, syscall.EADDRINUSE):
		return "stop what listens there, or remove lab.json from the lab's folder for other ports: devices then need the new device/birthmark.toml"
	case errors.Is(err, os.ErrPermission):
		return "name a folder of your own with --dir"
	case errors.Is(err, syscall.ENOSPC):
		return "make room on the disk"
	}
	return ""
}

// A usageError is a command line that was understood, and cannot be meant.
type usageError string

func (e usageError) Error() string { return string(e) }

func exitCode(err error) int {
	var usage usageError
	var refused *ca.RefusedError // the name of a device, which was given here
	switch {
	case errors.As(err, &usage), errors.As(err, &refused):
		return exitUsage
	case errors.Is(err, lab.ErrInUse), errors.Is(err, lab.ErrNoLab), errors.Is(err, syscall.EADDRINUSE),
		errors.Is(err, os.ErrPermission), errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ENOSPC),
		errors.Is(err, context.Canceled):
		return exitUnavailable
	}
	return exitRefused
}
