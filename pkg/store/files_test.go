package store

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"birthmark/internal/crashdisk"
)

// two are the files of these tests, as they are to become.
var two = []File{{"cert.pem", []byte("new certificate"), 0o644}, {"key.pem", []byte("new key"), 0o600}}

func oldTwo() crashdisk.Image {
	return crashdisk.Image{"cert.pem": []byte("old certificate"), "key.pem": []byte("old key")}
}

// TestPowerCutLeavesEachFileOldOrNew cuts the power before every call of WriteFiles
// and after the last, with and without older files in the folder.
func TestPowerCutLeavesEachFileOldOrNew(t *testing.T) {
	for _, before := range []crashdisk.Image{{}, oldTwo()} {
		d := newCrashDisk(t, before)
		states := 0
		look := func(done bool) {
			for img := range d.Cut() {
				states++
				if t.Failed() {
					return // one is enough
				}
				for _, f := range two {
					got, there := img[f.Name]
					isOld := there == before.Has(f.Name) && string(got) == string(before[f.Name])
					isNew := there && string(got) == string(f.Text)
					if !isNew && (done || !isOld) {
						t.Errorf("done %t: a power cut left\n%s", done, img)
					}
				}
			}
		}
		d.Before = func(string) error { look(false); return nil }
		if err := replaceAll(d, d.Root, two); err != nil {
			t.Fatal(err)
		}
		look(true)
		if states < 50 {
			t.Errorf("only %d states were looked at", states)
		}
	}
}

// TestFailedWriteLeavesNoDraft lets each call of WriteFiles fail in turn.
func TestFailedWriteLeavesNoDraft(t *testing.T) {
	for n := 0; ; n++ {
		d := newCrashDisk(t, oldTwo())
		calls := 0
		d.Before = func(string) error {
			calls++
			if calls == n+1 {
				return syscall.ENOSPC
			}
			return nil
		}
		err := replaceAll(d, d.Root, two)
		if calls <= n {
			if err != nil {
				t.Errorf("without a failing call: %v", err)
			}
			break
		}
		if !errors.Is(err, ErrFull) || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("call %d fails: got %v, want ErrFull", n+1, err)
		}
		if got := names(t, d.Root); got != "cert.pem key.pem" {
			t.Errorf("call %d fails: the folder holds %q", n+1, got)
		}
	}
}

func TestWriteFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "key.pem"+draftSuffix), "left behind by somebody who was killed")
	for range 2 {
		if err := WriteFiles(dir, two...); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range two {
		text, err := os.ReadFile(filepath.Join(dir, f.Name))
		info, statErr := os.Stat(filepath.Join(dir, f.Name))
		if err != nil || statErr != nil || string(text) != string(f.Text) || info.Mode().Perm() != f.Mode {
			t.Errorf("%s: got %q, %v (%v), want %q, %v", f.Name, text, info.Mode(), err, f.Text, f.Mode)
		}
	}
	if got := names(t, dir); got != "cert.pem key.pem" {
		t.Errorf("the folder holds %q", got)
	}
	if err := WriteFiles(filepath.Join(dir, "gone"), two...); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a folder that is not there: got %v, want ENOENT", err)
	}
}
