package once

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"birthmark/pkg/store"
)

// TestOneRunAtATime lets many take the same folder, each of which leaves it empty, so
// that it is removed while others wait for it.
func TestOneRunAtATime(t *testing.T) {
	f := folder(filepath.Join(t.TempDir(), "below", "out"))
	var inside, runs atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				unlock, err := f.lock()
				if errors.Is(err, store.ErrLocked) {
					continue
				}
				if err != nil {
					t.Errorf("lock: %v", err)
					return
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d are in the folder, want one", n)
				}
				if _, err := f.put("file", []byte("x")); err != nil {
					t.Errorf("the folder was taken away: %v", err)
				}
				if err := os.Remove(f.path("file")); err != nil {
					t.Error(err)
				}
				inside.Add(-1)
				runs.Add(1)
				unlock()
			}
		})
	}
	all.Wait()
	if runs.Load() == 0 {
		t.Error("nobody got in")
	}
	if _, err := os.Stat(string(f)); !os.IsNotExist(err) {
		t.Errorf("the empty folder is left: %v", err)
	}
}

func TestWhatIsInTheFolderStays(t *testing.T) {
	f := folder(t.TempDir())
	unlock, err := f.lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.lock(); !errors.Is(err, store.ErrLocked) {
		t.Errorf("a second lock: %v, want ErrLocked", err)
	}
	path, err := f.put("cert.pem", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("what was written is gone: %v", err)
	}
}
