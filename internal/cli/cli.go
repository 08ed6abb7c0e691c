// Package cli is what the command lines of both binaries have in common: exit codes,
// one line for an error, signals, and the verb version.
//
// An error is printed on one line of standard error, with its next step in
// parentheses, and without anything that a server or a file could do to a terminal.
package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf16"

	"github.com/spf13/cobra"

	"birthmark/internal/version"
)

// Exit codes, the same for every verb of both binaries.
const (
	Done        = 0
	Refused     = 1 // refused, or does not verify
	Usage       = 2 // usage or configuration
	Unavailable = 3 // something needed is not there, or still pending
)

// A Program is a binary.
type Program struct {
	Command  *cobra.Command         // its whole command line
	Hint     func(err error) string // what a person can do about err; "" for nothing
	ExitCode func(err error) int
}

// Main runs p with the arguments of this process, until SIGINT or SIGTERM end its
// context; a second signal ends the process. It does not return.
func Main(p Program) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop)
	os.Exit(p.run(ctx, os.Args[1:], os.Stderr))
}

func (p Program) run(ctx context.Context, args []string, stderr io.Writer) int {
	c := p.Command
	understood := false
	c.PersistentPreRun = func(*cobra.Command, []string) { understood = true }
	c.SilenceUsage, c.SilenceErrors = true, true
	c.CompletionOptions.HiddenDefaultCmd = true
	c.SetArgs(args)
	err := c.ExecuteContext(ctx)
	if err == nil {
		return Done
	}
	lines := []error{err}
	var several Errors
	if errors.As(err, &several) {
		lines = several
	}
	for _, err := range lines {
		fmt.Fprintf(stderr, "%s: %s\n", c.Name(), Line(err, p.Hint(err)))
	}
	if !understood { // err is about the command line itself
		return Usage
	}
	return p.ExitCode(err)
}

// Line is err with its next step, if there is one, on one line.
func Line(err error, hint string) string {
	text := err.Error()
	if hint != "" {
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

// Errors are several errors that are each worth a line of its own, such as the
// mistakes in a configuration.
type Errors []error

func (e Errors) Error() string   { return errors.Join(e...).Error() }
func (e Errors) Unwrap() []error { return e }

// JSONFlag adds --json to a verb.
func JSONFlag(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("json", false, "print JSON")
}

// PrintJSON writes v for programs, in a form that people can read too, and without
// anything that a terminal could take for more than letters.
func PrintJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := io.WriteString(w, escape(b.String()))
	return err
}

// escape spells out (RFC 8259, 7) what may stand in a string as it is and should not on
// a terminal: DEL, the control characters above it, those that turn the direction of
// writing. Outside of strings JSON has none of them.
func escape(text string) string {
	var b strings.Builder
	for _, r := range text {
		if r == '\n' || unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.String()
}

// Version is the verb version of the binary with that name.
func Version(name string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "version", Short: "print the version", Args: cobra.NoArgs,
		Example: "  " + name + " version --json",
	}
	asJSON := JSONFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *asJSON {
			return PrintJSON(cmd.OutOrStdout(), version.This())
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), name, version.This())
		return err
	}
	return cmd
}
