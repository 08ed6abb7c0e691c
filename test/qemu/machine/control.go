package machine

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

const outputLimit = 16 << 20 // bytes that a script in the guest may print

// greeting is the guest's first line after each start.
const greeting = "ready"

// ErrRestarted: the device started anew while it was asked something.
var ErrRestarted = errors.New("the device restarted")

// An ExitError is a script's that did not end with 0.
type ExitError struct {
	Script string
	Code   int
	Output string
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%q ended with %d in the guest: %s", e.Script, e.Code, strings.TrimSpace(e.Output))
}

// Ready waits until the guest has started, again after each restart.
func (m *Machine) Ready(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.within(ctx)()
	for {
		line, err := m.line(ctx)
		if err != nil {
			return fmt.Errorf("the virtual device does not come up: %w", err)
		}
		if line == greeting {
			return nil
		}
	}
}

// Sh runs a script in the guest, as root, and returns what it printed, on both streams.
// The error may be an *ExitError.
func (m *Machine) Sh(ctx context.Context, script string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.within(ctx)()
	out, code, err := m.sh(ctx, script)
	if err != nil {
		return "", fmt.Errorf("cannot run %q in the guest: %w", script, err)
	}
	if code != 0 {
		return out, &ExitError{script, code, out}
	}
	return out, nil
}

func (m *Machine) sh(ctx context.Context, script string) (string, int, error) {
	m.control.WriteString(base64.StdEncoding.EncodeToString([]byte(script)) + "\n")
	if err := m.control.Flush(); err != nil {
		return "", 0, m.why(ctx, err)
	}
	line, err := m.line(ctx)
	if err != nil {
		return "", 0, err
	}
	if line == greeting {
		return "", 0, ErrRestarted
	}
	var code, size int
	if _, err := fmt.Sscanf(line, "%d %d", &code, &size); err != nil || size < 0 || size > outputLimit {
		return "", 0, fmt.Errorf("the guest answers %q", line)
	}
	out := make([]byte, size)
	if _, err := io.ReadFull(m.control, out); err != nil {
		return "", 0, m.why(ctx, err)
	}
	return string(out), code, nil
}

func (m *Machine) line(ctx context.Context) (string, error) {
	line, err := m.control.ReadString('\n')
	if err != nil {
		return "", m.why(ctx, err)
	}
	return strings.TrimSpace(line), nil
}

// why is the cause of a wire's error.
func (m *Machine) why(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		select {
		case <-m.qemu.gone:
			return m.qemu.ended()
		case <-time.After(endTime):
		}
	}
	return err
}

// within ends what waits at the control channel when ctx does.
func (m *Machine) within(ctx context.Context) (undo func()) {
	wire := m.wire
	stop := context.AfterFunc(ctx, func() { _ = wire.SetDeadline(time.Unix(1, 0)) })
	return func() {
		if !stop() {
			_ = wire.SetDeadline(time.Time{})
		}
	}
}
