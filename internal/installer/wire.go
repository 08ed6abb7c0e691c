package installer

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	"birthmark/pkg/fota"
)

const (
	requestLimit = 4 << 10  // bytes of a line to the installer, its end included
	answerLimit  = 32 << 10 // bytes of a line from it
	readLimit    = 1 << 20  // bytes that are asked for at once
	textLimit    = 1 << 10  // bytes of a reason for people
	notesLimit   = 8        // notes in a status
)

// Status is what the installer knows.
type Status struct {
	Version  string `json:"version"`  // of the program
	Protocol int    `json:"protocol"` // [Protocol]
	// Device is what the boot loader and the medium say; nil if they cannot be asked.
	// While something is being done, it is how things were before.
	Device *fota.Status `json:"device,omitempty"`
	// Staged is what the last install finished; nil if nothing was, or something was
	// written since.
	Staged *Release `json:"staged,omitempty"`
	Doing  *Doing   `json:"doing,omitempty"`
	Notes  []string `json:"notes,omitempty"` // what somebody should look at, for people
}

// A Release is one that was installed.
type Release struct {
	Version fota.Version `json:"version"`
	Root    string       `json:"root"` // of the bundle's hash tree, in hex: which bundle it was
}

// Doing is what keeps the installer from doing something else.
type Doing struct {
	Verb  string `json:"verb"`
	Done  int64  `json:"done,omitempty"` // bytes, of an install
	Total int64  `json:"total,omitempty"`
}

// An answer is one line from the installer; one of its members is there.
type answer struct {
	Read     *ask      `json:"read,omitempty"`
	Progress *progress `json:"progress,omitempty"`

	// The last line is one of these.
	Status  *Status  `json:"status,omitempty"`
	Written *Release `json:"written,omitempty"`
	Done    string   `json:"done,omitempty"` // arm, bless, cancel or permit
	Refused *refused `json:"refused,omitempty"`
	Busy    string   `json:"busy,omitempty"` // with which verb
	Error   string   `json:"error,omitempty"`
}

// An ask is for some bytes of the bundle.
type ask struct {
	Offset int64 `json:"offset"`
	Length int   `json:"length"`
}

type progress struct {
	Done  int64 `json:"done"`
	Total int64 `json:"total"`
}

// Refused is a [fota.Refusal].
type refused struct {
	Stage  fota.Stage `json:"stage"`
	Code   string     `json:"code"`
	Reason string     `json:"reason"`
}

// failed is the last line for an error.
func failed(err error) answer {
	var r *fota.Refusal
	var busy *busyError
	switch {
	case errors.As(err, &r):
		return answer{Refused: &refused{r.Stage, r.Code, printable(r.Err.Error())}}
	case errors.As(err, &busy):
		return answer{Busy: busy.verb}
	}
	return answer{Error: printable(err.Error())}
}

// err is what the last line says went wrong.
func (a answer) err() error {
	switch {
	case a.Refused != nil:
		return &fota.Refusal{Stage: a.Refused.Stage, Code: a.Refused.Code, Err: errors.New(a.Refused.Reason)}
	case a.Busy != "":
		return &busyError{a.Busy}
	case a.Error != "":
		return errors.New("the installer says: " + a.Error)
	}
	return nil
}

// printable cuts text that may hold what somebody else wrote, and takes out of it what
// a terminal would obey.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, strings.ToValidUTF8(text, string(unicode.ReplacementChar)))
	if len(text) > textLimit {
		text = strings.ToValidUTF8(text[:textLimit], "") + "..."
	}
	return text
}

// line is v as one line of at most limit bytes.
func line(v any, limit int) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b) // ends the line
	e.SetEscapeHTML(false)   // six bytes for one
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	if b.Len() > limit {
		return nil, fmt.Errorf("a line of %d bytes, limit %d", b.Len(), limit)
	}
	return b.Bytes(), nil
}

// readLine reads a line into the buffer of b, whose size is its limit.
func readLine(b *bufio.Reader) ([]byte, error) {
	text, err := b.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, fmt.Errorf("a line has at most %d bytes", b.Size())
	case errors.Is(err, io.EOF) && len(text) > 0:
		return nil, io.ErrUnexpectedEOF
	}
	return text, err
}

// A request is what a peer asks. Members that are not there are nil.
type request struct {
	verb    string
	size    *int64        // of a bundle that the peer will read out
	version *fota.Version // to be armed
}

// parseRequest reads a request, and wants it to have the members of its verb.
func parseRequest(text []byte) (r request, err error) {
	if err := parse(text, map[string]any{"verb": &r.verb, "size": &r.size, "version": &r.version}); err != nil {
		return r, err
	}
	switch {
	case r.verb != "install" && r.size != nil:
		return r, errors.New("only install takes a size")
	case r.verb != "arm" && r.version != nil:
		return r, errors.New("only arm takes a version")
	case r.verb == "arm" && (r.version == nil || *r.version == fota.Version{}):
		return r, errors.New("arm takes a version")
	}
	return r, nil
}

// A reply is the line with which a peer begins what it was asked for.
type reply struct {
	length int    // bytes that follow
	err    string // or why there are none
}

func parseReply(text []byte) (r reply, err error) {
	err = parse(text, map[string]any{"length": &r.length, "error": &r.err})
	return r, err
}

// parse reads one object into members: none that is not among them, none twice.
// encoding/json by itself would take "Verb" for "verb", and the last of two.
func parse(text []byte, members map[string]any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return errors.New("it is no JSON object")
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return fmt.Errorf("it is no JSON: %w", err)
		}
		into, ok := members[name.(string)] // or Token had failed
		if !ok {
			return fmt.Errorf("member %.20q is not known, or comes twice", name)
		}
		delete(members, name.(string))
		if err := d.Decode(into); err != nil {
			return fmt.Errorf("member %q: %w", name, err)
		}
	}
	if _, err := d.Token(); err != nil {
		return fmt.Errorf("it is no JSON: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("there is something behind it")
	}
	return nil
}
