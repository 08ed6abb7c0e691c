package est

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode"

	"birthmark/internal/lab/ca"
)

const (
	root        = "/.well-known/est/"
	reasonLimit = 500 // bytes of a reason
)

// A handler answers the requests of a Server.
type handler struct {
	Config
	log        *slog.Logger
	operations map[string]operation
	mustBind   bool // a request has to carry the channel binding
}

// An operation of RFC 7030. What serve returns as an error is answered by refuse.
type operation struct {
	method string
	serve  func(http.ResponseWriter, *http.Request) error
}

func newHandler(conf Config) *handler {
	h := &handler{Config: conf, log: conf.Log, mustBind: wantsChallenge(conf.CSRAttrs)}
	if h.log == nil {
		h.log = slog.Default()
	}
	h.operations = map[string]operation{
		"cacerts":        {http.MethodGet, h.serveCACerts},
		"csrattrs":       {http.MethodGet, h.serveCSRAttrs},
		"simpleenroll":   {http.MethodPost, h.enrol(h.mayEnrol, conf.CA.Issue)},
		"simplereenroll": {http.MethodPost, h.enrol(h.mayRenew, conf.CA.Renew)},
	}
	return h
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := h.serve(w, r); err != nil {
		h.refuse(w, r, err)
	}
}

func (h *handler) serve(w http.ResponseWriter, r *http.Request) error {
	name, op, err := h.find(r.URL)
	if err != nil {
		return err
	}
	if r.Method != op.method && (op.method != http.MethodGet || r.Method != http.MethodHead) {
		w.Header().Set("Allow", op.method)
		return refusal(http.StatusMethodNotAllowed, "%s wants %s", name, op.method)
	}
	return op.serve(w, r)
}

// find returns the operation that is the last part of a path, before which there may be
// a label (RFC 7030 3.2.2). Paths are taken as they are: no other case, no slash at the
// end.
func (h *handler) find(u *url.URL) (string, operation, error) {
	path, ok := strings.CutPrefix(u.EscapedPath(), root)
	if !ok {
		return "", operation{}, refusal(http.StatusNotFound, "no such path: EST is at %s", root)
	}
	label, name, labelled := strings.Cut(path, "/")
	if !labelled {
		name = path
	} else if _, taken := h.operations[label]; taken || label == "" {
		return "", operation{}, refusal(http.StatusNotFound, "%q is no label", label)
	}
	op, ok := h.operations[name]
	if !ok {
		return "", operation{}, refusal(http.StatusNotFound, "operation %q is not offered here", name)
	}
	return name, op, nil
}

// serveCACerts answers RFC 7030 4.1.
func (h *handler) serveCACerts(w http.ResponseWriter, _ *http.Request) error {
	return writeCertificates(w, h.CA.Chain()...)
}

// serveCSRAttrs answers RFC 7030 4.5.
func (h *handler) serveCSRAttrs(w http.ResponseWriter, _ *http.Request) error {
	if h.CSRAttrs == nil {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	write(w, http.StatusOK, "application/csrattrs", encode(h.CSRAttrs))
	return nil
}

// A refused request: what the client is told.
type refusedError struct {
	status int
	reason string
}

func (e *refusedError) Error() string { return e.reason }

func refusal(status int, format string, args ...any) error {
	return &refusedError{status, fmt.Sprintf(format, args...)}
}

// refuse answers and logs a request that ended with an error. What is not a refusal
// is nothing that the client could mend.
func (h *handler) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var refused *refusedError
	var unfit *ca.RefusedError
	switch {
	case errors.As(err, &refused):
	case errors.As(err, &unfit):
		refused = &refusedError{http.StatusBadRequest, unfit.Reason}
	default:
		h.log.Error("request failed", "path", r.URL.Path, "peer", r.RemoteAddr, "err", err)
		write(w, http.StatusInternalServerError, "text/plain; charset=utf-8", []byte("the CA cannot answer now\n"))
		return
	}
	reason := oneLine(refused.reason)
	h.log.Warn("request refused", "path", r.URL.Path, "peer", r.RemoteAddr, "status", refused.status, "reason", reason)
	if refused.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="estrealm", charset="UTF-8"`)
	}
	write(w, refused.status, "text/plain; charset=utf-8", []byte(reason+"\n"))
}

// oneLine makes a reason, in which there may be words of the client, one short line.
func oneLine(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
	if len(s) > reasonLimit {
		s = strings.ToValidUTF8(s[:reasonLimit], "") + " …"
	}
	return s
}

// write answers in one piece, with its length.
func write(w http.ResponseWriter, status int, mediaType string, body []byte) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // whoever does not hear the answer will ask again
}

// encode is base64 on one line, and nothing said about it (RFC 8951 section 3).
func encode(der []byte) []byte {
	return base64.StdEncoding.AppendEncode(nil, der)
}
