package source

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// A Pin is what has to be remembered of a remote file to go on with it after a reboot. It
// holds no secrets, unless the address does.
type Pin struct {
	URL  string `json:"url"`
	Size int64  `json:"size"`
	// ETag is strong, with its quotes. Without one, LastModified names the version.
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"last_modified,omitempty"`
}

const (
	etagLimit   = 256         // bytes
	settledTime = time.Minute // after which a change within the same second is not to be feared (RFC 9110, 8.8.2.2)
)

// version is what an answer names the version of the file by.
func version(h http.Header) (etag, modified string, err error) {
	if e := h.Get("ETag"); isStrong(e) {
		return e, "", nil
	}
	modified = h.Get("Last-Modified")
	at, err := http.ParseTime(modified)
	if err != nil {
		return "", "", errors.New("the server does not name the file's version, by a strong ETag or by Last-Modified")
	}
	// Counted on the server's own clock.
	now, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return "", "", errors.New("the server names the file's version by Last-Modified, and sends no Date to hold it against")
	}
	if now.Sub(at) < settledTime {
		return "", "", &UnavailableError{RetryAfter: settledTime, Err: errors.New("the file was changed less than a minute ago, and has no strong ETag")}
	}
	return "", modified, nil
}

// isStrong reports whether an ETag is one that bytes may be put together by (RFC 9110,
// 8.8.3), and is ASCII of a reasonable length.
func isStrong(etag string) bool {
	if len(etag) < 2 || len(etag) > etagLimit || etag[0] != '"' || etag[len(etag)-1] != '"' {
		return false
	}
	return !strings.ContainsFunc(etag[1:len(etag)-1], func(r rune) bool { return r <= ' ' || r == '"' || r > '~' })
}

// validator is what If-Range says.
func (p *Pin) validator() string {
	if p.ETag != "" {
		return p.ETag
	}
	return p.LastModified
}

// check holds the headers of a part, or of the whole file, against the pinned version.
func (p *Pin) check(h http.Header) error {
	if p.ETag != "" {
		switch etag := h.Get("ETag"); etag {
		case p.ETag:
			return nil
		case "": // RFC 9110, 15.3.7, wants one with every part
			return errors.New("the server left out the ETag of a part")
		default:
			return fmt.Errorf("%w: its ETag is %.80q, not %s", ErrChanged, etag, p.ETag)
		}
	}
	// A part that was asked for with If-Range may come without it.
	if m := h.Get("Last-Modified"); m != "" && m != p.LastModified {
		return fmt.Errorf("%w: it was modified at %.80q, not %q", ErrChanged, m, p.LastModified)
	}
	return nil
}

// usable reports whether a remembered pin is one that [Remote.Pin] returns.
func (p *Pin) usable() error {
	_, err := http.ParseTime(p.LastModified)
	if p.Size <= 0 || (p.ETag == "") == (p.LastModified == "") || p.ETag != "" && !isStrong(p.ETag) || p.LastModified != "" && err != nil {
		return errors.New("the pin names no version of a file")
	}
	return nil
}
