// Birthmark-lab is everything that is not on the device: a maker's CA, an owner's CA
// and a broker, for demonstrations, tests and small fleets.
package main

import (
	"context"
	"errors"
	"os"
	"syscall"

	"birthmark/internal/cli"
	"birthmark/internal/lab"
	"birthmark/internal/lab/ca"
	"birthmark/internal/lab/sign"
)

func main() {
	cli.Main(cli.Program{Command: command(), Hint: hint, ExitCode: exitCode})
}

// hint is what to do about err, if anything general can be said.
func hint(err error) string {
	var missing *sign.MissingError
	switch {
	case errors.As(err, &missing):
		return "apt install " + missing.Package
	case errors.Is(err, lab.ErrInUse):
		return "stop it, or name another folder with --dir"
	case errors.Is(err, lab.ErrNoLab):
		return "start one with birthmark-lab up --dir DIR"
	case errors.Is(err, syscall.EADDRINUSE):
		return "stop what listens there, or remove lab.json from the lab's folder for other ports: devices then need the new device/birthmark.toml"
	case errors.Is(err, os.ErrPermission):
		return "run it as whose files these are, or name others"
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
	var release *sign.ReleaseError
	var missing *sign.MissingError
	switch {
	case errors.As(err, &usage), errors.As(err, &refused), errors.As(err, &release):
		return cli.Usage
	case errors.As(err, &missing), errors.Is(err, lab.ErrInUse), errors.Is(err, lab.ErrNoLab), errors.Is(err, syscall.EADDRINUSE),
		errors.Is(err, os.ErrPermission), errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ENOSPC),
		errors.Is(err, context.Canceled):
		return cli.Unavailable
	}
	return cli.Refused
}
