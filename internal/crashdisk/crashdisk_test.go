package crashdisk

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// A script is calls of a disk, one after another; the first that fails ends it.
type script func(d *Disk, path func(string) string) error

const anew = os.O_WRONLY | os.O_CREATE | os.O_EXCL

// put writes a new file and perhaps syncs it.
func put(d *Disk, path, text string, sync bool) error {
	f, err := d.OpenFile(path, anew, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write([]byte(text)); err != nil {
		return err
	}
	if sync {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return f.Close()
}

// left are the different images that a power cut may leave after a script on a disk
// that held img.
func left(t *testing.T, img Image, do script) map[string]bool {
	t.Helper()
	d := New(t, img)
	if err := do(d, func(name string) string { return filepath.Join(d.Root, name) }); err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for img := range d.Cut() {
		all[img.String()] = true
	}
	return all
}

// TestTextbook holds the model against what is known of ways to replace a file "f", that
// holds "old", by "new".
func TestTextbook(t *testing.T) {
	const old, made, torn, lost = `f: "old"`, `f: "new"`, "torn", "lost"
	write := func(sync, syncFolder bool) script {
		return func(d *Disk, path func(string) string) error {
			err := errors.Join(put(d, path("f.new"), "new", sync), d.Rename(path("f.new"), path("f")))
			if syncFolder {
				err = errors.Join(err, d.SyncFolder(d.Root))
			}
			return err
		}
	}
	for name, c := range map[string]struct {
		do   script
		want []string
	}{
		"nothing": {func(*Disk, func(string) string) error { return nil }, []string{old}},
		"in place": {func(d *Disk, path func(string) string) error {
			f, err := d.OpenFile(path("f"), os.O_WRONLY|os.O_TRUNC, 0)
			if err != nil {
				return err
			}
			_, err = f.Write([]byte("new"))
			return errors.Join(err, f.Close())
		}, []string{made, old, torn}},
		"renamed, nothing synced":    {write(false, false), []string{made, old, torn}},
		"renamed, the folder synced": {write(false, true), []string{made, torn}},
		"renamed, the file synced":   {write(true, false), []string{made, old}},
		"renamed, both synced":       {write(true, true), []string{made}},
		"removed before it was made anew": {func(d *Disk, path func(string) string) error {
			return errors.Join(d.Remove(path("f")), put(d, path("f"), "new", true))
		}, []string{made, old, lost}},
	} {
		found := map[string]bool{}
		for img := range left(t, Image{"f": []byte("old")}, c.do) {
			of := lost
			for line := range strings.Lines(img) {
				line = strings.TrimSuffix(line, "\n")
				if line == old || line == made {
					of = line
				} else if strings.HasPrefix(line, "f:") {
					of = torn
				}
			}
			found[of] = true
		}
		if got := slices.Sorted(maps.Keys(found)); !slices.Equal(got, c.want) {
			t.Errorf("%s: a power cut leaves %q, want %q", name, got, c.want)
		}
	}
}

// TestTorn holds what may be read from a file whose first half was synced.
func TestTorn(t *testing.T) {
	found := left(t, Image{"f": []byte("aa")}, func(d *Disk, path func(string) string) error {
		f, err := d.OpenFile(path("f"), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.Write([]byte("bcde"))
		return err
	})
	for text, want := range map[string]bool{
		"aa": true, "aab": true, "aabcd": true, "aabcde": true,
		"aa\x00\x00\x00\x00": true, "aa\x00cde": true, "aab\x00d\x00": true, "aab\x00de": true,
		"": false, "a": false, "\x00abcde": false, "aabcdef": false, "aacb": false,
	} {
		if got := found[Image{"f": []byte(text)}.String()]; got != want {
			t.Errorf("%q may be found: got %t, want %t", text, got, want)
		}
	}
}

// TestOverwritten: a file that was cut short and written to again may hold what was
// there before, until it is synced.
func TestOverwritten(t *testing.T) {
	for _, sync := range []bool{false, true} {
		found := left(t, Image{"f": []byte("aaxyz")}, func(d *Disk, path func(string) string) error {
			f, err := d.OpenFile(path("f"), os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			if err := f.Truncate(2); err != nil {
				return err
			}
			if sync {
				err = f.Sync()
			}
			_, werr := f.Write([]byte("bcd"))
			return errors.Join(err, werr)
		})
		for text, want := range map[string]bool{
			"aa": true, "aabcd": true, "aab\x00d": true,
			"aaxyz": !sync, "aabyd": !sync, "aaxcd": !sync,
		} {
			if got := found[Image{"f": []byte(text)}.String()]; got != want {
				t.Errorf("synced in between %t: %q may be found: got %t, want %t", sync, text, got, want)
			}
		}
	}
}

// TestNamesAreIndependent: of two moves that are not synced either may be lost.
func TestNamesAreIndependent(t *testing.T) {
	img := Image{"a": []byte("1"), "b": []byte("2"), "other": nil}
	move := func(d *Disk, path func(string) string) error {
		return errors.Join(d.Rename(path("a"), path("a.moved")), d.Rename(path("b"), path("b.moved")), d.SyncFolder(path("other")))
	}
	if got := left(t, img, move); len(got) != 4 {
		t.Errorf("two moves and the sync of another folder: %d images, want 4: %q", len(got), slices.Sorted(maps.Keys(got)))
	}
	if got := left(t, img, func(d *Disk, path func(string) string) error {
		return errors.Join(move(d, path), d.SyncFolder(d.Root))
	}); len(got) != 1 {
		t.Errorf("two moves and the sync of their folder: %d images, want 1: %q", len(got), slices.Sorted(maps.Keys(got)))
	}
}

// TestLostFolder: what is in a folder is synced with it, and lost with it.
func TestLostFolder(t *testing.T) {
	inside := func(d *Disk, path func(string) string) error {
		return errors.Join(d.Mkdir(path("x"), 0o700), put(d, path("x/f"), "1", true), d.SyncFolder(path("x")))
	}
	got := left(t, Image{}, inside)
	if want := map[string]bool{"": true, "x/\nx/f: \"1\"\n": true}; !maps.Equal(got, want) {
		t.Errorf("the folder's own name is not synced: got %v, want %v", got, want)
	}
}

func TestIdleCallsDoNothing(t *testing.T) {
	for idle, want := range map[string]int{"": 1, Sync: 3, SyncFolder: 2} {
		got := left(t, Image{}, func(d *Disk, path func(string) string) error {
			d.Idle = idle
			return errors.Join(put(d, path("f"), "1", true), d.SyncFolder(d.Root))
		})
		if len(got) != want {
			t.Errorf("%q is idle: %d images, want %d: %q", idle, len(got), want, slices.Sorted(maps.Keys(got)))
		}
	}
}

// TestEveryCallCanFail: a call that is to fail returns that error and, but for half a
// Write and for Close, does nothing.
func TestEveryCallCanFail(t *testing.T) {
	failed := map[string]bool{}
	for n := 1; ; n++ {
		d := New(t, Image{"old": []byte("old")})
		path := func(name string) string { return filepath.Join(d.Root, name) }
		calls, call := 0, ""
		d.Before = func(c string) error {
			if calls++; calls == n {
				call = c
				return syscall.EIO
			}
			return nil
		}
		var err error
		step := func(do func() error) {
			if err == nil {
				err = do()
			}
		}
		var f *File
		step(func() error { return d.Mkdir(path("x"), 0o700) })
		step(func() (err error) { f, err = d.OpenFile(path("x/f"), anew, 0o600); return err })
		step(func() error { _, err := f.Write([]byte("1234")); return err })
		step(func() error { return f.Truncate(3) })
		step(func() error { return f.Sync() })
		step(func() error { return f.Close() })
		step(func() error { return d.Rename(path("x/f"), path("x/g")) })
		step(func() error { return d.SyncFolder(path("x")) })
		step(func() error { return d.Remove(path("old")) })
		if call == "" {
			if err != nil {
				t.Errorf("without a failing call: %v", err)
			}
			break
		}
		failed[call] = true
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("%s failed, and returned %v", call, err)
		}
		want := map[string]string{
			Mkdir: "", Open: "x/", Write: "x/f: 12", Truncate: "x/f: 1234", Sync: "x/f: 123",
			Close: "x/f: 123", Rename: "x/f: 123", SyncFolder: "x/g: 123", Remove: "x/g: 123",
		}[call]
		if got := inside(d.Root); got != want {
			t.Errorf("%s failed, and there is %q, want %q", call, got, want)
		}
	}
	if len(failed) != 9 {
		t.Errorf("only %q failed", slices.Sorted(maps.Keys(failed)))
	}
}

// inside is what TestEveryCallCanFail has made.
func inside(root string) string {
	for _, name := range []string{"x/f", "x/g"} {
		if text, err := os.ReadFile(filepath.Join(root, name)); err == nil {
			return fmt.Sprintf("%s: %s", name, text)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "x")); err == nil {
		return "x/"
	}
	return ""
}

// TestOutsideOfTheModel: a test that does what the model does not know is told so.
func TestOutsideOfTheModel(t *testing.T) {
	for name, do := range map[string]script{
		"a file is overwritten": func(d *Disk, path func(string) string) error {
			_, err := d.OpenFile(path("f"), os.O_WRONLY, 0)
			return err
		},
		"a file is made longer": func(d *Disk, path func(string) string) error {
			f, err := d.OpenFile(path("f"), os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			return f.Truncate(100)
		},
		"a folder is renamed":        func(d *Disk, path func(string) string) error { return d.Rename(path("x"), path("y")) },
		"to another folder":          func(d *Disk, path func(string) string) error { return d.Rename(path("f"), path("x/f")) },
		"outside of the disk's root": func(d *Disk, path func(string) string) error { return d.Mkdir(path("../crashdisk-out"), 0o700) },
	} {
		d := New(t, Image{"f": []byte("1"), "x": nil})
		path := func(name string) string { return filepath.Join(d.Root, name) }
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			_ = do(d, path)
		}()
	}
}

// TestSurvey: each image is looked at once for the same promise, and after a few faults
// nothing more is.
func TestSurvey(t *testing.T) {
	for fault, c := range map[string]struct{ looks, cuts int }{"": {4, 6}, "wrong": {enough, 5}} {
		d := New(t, Image{})
		if err := put(d, filepath.Join(d.Root, "f"), "1", true); err != nil {
			t.Fatal(err)
		}
		var s Survey
		looks := 0
		for _, promise := range []string{"a", "a", "b"} {
			s.Look(d, promise, func(Image) string { looks++; return fault })
		}
		if looks != c.looks || s.Cuts != c.cuts || s.Done() != (fault != "") {
			t.Errorf("fault %q: %d looks, %d cuts, done %t, want %+v", fault, looks, s.Cuts, s.Done(), c)
		}
	}
}
