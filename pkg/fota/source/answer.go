package source

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// check holds an answer against what was asked for, bytes first to last, and against the
// pin. The first answer of all fills in the pin. It returns the number of bytes that have
// to come.
func (r *Remote) check(resp *http.Response, first, last int64) (int64, error) {
	h := resp.Header
	switch s := resp.StatusCode; {
	case s == http.StatusPartialContent:
	case s == http.StatusOK:
		return 0, r.whole(resp)
	case s == http.StatusRequestedRangeNotSatisfiable && r.opened():
		return 0, fmt.Errorf("%w: it has no byte %d any more (%.80q)", ErrChanged, first, h.Get("Content-Range"))
	case s == http.StatusRequestedRangeNotSatisfiable:
		return 0, errors.New("the file is empty, says the server")
	case s == http.StatusRequestTimeout, s == http.StatusTooEarly, s == http.StatusTooManyRequests, s >= 500 && s <= 599:
		return 0, &UnavailableError{RetryAfter: retryAfter(h), Err: statusError(s)}
	default:
		return 0, statusError(s)
	}
	if c := h.Get("Content-Encoding"); c != "" && !strings.EqualFold(c, "identity") {
		return 0, fmt.Errorf("the server sent a part in the coding %.80q", c)
	}
	if v := h.Values("Content-Range"); len(v) != 1 { // as of multipart/byteranges
		return 0, fmt.Errorf("the server sent a part with %d Content-Range headers", len(v))
	}
	got, ok := parseContentRange(h.Get("Content-Range"))
	if !ok {
		return 0, fmt.Errorf("the server sent a part with a Content-Range that is none, %.80q", h.Get("Content-Range"))
	}
	pin := r.pin
	if r.opened() {
		// The version first: another one is what a caller has to know of.
		if err := pin.check(h); err != nil {
			return 0, err
		}
		if got.total != pin.Size {
			return 0, fmt.Errorf("%w: it has %d bytes, not %d", ErrChanged, got.total, pin.Size)
		}
	} else {
		var err error
		if pin.ETag, pin.LastModified, err = version(h); err != nil {
			return 0, err
		}
		pin.Size = got.total
	}
	want := contentRange{first, min(last, pin.Size-1), pin.Size}
	if got != want {
		return 0, fmt.Errorf("the server sent %v, and was asked for %v", got, want)
	}
	if n := resp.ContentLength; n >= 0 && n != want.len() {
		return 0, fmt.Errorf("the server sent a part of %d bytes that is said to hold %v", n, want)
	}
	if !r.opened() {
		r.pin = pin
	}
	return want.len(), nil
}

// whole is what it means that the server sends the whole file.
func (r *Remote) whole(resp *http.Response) error {
	if r.opened() {
		// The way of If-Range to say that the version is another one (RFC 9110, 13.1.5).
		if err := r.pin.check(resp.Header); errors.Is(err, ErrChanged) {
			return err
		}
		if n := resp.ContentLength; n >= 0 && n != r.pin.Size {
			return fmt.Errorf("%w: it has %d bytes, not %d", ErrChanged, n, r.pin.Size)
		}
	}
	return errors.New("the server sends the whole file when it is asked for a part: it cannot be used")
}

func statusError(status int) error {
	if text := http.StatusText(status); text != "" {
		return fmt.Errorf("the server answered with status %d, %s", status, text)
	}
	return fmt.Errorf("the server answered with status %d", status)
}

// A contentRange is which bytes of how many a part holds.
type contentRange struct{ first, last, total int64 }

func (c contentRange) len() int64 { return c.last - c.first + 1 }

func (c contentRange) String() string {
	return fmt.Sprintf("bytes %d-%d/%d", c.first, c.last, c.total)
}

// parseContentRange reads the header of RFC 9110, 14.4, as far as it can be used: a range
// of bytes within a known total.
func parseContentRange(text string) (contentRange, bool) {
	unit, text, _ := strings.Cut(text, " ")
	span, total, _ := strings.Cut(text, "/")
	first, last, _ := strings.Cut(span, "-")
	c := contentRange{decimal(first), decimal(last), decimal(total)}
	return c, strings.EqualFold(unit, "bytes") && c.first >= 0 && c.first <= c.last && c.last < c.total
}

// decimal is the number that digits make; -1 if there are others, or too many.
func decimal(digits string) int64 {
	if strings.ContainsFunc(digits, func(r rune) bool { return r < '0' || r > '9' }) {
		return -1 // ParseInt takes a sign
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// retryAfter is how long an answer asks to wait (RFC 9110, 10.2.3), up to a day; 0 if it
// does not say, or not so that it can be read.
func retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	// Out of range, ParseInt returns the end of the range.
	if n, err := strconv.ParseInt(text, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(min(max(n, 0), int64(retryLimit/time.Second))) * time.Second
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	// Our clock may say anything: a date is counted from the server's own.
	now, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), retryLimit)
}
