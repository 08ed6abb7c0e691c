package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// errTooBig is a log that this package did not write.
var errTooBig = fmt.Errorf("more than %d bytes", fileLimit)

// Verify reads the lines of one file of a log and follows their chain. prev is the
// hash of the line before its first one, that is what Verify returned for
// audit.log.1 when r is audit.log; with "" the first line may follow any other, as
// after lines that were dropped long ago. It returns the hash of the last line and
// the number of lines up to the first that is wrong.
func Verify(r io.Reader, prev string) (last string, n int, err error) {
	text, err := readAll(r)
	if err != nil {
		return prev, 0, fmt.Errorf("cannot read the audit log: %w", err)
	}
	s := scan(text, prev)
	if s.err != nil {
		return s.last, s.n, fmt.Errorf("audit log, line %d: %w", s.n+1, s.err)
	}
	return s.last, s.n, nil
}

// A scanned is how far a file is a log.
type scanned struct {
	n    int    // lines that are
	good int    // bytes of those
	seq  uint64 // of the last of them
	last string // its hash
	err  error  // of the line after
	torn bool   // and whether a power cut explains it
}

// scan follows the chain in text from the line with the hash prev on, "" for any.
func scan(text []byte, prev string) scanned {
	s := scanned{last: prev}
	for s.good < len(text) {
		line, _, whole := bytes.Cut(text[s.good:], []byte{'\n'})
		var e entry
		err := json.Unmarshal(line, &e)
		switch {
		case !whole || err != nil || len(line) >= lineLimit:
			// A line is durable before the next is begun, so only the last can be torn.
			rest := len(text) - s.good - len(line)
			s.torn = len(line) < lineLimit && rest <= 1
			s.err = errors.New("no whole line")
			return s
		case s.last != "" && e.Prev != s.last:
			s.err = errors.New("it does not follow the line before")
			return s
		case s.n > 0 && e.Seq != s.seq+1:
			s.err = fmt.Errorf("number %d after %d", e.Seq, s.seq)
			return s
		case (e.Seq <= 1) != (e.Prev == ""):
			s.err = fmt.Errorf("number %d cannot follow %q", e.Seq, e.Prev)
			return s
		}
		s.n, s.good = s.n+1, s.good+len(line)+1
		s.seq, s.last = e.Seq, hash(line)
	}
	return s
}
