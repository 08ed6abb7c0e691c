package image

import (
	"bytes"
	"os"
	"testing"
)

// TestTwoBuildsAreTheSame holds that root file system and release are the same, byte
// for byte, when they are built in two folders.
func TestTwoBuildsAreTheSame(t *testing.T) {
	var built [2]*Image
	keys := t.TempDir()
	for i := range built {
		dir := t.TempDir()
		if err := os.Symlink(keys, dir+"/keys"); err != nil {
			t.Fatal(err)
		}
		img, err := Build(t.Context(), Options{Dir: dir, Version: "1.0.0+sv1", Epoch: 1_700_000_000, Test: true})
		if err != nil {
			t.Fatal(err)
		}
		built[i] = img
	}
	for _, c := range []struct{ name, first, second string }{
		{"root file system", built[0].Root, built[1].Root},
		{"release", built[0].Release, built[1].Release},
	} {
		first, err := os.ReadFile(c.first)
		if err != nil {
			t.Fatal(err)
		}
		second, err := os.ReadFile(c.second)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first, second) {
			at := 0
			for at < min(len(first), len(second)) && first[at] == second[at] {
				at++
			}
			t.Errorf("%s: differs from byte %d on; %d and %d bytes", c.name, at, len(first), len(second))
		}
	}
}
