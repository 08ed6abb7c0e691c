package agent

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"birthmark/pkg/telemetry"
)

const (
	// guestNames is how many names local programs can give to what they say. Each
	// takes one of the outbox's streams, for ever.
	guestNames = 16
	// guestBytes is how much may wait before no more durable messages are taken from
	// local programs: they must not push out the agent's own. It is less than half of
	// what the outbox holds.
	guestBytes = 512 << 10
)

// ErrNoRoom: there is no room for a message of a local program.
var ErrNoRoom = errors.New("no room for the message")

// Tell puts a message of a local program, a JSON object, on the way to the owner's
// broker, as telemetry of that name. A durable one is on disk when Tell returns.
// The error of one that finds no room is an ErrNoRoom.
func (a *Agent) Tell(name string, object []byte, durable bool) error {
	a.telling.Lock()
	defer a.telling.Unlock()
	topic := "tele/" + name
	known := slices.DeleteFunc(a.outbox.Streams("tele/"), func(s string) bool { return s == readingTopic })
	if !slices.Contains(known, topic) && len(known) >= guestNames {
		return fmt.Errorf("%w: local programs have used %d names already", ErrNoRoom, guestNames)
	}
	if durable && a.outbox.Stats().Bytes > guestBytes {
		return fmt.Errorf("%w: %d KiB wait for the broker", ErrNoRoom, guestBytes>>10)
	}
	err := a.put(telemetry.Message{Topic: topic, QoS: 1, Payload: object, Durable: durable})
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoRoom, err)
	}
	return err
}
