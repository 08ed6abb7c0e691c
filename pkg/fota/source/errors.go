package source

import (
	"strings"
	"time"
	"unicode"
)

// An UnavailableError says that the bytes could not be had now. The same read may succeed
// later; nothing is known to be wrong with the file. It is never an io.EOF, or an
// io.ErrUnexpectedEOF, within.
type UnavailableError struct {
	RetryAfter time.Duration // what the server asked for, up to a day; 0: nothing
	Err        error
}

func (e *UnavailableError) Error() string {
	return oneLine("the server is not available: " + e.Err.Error())
}

func (e *UnavailableError) Unwrap() error { return e.Err }

const lineLimit = 400 // characters of an error

// oneLine makes a text that may hold a server's words fit for a line of a log: no control
// characters, nor those that turn the direction of writing, and cut if it is long. Texts
// that are made here quote and cut what they repeat; those of net/http do neither.
func oneLine(text string) string {
	line := []rune(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, text))
	if len(line) > lineLimit {
		line = append(line[:lineLimit-1], '…')
	}
	return string(line)
}
