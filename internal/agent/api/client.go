package api

import (
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
	body, err := get(ctx, socket, path)
	if err != nil {
		return nil, fmt.Errorf("cannot ask the agent at %s: %w", socket, err)
	}
	return body, nil
}

func get(ctx context.Context, socket, path string) ([]byte, error) {
	transport := &http.Transport{
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: headerLimit,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}
	// The host means nothing here, but HTTP/1.1 wants one.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, nil)
	if err != nil {
		return nil, err
	}
	answer, err := transport.RoundTrip(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, ErrNobody
	case err != nil:
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, reportLimit+1))
	switch {
	case err != nil:
		return nil, err
	case len(body) > reportLimit:
		return nil, fmt.Errorf("an answer of more than %d bytes", reportLimit)
	case answer.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("it answered with status %d: %s", answer.StatusCode, reason(body))
	}
	return body, nil
}

// reason is what an answer gives as its reason.
func reason(body []byte) string {
	var said struct{ Error string }
	if json.Unmarshal(body, &said) != nil {
		said.Error = string(body[:min(len(body), 200)])
	}
	return strings.Join(strings.Fields(said.Error), " ")
}
