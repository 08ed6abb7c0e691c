package agent_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"birthmark/internal/agent"
	"birthmark/pkg/enroll"
	"birthmark/pkg/telemetry"
)

// TestAnErrorOfTheKernelIsOfTheNetworkOnlyOnAConnection: of the rest a person is told what is
// known.
func TestAnErrorOfTheKernelIsOfTheNetworkOnlyOnAConnection(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"a connection":                {&net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}, "is the server running"},
		"a connection that is broken": {&net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.EIO)}, "is the server running"},
		"a name that nobody knows":    {&net.DNSError{Err: "no such host", Name: "est.example.com"}, "is the server running"},
		"a full disk":                 {&fs.PathError{Op: "write", Path: "audit.log", Err: syscall.ENOSPC}, "make room on the disk"},
		"a broken disk":               {fmt.Errorf("cannot keep the state: %w", &fs.PathError{Op: "sync", Path: "state.json", Err: syscall.EIO}), "the disk is failing"},
		"a file of somebody else's":   {&fs.PathError{Op: "open", Path: "state.json", Err: syscall.EACCES}, ""},
		"a bare one":                  {syscall.EINVAL, ""},
	} {
		if got := agent.Hint(c.err); !strings.Contains(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%s: hint %q, want one with %q", name, got, c.want)
		}
	}
}

// TestAProxyInTheWayIsSaid: the server may be as well as it can be.
func TestAProxyInTheWayIsSaid(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"the EST server's refuses":        {&enroll.UnavailableError{Err: fmt.Errorf("%w http://proxy:3128: 407", enroll.ErrProxy)}, "HTTPS_PROXY"},
		"the EST server's does not run":   {&enroll.UnavailableError{Err: &net.OpError{Op: "proxyconnect", Net: "tcp", Err: refused}}, "HTTPS_PROXY"},
		"the broker's refuses":            {fmt.Errorf("cannot connect: %w proxy:3128: %w", telemetry.ErrProxy, errors.New("it refuses: 403")), "HTTPS_PROXY"},
		"the broker's does not run":       {fmt.Errorf("cannot connect: %w proxy:3128: %w", telemetry.ErrProxy, refused), "HTTPS_PROXY"},
		"there is none, and no server":    {&enroll.UnavailableError{Err: refused}, "is the server running"},
		"there is none, and no broker":    {refused, "is the server running"},
		"there is none, and server error": {&enroll.UnavailableError{Err: errors.New("status 502")}, "is the server running"},
	} {
		if got := agent.Hint(c.err); !strings.Contains(got, c.want) {
			t.Errorf("%s: hint %q, want one with %q", name, got, c.want)
		}
	}
}
