package audit

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// A swiftDisk makes nothing durable.
type swiftDisk struct{ realDisk }

type swiftFile struct{ file }

func (swiftFile) Sync() error                 { return nil }
func (swiftDisk) syncFolder(string) error     { return nil }
func (swiftDisk) open(p string) (file, error) { f, err := realDisk{}.open(p); return swiftFile{f}, err }

// A brokenDisk lets calls fail when asked.
type brokenDisk struct {
	swiftDisk
	fail func(call string) error
}

type brokenFile struct {
	file
	disk *brokenDisk
}

func (d *brokenDisk) open(path string) (file, error) {
	if err := d.fail("open"); err != nil {
		return nil, err
	}
	f, err := d.swiftDisk.open(path)
	return brokenFile{f, d}, err
}

func (d *brokenDisk) rename(from, to string) error {
	if err := d.fail("rename"); err != nil {
		return err
	}
	return d.swiftDisk.rename(from, to)
}

func (d *brokenDisk) syncFolder(string) error { return d.fail("sync folder") }

func (f brokenFile) Write(b []byte) (int, error) {
	if err := f.disk.fail("write"); err != nil {
		n, _ := f.file.Write(b[:len(b)/2])
		return n, err
	}
	return f.file.Write(b)
}

func (f brokenFile) Sync() error { return f.disk.fail("sync") }

func (f brokenFile) Truncate(size int64) error {
	if err := f.disk.fail("truncate"); err != nil {
		return err
	}
	return f.file.Truncate(size)
}

func TestFailedAppendLeavesTheLogAppendable(t *testing.T) {
	failed := map[string]bool{}
	for _, stays := range []bool{false, true} {
		for _, rotate := range []bool{false, true} {
			for n := 1; ; n++ {
				call := failedAppend(t, n, stays, rotate)
				if call == "" {
					break
				}
				failed[call] = true
			}
		}
	}
	for _, call := range []string{"open", "rename", "sync folder", "write", "sync"} {
		if !failed[call] {
			t.Errorf("%s never failed", call)
		}
	}
}

// failedAppend lets the nth call of an Append fail, and all that follow if it
// stays; rotate makes that Append rotate. It says which call failed first.
func failedAppend(t *testing.T, n int, stays, rotate bool) (call string) {
	dir := t.TempDir()
	calls, on := 0, false
	d := &brokenDisk{fail: func(c string) error {
		if !on {
			return nil
		}
		if calls++; calls < n || calls > n && !stays {
			return nil
		}
		if call == "" {
			call = c
		}
		return syscall.ENOSPC
	}}
	l, err := open(dir, d, fileLimit)
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, "before")
	if rotate {
		for l.size+1500 < fileLimit {
			n := min((fileLimit-l.size-200)/(valueLimit+10), 12)
			if err := l.Append("long", slices.Repeat([]slog.Attr{slog.String("a", strings.Repeat("x", valueLimit))}, int(n))...); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := mustRead(t, l.path())
	on = true
	seq := l.seq
	err = l.Append("lost", slog.String("a", strings.Repeat("x", valueLimit)), slog.String("b", strings.Repeat("y", valueLimit)))
	if (err != nil) != (call != "") || err != nil && (!errors.Is(err, syscall.ENOSPC) || l.seq != seq) {
		t.Errorf("%s, call %d: Append returned %v", call, n, err)
	}
	on = false
	if (call == "write" || call == "sync") && !stays && !rotate && !bytes.Equal(mustRead(t, l.path()), before) {
		t.Errorf("%s, call %d: the log is not as it was", call, n)
	}
	mustAppend(t, l, "after")
	sound(t, dir)
	// The process that is killed now leaves no more and no less.
	again := mustOpen(t, dir)
	if again.seq != l.seq || again.last != l.last {
		t.Errorf("%s, call %d: after a restart the log ends at %d, want %d", call, n, again.seq, l.seq)
	}
	if text := mustRead(t, l.path()); call != "" && bytes.Contains(text, []byte(`"lost"`)) {
		t.Errorf("%s, call %d: a line whose Append failed is in the log", call, n)
	}
	l.Close()
	return call
}

func TestFailedOpenLosesNothing(t *testing.T) {
	const damaged = "x\n\n\n"
	for name, tc := range map[string]struct {
		text string
		want []string // events after the next start
	}{
		"empty":   {"", []string{"after"}},
		"torn":    {`{"seq"`, []string{"after"}},
		"damaged": {damaged, []string{"audit-damaged", "after"}},
	} {
		for n, call := 1, "?"; call != ""; n++ {
			dir := t.TempDir()
			path := filepath.Join(dir, fileName)
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			call = ""
			calls := 0
			d := &brokenDisk{fail: func(c string) error {
				if calls++; calls != n {
					return nil
				}
				call = c
				return syscall.EIO
			}}
			if l, err := open(dir, d, fileLimit); call != "" && !errors.Is(err, syscall.EIO) {
				t.Errorf("%s, %s failed: Open returned %v, want EIO", name, call, err)
			} else if err == nil {
				l.Close()
			}
			l := mustOpen(t, dir)
			mustAppend(t, l, "after")
			sound(t, dir)
			if got := events(t, mustRead(t, path)); !slices.Equal(got, tc.want) {
				t.Errorf("%s, %s failed: the log has %q, want %q", name, call, got, tc.want)
			}
			if tc.text == damaged && string(mustRead(t, path+".damaged-1")) != damaged {
				t.Errorf("%s, %s failed: the damaged log is gone", name, call)
			}
			if entries, _ := os.ReadDir(dir); len(entries) != len(tc.want) {
				t.Errorf("%s, %s failed: %d files, want %d", name, call, len(entries), len(tc.want))
			}
		}
	}
}
