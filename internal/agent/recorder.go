package agent

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"
	"unicode"
)

const (
	troubleLimit = 16  // warnings and errors that are kept
	detailLimit  = 500 // characters of one of their values
)

// A Trouble is a warning or an error of the agent's log.
type Trouble struct {
	At      time.Time         `json:"at"` // the last time
	Level   string            `json:"level"`
	Message string            `json:"message"`
	Details map[string]string `json:"details,omitempty"` // of the last time
	Times   int               `json:"times"`             // in a row
}

// A recorder passes a log on, and keeps its last warnings and errors for whoever
// asks how the agent is.
type recorder struct {
	slog.Handler
	kept  *kept
	attrs []slog.Attr // of the logger
}

// Log is the agent's log. The last warnings and errors in it are part of its status.
func (a *Agent) Log() *slog.Logger { return a.log }

// A kept is what recorders of one log share.
type kept struct {
	mu       sync.Mutex
	troubles []Trouble // oldest first
}

func (r recorder) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn || r.Handler.Enabled(ctx, level)
}

func (r recorder) Handle(ctx context.Context, rec slog.Record) error {
	if rec.Level >= slog.LevelWarn {
		details := map[string]string{}
		note := func(a slog.Attr) bool {
			if v := a.Value.Resolve().String(); v != "" {
				details[a.Key] = Printable(v)
			}
			return true
		}
		for _, a := range r.attrs {
			note(a)
		}
		rec.Attrs(note)
		r.kept.add(Trouble{rec.Time, rec.Level.String(), rec.Message, details, 1})
	}
	if !r.Handler.Enabled(ctx, rec.Level) {
		return nil
	}
	return r.Handler.Handle(ctx, rec)
}

// Printable is text on one line, without anything that a terminal would obey, and cut
// if it is long.
func Printable(text string) string {
	var line []rune
	for _, c := range text {
		if !unicode.IsPrint(c) {
			c = ' '
		}
		if line = append(line, c); len(line) == detailLimit {
			return string(line) + "…"
		}
	}
	return string(line)
}

func (r recorder) WithAttrs(attrs []slog.Attr) slog.Handler {
	r.Handler, r.attrs = r.Handler.WithAttrs(attrs), slices.Concat(r.attrs, attrs)
	return r
}

// WithGroup is for the log only: names of details are not grouped.
func (r recorder) WithGroup(name string) slog.Handler {
	r.Handler = r.Handler.WithGroup(name)
	return r
}

// add keeps t; what is said again and again takes one place.
func (k *kept) add(t Trouble) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if n := len(k.troubles); n > 0 && k.troubles[n-1].Message == t.Message {
		t.Times += k.troubles[n-1].Times
		k.troubles[n-1] = t
		return
	}
	if len(k.troubles) == troubleLimit {
		k.troubles = slices.Delete(k.troubles, 0, 1)
	}
	k.troubles = append(k.troubles, t)
}

// all are the troubles so far, oldest first.
func (k *kept) all() []Trouble {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := slices.Clone(k.troubles)
	for i := range all {
		all[i].Details = maps.Clone(all[i].Details)
	}
	return all
}
