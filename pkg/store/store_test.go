package store

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

type facts struct {
	N    int               `json:"n"`
	Name string            `json:"name,omitempty"`
	List []string          `json:"list,omitempty"`
	Map  map[string]string `json:"map,omitempty"`
	Ref  *int              `json:"ref,omitempty"`
	Skip string            `json:"-"`
}

func mustOpen(tb testing.TB, dir string) *Store[facts] {
	tb.Helper()
	s, err := Open[facts](dir)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

func set(n int) func(*facts) error { return func(f *facts) error { f.N = n; return nil } }

func mustUpdate(tb testing.TB, s *Store[facts], change func(*facts) error) {
	tb.Helper()
	if err := s.Update(change); err != nil {
		tb.Fatal(err)
	}
}

// names lists a folder.
func names(tb testing.TB, dir string) string {
	tb.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		tb.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

func TestUpdateLasts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "var", "state")
	s := mustOpen(t, dir)
	if got := s.Get(); got.N != 0 || s.Damaged() != "" {
		t.Errorf("a new store holds %+v, damaged %q", got, s.Damaged())
	}
	mustUpdate(t, s, set(1))
	mustUpdate(t, s, set(2))
	s.Close()
	if got := mustOpen(t, dir).Get().N; got != 2 {
		t.Errorf("after a restart: %d, want 2", got)
	}
	if got := names(t, dir); got != "state.json" {
		t.Errorf("the folder holds %q", got)
	}
	for path, want := range map[string]fs.FileMode{dir: 0o700, filepath.Join(dir, "state.json"): 0o600} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has mode %v (%v), want %v", path, info.Mode(), err, want)
		}
	}
}

func TestChangeRefused(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	mustUpdate(t, s, set(1))
	before, _ := os.ReadFile(s.path())
	boom := errors.New("boom")
	for name, change := range map[string]func(*facts) error{
		"change says no": func(f *facts) error { f.N = 2; return boom },
		"too big":        func(f *facts) error { f.N = 2; f.Name = strings.Repeat("x", fileLimit); return nil },
	} {
		if err := s.Update(change); err == nil {
			t.Errorf("%s: no error", name)
		}
		if after, _ := os.ReadFile(s.path()); s.Get().N != 1 || !bytes.Equal(before, after) {
			t.Errorf("%s: memory %d, disk %s, want both as before", name, s.Get().N, after)
		}
	}
	if err := s.Update(func(*facts) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("got %v, want change's own error", err)
	}
}

func TestNothingIsShared(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	one := 1
	var inside *facts
	mustUpdate(t, s, func(f *facts) error {
		f.List, f.Map, f.Ref, f.Skip = []string{"a"}, map[string]string{"k": "v"}, &one, "not saved"
		inside = f
		return nil
	})
	// What a caller does to its copy, or to what it put in, is its own affair.
	one = 2
	got := s.Get()
	inside.List[0], got.Map["k"], *got.Ref = "b", "w", 3
	if now := s.Get(); now.List[0] != "a" || now.Map["k"] != "v" || *now.Ref != 1 || now.Skip != "" {
		t.Errorf("the store was changed from outside: %+v, %d", now, *now.Ref)
	}
}

func TestUpdateToTheSameWritesNothing(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	mustUpdate(t, s, set(1))
	before, _ := os.Stat(s.path())
	mustUpdate(t, s, set(1))
	if after, _ := os.Stat(s.path()); !os.SameFile(before, after) {
		t.Error("the file was written again")
	}
}

func TestCutIsCalledAroundEveryWrite(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	var seen []string
	s.Cut = func(where string) {
		_, err := os.Stat(s.path())
		seen = append(seen, where+": "+map[bool]string{true: "there", false: "not there"}[err == nil])
	}
	mustUpdate(t, s, set(1))
	if got, want := strings.Join(seen, ", "), "before write: not there, after write: there"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	// A panic in it, which stands for a power cut, locks nobody out.
	for _, where := range []string{"before write", "after write"} {
		s.Cut = func(w string) {
			if w == where {
				panic(w)
			}
		}
		func() {
			defer func() { _ = recover() }()
			_ = s.Update(func(f *facts) error { f.N++; return nil })
		}()
		s.Get()
	}
}

func TestOneAtATime(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	if _, err := Open[facts](dir); !errors.Is(err, ErrLocked) {
		t.Errorf("a second Open: got %v, want ErrLocked", err)
	}
	if _, held, err := Read[facts](dir); held || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Read of an empty store: held %v, %v, want ErrNotExist", held, err)
	}
	mustUpdate(t, s, set(7))
	if v, held, err := Read[facts](dir); v.N != 7 || !held || err != nil {
		t.Errorf("Read beside an agent: got %d, held %v, %v", v.N, held, err)
	}
	s.Close()
	if v, held, err := Read[facts](dir); v.N != 7 || held || err != nil {
		t.Errorf("Read of a free folder: got %d, held %v, %v", v.N, held, err)
	}
	if err := s.Update(set(8)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Update of a closed store: got %v, want ErrClosed", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	// A reader that looks whether the folder is held does not keep an agent out.
	peek, err := tryLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	var open sync.WaitGroup
	open.Go(func() {
		s, err := Open[facts](dir)
		if err != nil {
			t.Errorf("Open while a reader looks: %v", err)
			return
		}
		s.Close()
	})
	peek.Close()
	open.Wait()
}

func TestDamagedFileIsKeptAside(t *testing.T) {
	for name, text := range map[string]string{
		"empty":           "",
		"zeros":           strings.Repeat("\x00", 4096),
		"cut off":         `{"n": 1, "name": "dev`,
		"no object":       `[1]`,
		"null":            `null`,
		"another type":    `{"n": "one"}`,
		"two objects":     `{"n": 1}{"n": 2}`,
		"too big":         `{"n": 1, "name": "` + strings.Repeat("x", fileLimit) + `"}`,
		"nested too deep": `{"x": ` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`,
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "state.json")
		write(t, path, text)
		if _, _, err := Read[facts](dir); err == nil {
			t.Errorf("%s: Read found nothing wrong", name)
		}
		s := mustOpen(t, dir)
		if kept, err := os.ReadFile(s.Damaged()); err != nil || string(kept) != text || s.Damaged() != path+".damaged-1" {
			t.Errorf("%s: %d bytes kept as %q (%v), want all %d", name, len(kept), s.Damaged(), err, len(text))
		}
		if s.Get().N != 0 {
			t.Errorf("%s: the store holds %+v", name, s.Get())
		}
		mustUpdate(t, s, set(5))
		s.Close()
		if s = mustOpen(t, dir); s.Get().N != 5 || s.Damaged() != "" {
			t.Errorf("%s: after a restart %d, damaged %q", name, s.Get().N, s.Damaged())
		}
	}
}

func TestDamagedFilesAreBounded(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state.json")
	for n := range 2 * damagedLimit {
		write(t, path, "damage "+string(rune('a'+n)))
		s := mustOpen(t, dir)
		s.Close()
	}
	first, _ := os.ReadFile(path + ".damaged-1")
	last, _ := os.ReadFile(path + ".damaged-8")
	if string(first) != "damage a" || string(last) != "damage p" {
		t.Errorf("kept %q … %q, want the first and the last", first, last)
	}
	if n := len(strings.Fields(names(t, dir))); n != damagedLimit {
		t.Errorf("%d files kept, limit %d", n, damagedLimit)
	}
}

func TestOpenTakesOnlyAFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "state.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	if s, err := Open[facts](dir); err == nil {
		t.Errorf("a folder in the place of the file was opened, damaged %q", s.Damaged())
	}
	if err := os.Remove(filepath.Join(dir, "state.json")); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, dir) // the failed Open holds no lock
}

func TestWriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key.pem")
	for _, text := range []string{"old", "new and longer", ""} {
		write(t, path+draftSuffix, "left behind by somebody who was killed")
		if err := WriteFile(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("got %q (%v), want %q", got, err, text)
		}
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, want 0640", info.Mode())
	}
	if got := names(t, filepath.Dir(path)); got != "key.pem" {
		t.Errorf("the folder holds %q", got)
	}
	if err := WriteFile(filepath.Join(path, "below"), nil, 0o600); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("got %v, want ENOTDIR", err)
	}
	if err := SyncFolder(filepath.Dir(path)); err != nil {
		t.Error(err)
	}
	if err := SyncFolder(path + ".gone"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want ErrNotExist", err)
	}
}

func TestManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	var all sync.WaitGroup
	const each = 20
	for range 4 {
		all.Go(func() {
			for range each {
				if err := s.Update(func(f *facts) error { f.N++; return nil }); err != nil {
					t.Error(err)
				}
				s.Get()
			}
		})
	}
	all.Wait()
	if got := s.Get().N; got != 4*each {
		t.Errorf("got %d, want %d: updates were lost", got, 4*each)
	}
}

func write(tb testing.TB, path, text string) {
	tb.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
}
