package config

import (
	"bytes"
	"fmt"
)

const (
	textLimit    = 64 << 10 // bytes of a configuration file
	nestingLimit = 8        // of lists and tables in a value, and dots in a key
)

// tooDeep is the first line of a TOML text in which values or dotted keys nest
// deeper than any setting does, 0 if there is none. The parser behind it takes
// memory with the square of the depth: 64 KiB would be gigabytes.
func tooDeep(text []byte) (line int) {
	line = 1
	depth, dots := 0, 0
	for i := 0; i < len(text); i++ {
		switch c := text[i]; c {
		case '\n':
			line++
			dots = 0
		case '#':
			if end := bytes.IndexByte(text[i:], '\n'); end >= 0 {
				i += end - 1
			} else {
				return 0
			}
		case '"', '\'':
			end := stringEnd(text[i:])
			line += bytes.Count(text[i:i+end], []byte{'\n'})
			i += end - 1
		case '[', '{':
			depth++
			dots = 0
		case ']', '}':
			depth--
		case '=', ',':
			dots = 0
		case '.':
			dots++
		}
		if depth > nestingLimit || dots > nestingLimit {
			return line
		}
	}
	return 0
}

// stringEnd is the length of the string that text begins with: "…" or '…' on one
// line, or between three of either on many. One that does not end is text's
// length, or, on one line, goes up to the line's end.
func stringEnd(text []byte) int {
	quote := text[:1]
	long := bytes.HasPrefix(text, bytes.Repeat(quote, 3))
	if long {
		quote = text[:3]
	}
	for i := len(quote); i < len(text); i++ {
		switch {
		case text[i] == '\\' && quote[0] == '"':
			i++
		case text[i] == '\n' && !long:
			return i
		case bytes.HasPrefix(text[i:], quote):
			return i + len(quote)
		}
	}
	return len(text)
}

// checkSize refuses a text that would take the parser too long.
func checkSize(file string, text []byte) error {
	if len(text) > textLimit {
		return &Error{File: file, Msg: fmt.Sprintf("%d bytes, limit %d", len(text), textLimit)}
	}
	if line := tooDeep(text); line > 0 {
		return &Error{File: file, Line: line, Msg: fmt.Sprintf("nested more than %d deep: no setting is", nestingLimit)}
	}
	return nil
}
