package ca

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func newPassword(tb testing.TB, p Passwords, id string) string {
	tb.Helper()
	text, err := p.New(id)
	if err != nil {
		tb.Fatal(err)
	}
	return text
}

func TestAPasswordOpensTheDoorForOneKey(t *testing.T) {
	dir := t.TempDir()
	p := PasswordsIn(dir)
	text := newPassword(t, p, "dev-1")
	mine, other := []byte("my key"), []byte("another key")
	for _, step := range []struct {
		name     string
		id, text string
		key      []byte
		want     error
	}{
		{"a wrong one", "dev-1", text + "x", other, ErrPassword},
		{"an empty one", "dev-1", "", other, ErrPassword},
		{"another device's", "dev-2", text, other, ErrPassword},
		{"a path", "../passwords/dev-1", text, other, ErrPassword},
		{"the first use", "dev-1", text, mine, nil},
		{"the second use", "dev-1", text, mine, nil},
		{"another key", "dev-1", text, other, ErrBound},
		{"another key with a wrong one", "dev-1", "x", other, ErrPassword},
		{"the third use", "dev-1", text, mine, nil},
	} {
		// As another process would see it, or this one after a restart.
		if err := PasswordsIn(dir).Bind(step.id, step.text, step.key); !errors.Is(err, step.want) {
			t.Errorf("%s: got %v, want %v", step.name, err, step.want)
		}
	}
	next := newPassword(t, p, "dev-1")
	if err := p.Bind("dev-1", text, mine); err != ErrPassword {
		t.Errorf("a replaced password: got %v, want %v", err, ErrPassword)
	}
	if err := p.Bind("dev-1", next, other); err != nil {
		t.Errorf("the new password, with another key: %v", err)
	}
}

func TestVerifyBindsNothing(t *testing.T) {
	p := PasswordsIn(t.TempDir())
	if err := p.Verify("dev-1", "x"); err != ErrPassword {
		t.Errorf("before there is any: got %v, want %v", err, ErrPassword)
	}
	if err := p.Bind("dev-1", "x", nil); err != ErrPassword {
		t.Errorf("before there is any, Bind: got %v, want %v", err, ErrPassword)
	}
	text := newPassword(t, p, "dev-1")
	if err := p.Verify("dev-1", text); err != nil {
		t.Error(err)
	}
	if err := p.Verify("dev-1", text[1:]); err != ErrPassword {
		t.Errorf("a wrong one: got %v, want %v", err, ErrPassword)
	}
	if err := p.Bind("dev-1", text, []byte("any key")); err != nil {
		t.Errorf("after Verify, Bind: %v", err)
	}
}

func TestAPasswordIsNotOnTheDisk(t *testing.T) {
	dir := t.TempDir()
	text := newPassword(t, PasswordsIn(dir), "dev-1")
	if len(text) < 26 { // of base 32
		t.Errorf("%d characters, want 128 bits", len(text))
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		kept, err := os.ReadFile(path)
		if strings.Contains(string(kept), text) {
			t.Errorf("%s holds the password", path)
		}
		if info, _ := d.Info(); info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, want one that only its owner reads", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, id := range []string{"", "operator", "a/b", "..", strings.Repeat("a", 65)} {
		if _, err := PasswordsIn(t.TempDir()).New(id); err == nil {
			t.Errorf("a password was made for %q", id)
		}
	}
	if _, err := PasswordsIn(filepath.Join(t.TempDir(), "typo")).New("dev-1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a CA's folder: got %v, want that it is not there", err)
	}
}

func TestOfManyKeysAtOnceOneWins(t *testing.T) {
	p := PasswordsIn(t.TempDir())
	text := newPassword(t, p, "dev-1")
	var won atomic.Int32
	var all sync.WaitGroup
	for n := range 20 {
		all.Go(func() {
			switch err := p.Bind("dev-1", text, []byte{byte(n)}); {
			case err == nil:
				won.Add(1)
			case err != ErrBound:
				t.Error(err)
			}
		})
	}
	all.Wait()
	if won.Load() != 1 {
		t.Errorf("%d keys were accepted, want 1", won.Load())
	}
}
