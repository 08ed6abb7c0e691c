package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestTheBootLoaderIsTheOneThatIsThere: RAUC where a maker has set it up, also on UEFI.
func TestTheBootLoaderIsTheOneThatIsThere(t *testing.T) {
	for _, c := range []struct {
		has  []string
		want string
	}{
		{nil, "<nil>"},
		{[]string{"sys/firmware/efi/efivars"}, "sdboot.Installer"},
		{[]string{"etc/rauc/system.conf"}, "rauc.Installer"},
		{[]string{"sys/firmware/efi/efivars", "etc/rauc/system.conf"}, "rauc.Installer"},
	} {
		root := t.TempDir()
		for _, name := range c.has {
			if err := os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, name), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		boot, err := bootLoader(root, t.TempDir())
		if got := fmt.Sprintf("%T", boot); got != c.want || (err == nil) != (c.want != "<nil>") {
			t.Errorf("with %q: got %s, %v, want %s", c.has, got, err, c.want)
		}
	}
}
