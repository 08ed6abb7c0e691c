// Package swtpmtest gives every test a TPM of its own, in software.
//
// Making a TPM takes a second, powering one on takes 10 ms. So one is made per
// process at first use, and every [Start] powers on a fresh copy of it: all of
// them are the same TPM, as if it had been cleared in between. A test that needs
// another one has [StartOther].
package swtpmtest

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"birthmark/internal/swtpm"
)

// Start powers on a copy of this process's TPM in a folder of its own, until the
// test ends.
func Start(tb testing.TB) *swtpm.TPM {
	tb.Helper()
	return start(tb, first())
}

// StartOther is Start for a TPM with other endorsement keys.
func StartOther(tb testing.TB) *swtpm.TPM {
	tb.Helper()
	return start(tb, second())
}

// StartBare is Start for a TPM that is like no other, and whose maker gave it no
// endorsement key and no certificate.
func StartBare(tb testing.TB) *swtpm.TPM {
	tb.Helper()
	return start(tb, made{}) // swtpm makes the state that is missing
}

// Dir returns a folder with a copy of this process's TPM that is not powered on.
// Its path is short enough for a socket, and it goes away when the test ends.
func Dir(tb testing.TB) string {
	tb.Helper()
	return folder(tb, first())
}

var first, second = sync.OnceValue(manufacture), sync.OnceValue(manufacture)

// A made TPM is kept in memory, since nobody would remove its folder.
type made struct {
	state map[string][]byte // files of dir/tpm
	err   error
}

func manufacture() made {
	dir, err := os.MkdirTemp("", "bm-tpm")
	if err != nil {
		return made{err: err}
	}
	defer os.RemoveAll(dir)
	if err := swtpm.Manufacture(context.Background(), dir); err != nil {
		return made{err: err}
	}
	files, err := filepath.Glob(filepath.Join(dir, "tpm", "*.permall"))
	state := make(map[string][]byte)
	for _, name := range files {
		b, readErr := os.ReadFile(name)
		if readErr != nil {
			return made{err: readErr}
		}
		state[filepath.Base(name)] = b
	}
	return made{state, err}
}

func start(tb testing.TB, m made) *swtpm.TPM {
	tb.Helper()
	t, err := swtpm.Start(context.Background(), folder(tb, m))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(t.Kill)
	return t
}

func folder(tb testing.TB, m made) string {
	tb.Helper()
	if m.err != nil {
		tb.Fatal(m.err)
	}
	// Not tb.TempDir: its path holds the name of the test and is soon too long
	// for a socket.
	dir, err := os.MkdirTemp("", "bm-tpm")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Mkdir(filepath.Join(dir, "tpm"), 0o700); err != nil {
		tb.Fatal(err)
	}
	for name, b := range m.state {
		if err := os.WriteFile(filepath.Join(dir, "tpm", name), b, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	return dir
}
