package main

import (
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/coreos/go-systemd/v22/journal"
)

// An entry is what journald gets.
type entry struct {
	message  string
	priority journal.Priority
	fields   map[string]string
}

// toJournal is a log whose entries land in the slice, unless journald does not take them.
func toJournal(entries *[]entry, refuse error, text *strings.Builder) *slog.Logger {
	return slog.New(&journalHandler{
		Handler: slog.NewTextHandler(text, &slog.HandlerOptions{Level: slog.LevelInfo}),
		send: func(message string, p journal.Priority, fields map[string]string) error {
			*entries = append(*entries, entry{message, p, fields})
			return refuse
		},
	})
}

func TestEntriesOfTheJournalHaveFields(t *testing.T) {
	var got []entry
	log := toJournal(&got, nil, new(strings.Builder))
	log.Debug("too detailed")
	log.Info("state changed", "from", "born", "to", "enrolled")
	log.With("cmd-id", 7).WithGroup("tpm").Warn("odd", slog.Group("a", "b c", "x y"), "err", errors.New("two\nlines"))
	log.Error("long", "text", strings.Repeat("x", 10<<10))
	log.Info("many", slices.Repeat([]any{"k", 1}, 100)...)
	for i, want := range []entry{
		{"state changed from=born to=enrolled", journal.PriInfo,
			map[string]string{"MESSAGE_ID": events["state changed"], "BIRTHMARK_FROM": "born", "BIRTHMARK_TO": "enrolled"}},
		{`odd cmd-id=7 tpm.a.b c="x y" tpm.err="two\nlines"`, journal.PriWarning,
			map[string]string{"BIRTHMARK_CMD_ID": "7", "BIRTHMARK_TPM_A_B_C": "x y", "BIRTHMARK_TPM_ERR": "two\nlines"}},
	} {
		want.fields["SYSLOG_IDENTIFIER"] = "birthmark"
		if got[i].message != want.message || got[i].priority != want.priority || !maps.Equal(got[i].fields, want.fields) {
			t.Errorf("entry %d: got %+v, want %+v", i, got[i], want)
		}
	}
	if len(got) != 4 || len(got[2].message) > 2*fieldSize || len(got[2].fields["BIRTHMARK_TEXT"]) > 2*fieldSize {
		t.Errorf("%d entries, of which the third has a message of %d bytes; want 4, and %d at most", len(got), len(got[2].message), 2*fieldSize)
	}
	for _, e := range got {
		for name := range e.fields {
			if !regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,63}$`).MatchString(name) {
				t.Errorf("journald drops the field %q", name)
			}
		}
	}
}

func TestWhatTheJournalDoesNotTakeIsWrittenAsText(t *testing.T) {
	var got []entry
	var text strings.Builder
	toJournal(&got, errors.New("no such file"), &text).With("a", 1).Info("odd", "b", 2)
	if !strings.Contains(text.String(), "msg=odd a=1 b=2") {
		t.Errorf("standard error got %q, want the entry", &text)
	}
}

// TestTheLogGoesWhereStandardErrorDoes sets JOURNAL_STREAM as systemd does.
func TestTheLogGoesWhereStandardErrorDoes(t *testing.T) {
	for stream, want := range map[string]bool{"": false, "1:2": false, "nonsense": false, deviceAndInode(t): true} {
		t.Setenv("JOURNAL_STREAM", stream)
		if _, got := newLog(os.Stderr, slog.LevelInfo, false).(*journalHandler); got != want {
			t.Errorf("JOURNAL_STREAM=%q: in the journal %t, want %t", stream, got, want)
		}
		if _, got := newLog(os.Stderr, slog.LevelInfo, true).(*journalHandler); got {
			t.Errorf("JOURNAL_STREAM=%q: --json goes to the journal", stream)
		}
	}
}

func deviceAndInode(t *testing.T) string {
	t.Helper()
	info, err := os.Stderr.Stat()
	if err != nil {
		t.Fatal(err)
	}
	s := info.Sys().(*syscall.Stat_t)
	return strconv.FormatUint(s.Dev, 10) + ":" + strconv.FormatUint(s.Ino, 10)
}

// TestEveryEventIsInTheCatalogAndInTheCode holds three lists against each other: ids in
// the catalog, ids in events, and messages that somebody logs.
func TestEveryEventIsInTheCatalogAndInTheCode(t *testing.T) {
	text, err := os.ReadFile("../../packaging/systemd/birthmark.catalog")
	if err != nil {
		t.Fatal(err)
	}
	var catalog []string
	for _, m := range regexp.MustCompile(`(?m)^-- ([0-9a-f]{32})$`).FindAllStringSubmatch(string(text), -1) {
		catalog = append(catalog, m[1])
	}
	slices.Sort(catalog)
	if ids := slices.Sorted(maps.Values(events)); !slices.Equal(catalog, ids) {
		t.Errorf("the catalog explains\n%q, the code has\n%q", catalog, ids)
	}
	if n := strings.Count(string(text), "\nSubject: "); n != len(catalog) {
		t.Errorf("%d entries of the catalog have %d subjects", len(catalog), n)
	}
	var code strings.Builder
	for _, dir := range []string{".", "../../internal/agent", "../../pkg/telemetry"} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || path == "journal.go" {
				return err
			}
			source, err := os.ReadFile(path)
			code.Write(source)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for message := range events {
		if !strings.Contains(code.String(), strconv.Quote(message)) {
			t.Errorf("nobody logs %q", message)
		}
	}
	attribute := regexp.MustCompile(`@BIRTHMARK_([A-Z_]+)@`)
	for _, m := range attribute.FindAllStringSubmatch(string(text), -1) {
		if !strings.Contains(code.String(), strconv.Quote(strings.ToLower(m[1]))) {
			t.Errorf("the catalog speaks of %s, which nobody logs", m[0])
		}
	}
}
