package image

import (
	"os"
	"strings"
	"testing"
)

func TestRootfsIsKept(t *testing.T) {
	dir, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		get  func() (string, error)
	}{
		{"rootfs", func() (string, error) { return Rootfs(t.Context(), dir) }},
		{"rootfs-test", func() (string, error) { return TestRootfs(t.Context(), dir) }},
		{"kernel", func() (string, error) { return Kernel(t.Context(), dir) }},
	} {
		first, err := c.get()
		if err != nil {
			t.Fatal(err)
		}
		made, err := os.Stat(first)
		if err != nil {
			t.Fatal(err)
		}
		second, err := c.get()
		if err != nil {
			t.Fatal(err)
		}
		again, err := os.Stat(second)
		if err != nil {
			t.Fatal(err)
		}
		if second != first || !os.SameFile(made, again) || !strings.HasPrefix(second, dir) {
			t.Errorf("%s: made at %s, and then again at %s", c.name, first, second)
		}
	}
}
