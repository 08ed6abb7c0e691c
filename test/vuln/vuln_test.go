package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestOnlyCalledCodeCounts(t *testing.T) {
	const looked = `{"config": {"scan_level": "symbol"}} `
	const required = `{"finding": {"osv": "GO-1", "fixed_version": "v2", "trace": [{"module": "m", "version": "v1"}]}} `
	const imported = `{"finding": {"osv": "GO-1", "trace": [{"module": "m", "version": "v1", "package": "m/p"}]}} `
	const called = `{"finding": {"osv": "GO-1", "trace": [{"module": "m", "package": "m/p", "function": "F"}, {"module": "birthmark", "function": "main"}]}} `
	for _, c := range []struct {
		name, stream string
		found, calls int
	}{
		{"nothing", looked, 0, 0},
		{"module required", looked + required, 1, 0},
		{"package imported", looked + required + imported, 1, 0},
		{"function called", looked + required + imported + called, 1, 1},
		{"called, and said first", looked + called + required, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			all, err := parse([]byte(c.stream))
			if err != nil {
				t.Fatal(err)
			}
			if len(all) != c.found || all.calls() != c.calls || all.called("GO-1") != (c.calls > 0) {
				t.Errorf("got %v, want %d entries and %d calls", all, c.found, c.calls)
			}
		})
	}
}

func TestSilenceIsNoVerdict(t *testing.T) {
	for _, stream := range []string{
		"",
		`{"config": {"scan_level": "module"}}`,
		`{"config": {"scan_level": "symbol"}} {"finding": `,
	} {
		if all, err := parse([]byte(stream)); err == nil {
			t.Errorf("%q was read as %v, want an error", stream, all)
		}
	}
}

func TestDatabase(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "some where", "vulndb")
	write(t, filepath.Join(folder, "index", "db.json"), `{"modified": "2026-08-21T20:38:00Z"}`)
	tar := filepath.Join(dir, "db.tar.xz")
	if out, err := exec.Command("tar", "-C", dir, "-cJf", tar, "some where").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, place := range []string{folder, dir, tar} {
		db, err := openDatabase(place, t.TempDir())
		if err != nil {
			t.Errorf("%s: %v", place, err)
			continue
		}
		if got := db.modified.Format("2006-01-02"); got != "2026-08-21" {
			t.Errorf("%s: made on %s, want 2026-08-21", place, got)
		}
		if _, err := os.Stat(filepath.Join(db.folder, "index", "db.json")); err != nil {
			t.Errorf("%s: %v", place, err)
		}
	}
	if got, want := (database{folder: "/a b"}).url(), "file:///a%20b"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestNoDatabase(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "empty", "README"), "")
	write(t, filepath.Join(dir, "undated", "index", "db.json"), "{}")
	write(t, filepath.Join(dir, "text"), "not a tar")
	for place, missing := range map[string]bool{"": true, "nowhere": true, "empty": false, "undated": false, "text": false} {
		if place != "" {
			place = filepath.Join(dir, place)
		}
		err := run(place, nil)
		if err == nil || errors.Is(err, errNoDatabase) != missing {
			t.Errorf("VULNDB=%q: got %v, want an error (exit code 3: %v)", strings.TrimPrefix(place, dir), err, missing)
		}
	}
	if err := run("none", nil); err != nil {
		t.Errorf("VULNDB=none: %v", err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
