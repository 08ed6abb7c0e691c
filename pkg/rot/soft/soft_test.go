package soft_test

import (
	"os"
	"path/filepath"
	"testing"

	"birthmark/pkg/rot"
	"birthmark/pkg/rot/rottest"
	"birthmark/pkg/rot/soft"
)

func open(t *testing.T, dir string) *soft.Root {
	t.Helper()
	r, err := soft.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestKeepsThePromisesOfARoot(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "root")
	rottest.Run(t,
		func(t *testing.T) rot.Root { return open(t, dir) },
		func(t *testing.T) rot.Root { return soft.New() })
}

func TestIDevIDIsForItsOwnerOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "root")
	open(t, dir)
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "idevid.pem"): 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %v, want %v", path, got, want)
		}
	}
}

func TestRefusesADamagedFolder(t *testing.T) {
	for name, text := range map[string]string{
		"empty":  "",
		"no PEM": "hello",
		"no key": "-----BEGIN BIRTHMARK SOFTWARE KEY-----\nMAA=\n-----END BIRTHMARK SOFTWARE KEY-----\n",
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "idevid.pem")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := soft.Open(dir); err == nil {
			t.Errorf("%s: opened %v", name, r.Identity())
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("%s: the file now holds %q, %v, want it left as it was", name, got, err)
		}
	}
}

func TestSaysThatNothingProtectsAKey(t *testing.T) {
	k, err := soft.New().Create(t.Context(), rot.P256)
	if err != nil {
		t.Fatal(err)
	}
	d, ok := k.(rot.Describer)
	if !ok || len(d.Describe()) == 0 {
		t.Errorf("got a key of type %T that does not say so", k)
	}
}
