package enroll

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
)

// A PendingError says that the CA took the request and has not decided (status 202,
// RFC 7030, 4.2.3). The same request, for the same key, asks again.
type PendingError struct {
	RetryAfter time.Duration // 5 seconds to 24 hours
}

func (e *PendingError) Error() string {
	return fmt.Sprintf("the CA has not decided yet, and asks to wait for %v", e.RetryAfter)
}

// A RefusedError says that the server, or the CA behind it, does not want to do what
// it was asked to. Asking the same again is of no use until a person changes
// something.
type RefusedError struct {
	Status int    // of HTTP; 0 if the server refused our certificate in the handshake
	Reason string // the server's; one line
}

func (e *RefusedError) Error() string {
	if e.Status == 0 {
		return "refused: " + e.Reason
	}
	return fmt.Sprintf("refused with status %d: %s", e.Status, e.Reason)
}

// An UntrustedError says that the server cannot show that it is the one that we
// trust. Err is a [*clock.VerifyError] if that is about a chain.
type UntrustedError struct{ Err error }

func (e *UntrustedError) Error() string {
	return oneLine("the server is not trusted: " + e.Err.Error())
}
func (e *UntrustedError) Unwrap() error { return e.Err }

// An AnswerError says that a trusted server gave an answer that breaks the rules, or
// a certificate that cannot be accepted. Nothing of it is used.
type AnswerError struct {
	Reason string // one line
}

func (e *AnswerError) Error() string { return "the answer cannot be used: " + e.Reason }

func answerErrorf(format string, args ...any) *AnswerError {
	return &AnswerError{Reason: oneLine(fmt.Sprintf(format, args...))}
}

// An UnavailableError says that there was no answer, or none for now.
type UnavailableError struct {
	RetryAfter time.Duration // what the server asked for, 5 seconds to 24 hours; 0: nothing
	Err        error
}

func (e *UnavailableError) Error() string {
	return oneLine("the server is not available: " + e.Err.Error())
}
func (e *UnavailableError) Unwrap() error { return e.Err }

// ErrProxy, in an UnavailableError: the proxy that the environment names does not lead
// to the server.
var ErrProxy = errors.New("no way through the proxy")

const (
	textLimit = 200 // characters of a server's text in an error
	lineLimit = 400 // characters of the whole
)

// oneLine makes an error that may hold text of a server fit for a line of a log: no
// control characters (unicode.IsPrint knows those that turn the direction of
// writing, too), and cut if it is long.
func oneLine(text string) string { return shorten(text, lineLimit) }

// said is oneLine for the words of a server alone.
func said(text string) string { return shorten(text, textLimit) }

// shorten cuts from the middle, since reasons stand at the end.
func shorten(text string, limit int) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, text)
	line := []rune(strings.Join(strings.Fields(text), " "))
	if len(line) <= limit {
		return string(line)
	}
	head := (limit - 1) / 2
	return string(line[:head]) + "…" + string(line[len(line)-(limit-1-head):])
}
