package main

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/coreos/go-systemd/v22/journal"
)

// events are the classes of what the agent logs by which somebody may want to search
// the journal: `journalctl MESSAGE_ID=…`. A class is a message of the log, which is a
// constant sentence. packaging/systemd/birthmark.catalog explains them.
var events = map[string]string{
	"root of trust open":               "dc1d2fef123b78dee892095db68ae036",
	"state changed":                    "891c122f603fed3bf0e4da11613110a8",
	"certificate accepted":             "9b00ead7808e0505a51e54760c7c18d8",
	"step failed, will be tried again": "59c2b261c53bdec63a32a8419cefcc4b",
	"session with the broker":          "8d63899010bf23de6211131588a9dbf9",
	"connection to the broker lost":    "0f7b93a9dfb19b6e14afae246156df8f",
	"no session with the broker":       "b0b7be77b2279f19ae04534c2856b408",
	"unsigned commands are not obeyed": "9dae5e1b145777a5174cf325a14f2d2f",
	"cannot write the audit log":       "67e59d1dbef7bf09bf30284315ca7d5d",
	"a part of the agent is stuck":     "06bf3b9d35d479e89efa4fff7697638c",
	"configuration reloaded":           "2564701575425afb973b49bbacb39dfd",
	"configuration refused":            "844034ca13906b4a525121d95a6097b8",
	"the broker keeps hanging up: another device may have this identity":                      "8467c098d73913665b00f263d8bf1664",
	"the state file was damaged; it is kept aside and the device starts from its birth again": "3fc205c81b9a376153d0bc86133e9af5",
}

const (
	fieldPrefix = "BIRTHMARK_"
	fieldName   = 64      // bytes of a field's name; journald drops one that is longer
	fieldCount  = 32      // fields of an entry
	fieldSize   = 2 << 10 // bytes of a field's value; an entry is one datagram
)

// newLog is the agent's log: in the journal if it is what standard error goes to, and
// otherwise text there, or JSON.
func newLog(stderr io.Writer, level slog.Leveler, asJSON bool) slog.Handler {
	options := &slog.HandlerOptions{Level: level}
	if asJSON {
		return slog.NewJSONHandler(stderr, options)
	}
	text := slog.NewTextHandler(stderr, options)
	if ours, err := journal.StderrIsJournalStream(); err != nil || !ours {
		return text
	}
	return &journalHandler{Handler: text, send: journal.Send}
}

// A journalHandler sends entries to journald, with a field for each attribute. What
// journald does not take goes to the Handler within.
type journalHandler struct {
	slog.Handler
	send   func(message string, p journal.Priority, fields map[string]string) error
	attrs  []slog.Attr // of the logger, with the names of their groups
	groups string      // before the names of further attributes
}

func (h *journalHandler) Handle(ctx context.Context, rec slog.Record) error {
	message := strings.Builder{}
	message.WriteString(rec.Message)
	fields := map[string]string{"SYSLOG_IDENTIFIER": "birthmark"}
	if id, ok := events[rec.Message]; ok {
		fields["MESSAGE_ID"] = id
	}
	note := func(a slog.Attr) bool {
		value := cut(a.Value.String())
		if len(fields) < fieldCount {
			fields[field(a.Key)] = value
		}
		if strings.ContainsFunc(value, func(r rune) bool { return r == ' ' || r == '"' || !unicode.IsPrint(r) }) {
			value = strconv.Quote(value)
		}
		message.WriteString(" " + a.Key + "=" + value)
		return true
	}
	for _, a := range h.attrs {
		note(a)
	}
	rec.Attrs(func(a slog.Attr) bool { flatten(h.groups, a, note); return true })
	if err := h.send(cut(message.String()), priority(rec.Level), fields); err != nil {
		return h.Handler.Handle(ctx, rec)
	}
	return nil
}

// flatten notes a, or what is in it if it is a group.
func flatten(groups string, a slog.Attr, note func(slog.Attr) bool) {
	a.Value = a.Value.Resolve()
	if a.Value.Kind() == slog.KindGroup {
		if a.Key != "" {
			groups += a.Key + "."
		}
		for _, inner := range a.Value.Group() {
			flatten(groups, inner, note)
		}
		return
	}
	if !a.Equal(slog.Attr{}) {
		a.Key = groups + a.Key
		note(a)
	}
}

func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := &journalHandler{h.Handler.WithAttrs(attrs), h.send, slices.Clone(h.attrs), h.groups}
	for _, a := range attrs {
		flatten(h.groups, a, func(a slog.Attr) bool { with.attrs = append(with.attrs, a); return true })
	}
	return with
}

func (h *journalHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return &journalHandler{h.Handler.WithGroup(name), h.send, h.attrs, h.groups + name + "."}
}

// field is an attribute's name as that of a field, systemd.journal-fields(7).
func field(key string) string {
	name := fieldPrefix + strings.Map(func(r rune) rune {
		if r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r) {
			return '_'
		}
		return unicode.ToUpper(r)
	}, key)
	return name[:min(len(name), fieldName)]
}

// cut keeps a text within an entry's bounds.
func cut(text string) string {
	if len(text) <= fieldSize {
		return text
	}
	return strings.ToValidUTF8(text[:fieldSize], "") + "…"
}

func priority(level slog.Level) journal.Priority {
	switch {
	case level >= slog.LevelError:
		return journal.PriErr
	case level >= slog.LevelWarn:
		return journal.PriWarning
	case level >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}
