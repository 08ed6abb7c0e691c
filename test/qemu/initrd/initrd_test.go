package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var good = fmt.Sprintf("verity.hash=%064x verity.salt=%064x verity.blocks=7", 1, 2)

func TestCommandLineIsRefused(t *testing.T) {
	for _, c := range []struct{ name, line, want string }{
		{"nothing", "quiet", "verity.hash is not 32 bytes in hex"},
		{"a short hash", strings.Replace(good, "=00", "=", 1), "verity.hash is not 32 bytes in hex"},
		{"no hex", strings.Replace(good, "=00", "=xx", 1), "verity.hash is not 32 bytes in hex"},
		{"no salt", strings.Replace(good, "verity.salt", "salt", 1), "verity.salt is not 32 bytes in hex"},
		{"no blocks", strings.Replace(good, "=7", "=0", 1), "verity.blocks is not a number of blocks"},
		{"too many blocks", strings.Replace(good, "=7", "=4294967296", 1), "verity.blocks is not a number of blocks"},
		{"a second hash", good + fmt.Sprintf(" verity.hash=%064x", 3), "verity.hash is on the command line twice"},
	} {
		if _, err := parseVerity(c.line); err == nil || err.Error() != c.want {
			t.Errorf("%s: got %v, want %s", c.name, err, c.want)
		}
	}
	if v, err := parseVerity("quiet " + good + "\n"); err != nil || v.blocks != 7 || v.hash[31] != 1 || v.salt[31] != 2 {
		t.Errorf("of %s: got %+v (%v)", good, v, err)
	}
}

// TestSlotIsKnownByItsTree: the name of a partition finds nothing, its content does.
func TestSlotIsKnownByItsTree(t *testing.T) {
	top := []byte(strings.Repeat("x", blockSize))
	v := verity{salt: make([]byte, 32), blocks: 2}
	sum := sha256.Sum256(append(slices.Clone(v.salt), top...))
	v.hash = sum[:]
	for _, c := range []struct {
		name string
		disk string
		want bool
	}{
		{"the release", strings.Repeat("d", 2*blockSize) + string(top), true},
		{"another", strings.Repeat("d", 2*blockSize) + strings.Repeat("y", blockSize), false},
		{"too short", strings.Repeat("d", 2*blockSize), false},
	} {
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, []byte(c.disk), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := v.rootOf(partition{node: "../" + path}); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

func TestPartitionsAreListedByName(t *testing.T) {
	class := t.TempDir()
	for name, text := range map[string]string{
		"a1/uevent": "MAJOR=259\nPARTN=2\nPARTNAME=root-a\n", "a1/dev": "259:2\n", "a1/size": "4096\n",
		"a/uevent": "MAJOR=259\n", "a/dev": "259:0\n", "a/size": "8192\n", // the disk
		"b1/uevent": "PARTNAME=data\n", "b1/dev": "259:3\n", // gone while it was looked at
	} {
		path := filepath.Join(class, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := []partition{{"root-a", "a1", "259:2", 4096}}
	if got := partitions(class); !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
