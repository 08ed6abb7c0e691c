package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func mustOpen(tb testing.TB, dir string) *Log {
	tb.Helper()
	l, err := Open(dir)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	return l
}

func mustAppend(tb testing.TB, l *Log, events ...string) {
	tb.Helper()
	for _, e := range events {
		if err := l.Append(e, slog.String("why", "a test")); err != nil {
			tb.Fatal(err)
		}
	}
}

func mustRead(tb testing.TB, path string) []byte {
	tb.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return text
}

// events are those of the lines in text.
func events(tb testing.TB, text []byte) []string {
	tb.Helper()
	all, err := eventsOf(text)
	if err != nil {
		tb.Fatal(err)
	}
	return all
}

func eventsOf(text []byte) (all []string, err error) {
	for line := range bytes.Lines(text) {
		var e entry
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		all = append(all, e.Event)
	}
	return all, nil
}

// sound fails unless the log in dir verifies from its first line to its last.
func sound(tb testing.TB, dir string) (lines int) {
	tb.Helper()
	prev := ""
	for _, name := range []string{fileName + ".1", fileName} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		last, n, err := Verify(bytes.NewReader(text), prev)
		if err != nil {
			tb.Errorf("%s: %v", name, err)
		}
		if len(text) > fileLimit {
			tb.Errorf("%s has %d bytes, limit %d", name, len(text), fileLimit)
		}
		prev, lines = last, lines+n
	}
	return lines
}

func TestLineIsAsTheManualSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		l := mustOpen(t, dir)
		if err := l.Append("start"); err != nil {
			t.Fatal(err)
		}
		if err := l.Append("state", slog.String("to", "born"), slog.Int("n", 7), slog.Bool("ok", true), slog.Duration("after", time.Second),
			slog.Any("err", fs.ErrExist), slog.Time("at", time.Unix(0, 0)), slog.Group("in", slog.Float64("x", 0.5))); err != nil {
			t.Fatal(err)
		}
		first := `{"seq":1,"time":"2000-01-01T00:00:00Z","event":"start"}`
		second := `{"seq":2,"time":"2000-01-01T00:00:00Z","event":"state","attrs":{"to":"born","n":7,"ok":true,"after":"1s",` +
			`"err":"file already exists","at":"1970-01-01T00:00:00Z","in":{"x":"0.5"}},"prev":"` + hash([]byte(first)) + `"}`
		if got, want := string(mustRead(t, l.path())), first+"\n"+second+"\n"; got != want {
			t.Errorf("got:\n%swant:\n%s", got, want)
		}
		if info, _ := os.Stat(l.path()); info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, want 0600", info.Mode())
		}
	})
}

func TestChainGoesOnAfterARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	for n := range 5 {
		l := mustOpen(t, dir)
		mustAppend(t, l, "start", "stop")
		for range 2 {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Append("late"); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("Append after Close: %v, want ErrClosed", err)
		}
		if got := sound(t, dir); got != 2*(n+1) {
			t.Errorf("%d lines after %d starts, want %d", got, n+1, 2*(n+1))
		}
	}
}

func TestTornLineIsCutOff(t *testing.T) {
	whole := chain(t, 3)
	two := bytes.LastIndexByte(whole[:len(whole)-1], '\n') + 1
	tails := [][]byte{make([]byte, 100), append(slices.Clone(whole[two:len(whole)-20]), make([]byte, 20)...)}
	for n := two + 1; n < len(whole); n++ {
		tails = append(tails, whole[two:n])
	}
	for _, tail := range tails {
		dir := t.TempDir()
		path := filepath.Join(dir, fileName)
		if err := os.WriteFile(path, slices.Concat(whole[:two], tail), 0o600); err != nil {
			t.Fatal(err)
		}
		l := mustOpen(t, dir)
		if got := mustRead(t, path); !bytes.Equal(got, whole[:two]) {
			t.Errorf("torn after %q: Open left %q", tail, got[two:])
		}
		mustAppend(t, l, "after")
		if got := sound(t, dir); got != 3 {
			t.Errorf("torn after %q: %d lines, want 3", tail, got)
		}
		l.Close()
	}
}

func TestDamagedLogIsKeptAside(t *testing.T) {
	whole := chain(t, 4)
	half := len(whole) / 2
	for name, text := range map[string][]byte{
		"a changed byte":    slices.Concat(whole[:half], []byte{whole[half] ^ 1}, whole[half+1:]),
		"a line is missing": slices.Concat(whole[:bytes.IndexByte(whole, '\n')+1], whole[bytes.LastIndexByte(whole[:len(whole)-1], '\n')+1:]),
		"zeros inside":      slices.Concat(whole[:half], make([]byte, 50), whole[half:]),
		"too big":           bytes.Repeat([]byte("x"), fileLimit+1),
		"a long last line":  slices.Concat(whole, bytes.Repeat([]byte("x"), lineLimit)),
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, fileName)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		l := mustOpen(t, dir)
		mustAppend(t, l, "after")
		if kept := mustRead(t, path+".damaged-1"); !bytes.Equal(kept, text) {
			t.Errorf("%s: %d bytes were kept aside, want all %d", name, len(kept), len(text))
		}
		now := mustRead(t, path)
		if got := events(t, now); !slices.Equal(got, []string{"audit-damaged", "after"}) {
			t.Errorf("%s: the new log has %q", name, got)
		}
		if !bytes.Contains(now, []byte(`"attrs":{"kept":"audit.log.damaged-1","sha256":"`+hash(append(slices.Clone(text), '\n'))+`"}`)) {
			t.Errorf("%s: the new log does not name the old one's hash:\n%s", name, now)
		}
		sound(t, dir)
	}
}

func TestDamagedLogsAreBounded(t *testing.T) {
	dir := t.TempDir()
	for n := range 3 * damagedLimit {
		if err := os.WriteFile(filepath.Join(dir, fileName), fmt.Appendf(nil, "damage %d\n\n\n", n), 0o600); err != nil {
			t.Fatal(err)
		}
		mustOpen(t, dir).Close()
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != damagedLimit+1 {
		t.Errorf("%d files, want audit.log and %d kept aside", len(entries), damagedLimit)
	}
}

func TestRotationKeepsTheChain(t *testing.T) {
	dir := t.TempDir()
	reopen := func() *Log {
		t.Helper()
		l, err := open(dir, swiftDisk{}, fileLimit)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := reopen()
	long := strings.Repeat("x", valueLimit)
	n := uint64(0)
	for rotations, before := 0, int64(0); rotations < 3; before = l.size {
		n++
		if err := l.Append("long", slog.String("a", long), slog.String("b", long), slog.String("c", long), slog.String("d", long)); err != nil {
			t.Fatal(err)
		}
		if l.size < before {
			rotations++
			l.Close()
			sound(t, dir)
			l = reopen()
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 2 {
		t.Errorf("%d files after three rotations, want 2", len(entries))
	}
	// The power fails when the file was renamed and the next one not made.
	l.Close()
	if err := os.Rename(l.path(), l.path()+".1"); err != nil {
		t.Fatal(err)
	}
	l = reopen()
	defer l.Close()
	mustAppend(t, l, "goes on")
	sound(t, dir)
	if l.seq != n+1 {
		t.Errorf("the last line has number %d, want %d", l.seq, n+1)
	}
}

func TestBounds(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir)
	deep := slog.String("bottom", "x")
	for range 100 {
		deep = slog.Group("in", deep)
	}
	for name, attrs := range map[string][]slog.Attr{
		"a long value":     {slog.String("a", strings.Repeat("é", 100_000))},
		"a long name":      {slog.String(strings.Repeat("a", 100_000), "b")},
		"groups in groups": {deep},
		"no UTF-8":         {slog.String("a", "\xff\xfe")},
		"a list":           {slog.Any("a", []any{nil, 1, "x"})},
	} {
		before := l.size
		if err := l.Append("event", attrs...); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if grown := l.size - before; grown > 2*valueLimit+200 {
			t.Errorf("%s: a line of %d bytes", name, grown)
		}
	}
	var many []slog.Attr
	for range 100 {
		many = append(many, slog.String("a", strings.Repeat("x", valueLimit)))
	}
	if err := l.Append("event", many...); err == nil {
		t.Errorf("a line over %d bytes was accepted", lineLimit)
	}
	mustAppend(t, l, "after")
	sound(t, dir)
}

func TestManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() { mustAppend(t, l, "a", "b", "c", "d", "e") })
	}
	all.Wait()
	if got := sound(t, dir); got != 20 {
		t.Errorf("%d lines, want 20", got)
	}
}
