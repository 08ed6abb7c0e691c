package broker

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"sync"
	"time"
)

// An entry is one line of the journal.
type entry struct {
	Time    time.Time `json:"time"`
	Client  string    `json:"client"`
	Event   string    `json:"event"` // connect, disconnect, publish, denied
	Topic   string    `json:"topic,omitempty"`
	Payload string    `json:"payload,omitempty"` // as text; what is no UTF-8 is replaced
	Reason  string    `json:"reason,omitempty"`
}

// A journal writes what happens, a line an event.
type journal struct {
	log *slog.Logger

	mu     sync.Mutex
	w      io.Writer // nil for no journal
	failed bool      // the last write
}

// add writes an entry. A journal that cannot be written is no reason to stop the
// broker; it is said once, until it works again.
func (j *journal) add(e entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.w == nil {
		return
	}
	e.Time = time.Now().UTC()
	var line bytes.Buffer
	enc := json.NewEncoder(&line)
	enc.SetEscapeHTML(false)
	err := enc.Encode(e)
	if err == nil {
		_, err = j.w.Write(line.Bytes())
	}
	if err != nil && !j.failed {
		j.log.Error("cannot write the broker's journal", "err", err)
	}
	j.failed = err != nil
}

// warnings hands on what mochi-mqtt logs at the level of warnings and above: below
// it tells of its own inside.
type warnings struct{ slog.Handler }

func (w warnings) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && w.Handler.Enabled(ctx, level)
}

func (w warnings) WithAttrs(attrs []slog.Attr) slog.Handler {
	return warnings{w.Handler.WithAttrs(attrs)}
}

func (w warnings) WithGroup(name string) slog.Handler { return warnings{w.Handler.WithGroup(name)} }
