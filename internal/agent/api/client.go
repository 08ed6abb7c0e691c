package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
)

// reportLimit is what is read of an answer, in bytes.
const reportLimit = 1 << 20

// ErrNobody says that no agent listens at a door.
var ErrNobody = errors.New("no agent listens")

// Get asks at a door in folder, Status for example, for what is at path, such as
// /v1/status. Errors to decide by: ErrNobody, and fs.ErrPermission for a door that
// is not for this user.
func Get(ctx context.Context, folder, door, path string) ([]byte, error) {
	socket := filepath.Join(folder, door)
	status, body, err := ask(ctx, socket, http.MethodGet, path, nil)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("it answered with status %d: %s", status, reason(body))
	}
	if err != nil {
		return nil, fmt.Errorf("cannot ask the agent at %s: %w", socket, err)
	}
	return body, nil
}

// Post gives an order at the door Control in folder, and returns what comes of it. One
// that was not taken is a *Refusal; other errors are those of Get.
func Post(ctx context.Context, folder, path string, order any) ([]byte, error) {
	socket := filepath.Join(folder, Control)
	text, err := json.Marshal(order)
	if err != nil {
		return nil, err
	}
	status, body, err := ask(ctx, socket, http.MethodPost, path, bytes.NewReader(text))
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot ask the agent at %s: %w", socket, err)
	case status == http.StatusAccepted:
		return body, nil
	}
	refusal := &Refusal{Status: status}
	if json.Unmarshal(body, refusal) != nil || refusal.Reason == "" {
		return nil, fmt.Errorf("cannot ask the agent at %s: it answered with status %d: %s", socket, status, reason(body))
	}
	return nil, refusal
}

func ask(ctx context.Context, socket, method, path string, order io.Reader) (status int, body []byte, err error) {
	transport := &http.Transport{
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: headerLimit,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}
	// The host means nothing here, but HTTP/1.1 wants one.
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, order)
	if err != nil {
		return 0, nil, err
	}
	answer, err := transport.RoundTrip(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return 0, nil, ErrNobody
	case err != nil:
		return 0, nil, err
	}
	defer answer.Body.Close()
	body, err = io.ReadAll(io.LimitReader(answer.Body, reportLimit+1))
	if err == nil && len(body) > reportLimit {
		err = fmt.Errorf("an answer of more than %d bytes", reportLimit)
	}
	return answer.StatusCode, body, err
}

// reason is what an answer gives as its reason.
func reason(body []byte) string {
	var said struct{ Error string }
	if json.Unmarshal(body, &said) != nil {
		said.Error = string(body[:min(len(body), 200)])
	}
	return strings.Join(strings.Fields(said.Error), " ")
}
