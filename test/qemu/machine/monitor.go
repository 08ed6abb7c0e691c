package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// A monitor speaks QMP, the QEMU Machine Protocol: JSON, a command and its answer at a
// time, with events in between that nobody here waits for.
type monitor struct {
	wire    net.Conn
	answers *json.Decoder
}

func newMonitor(ctx context.Context, wire net.Conn) (*monitor, error) {
	q := &monitor{wire, json.NewDecoder(wire)}
	var greeting struct{ QMP json.RawMessage }
	if err := q.answers.Decode(&greeting); err != nil {
		return nil, errors.Join(fmt.Errorf("QEMU's monitor does not greet: %w", err), q.close())
	}
	return q, q.do(ctx, "qmp_capabilities", nil)
}

func (q *monitor) close() error { return q.wire.Close() }

// do gives a command and waits for its answer.
func (q *monitor) do(ctx context.Context, command string, arguments map[string]any) error {
	stop := context.AfterFunc(ctx, func() { _ = q.wire.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := json.NewEncoder(q.wire).Encode(struct {
		Execute   string         `json:"execute"`
		Arguments map[string]any `json:"arguments,omitempty"`
	}{command, arguments}); err != nil {
		return fmt.Errorf("cannot tell QEMU %s: %w", command, err)
	}
	for {
		var answer struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		switch err := q.answers.Decode(&answer); {
		case err != nil:
			return fmt.Errorf("QEMU does not answer %s: %w", command, err)
		case answer.Error != nil:
			return fmt.Errorf("QEMU refuses %s: %s", command, answer.Error.Desc)
		case answer.Return != nil:
			return nil
		}
	}
}

// Reset presses the reset button. The guest is not asked.
func (m *Machine) Reset(ctx context.Context) error { return m.monitor.do(ctx, "system_reset", nil) }

// Unplug takes the network cable out, Plug puts it in.
func (m *Machine) Unplug(ctx context.Context) error { return m.cable(ctx, false) }
func (m *Machine) Plug(ctx context.Context) error   { return m.cable(ctx, true) }

func (m *Machine) cable(ctx context.Context, up bool) error {
	return m.monitor.do(ctx, "set_link", map[string]any{"name": "cable", "up": up})
}
