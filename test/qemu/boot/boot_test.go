package boot

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// newESP is an EFI system partition with some files, made with mtools.
func newESP(t testing.TB, files map[string]string) []byte {
	t.Helper()
	dir := t.TempDir()
	esp := filepath.Join(dir, "esp")
	run := func(program string, args ...string) {
		t.Helper()
		if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", program, err, out)
		}
	}
	run("/usr/sbin/mkfs.vfat", "-C", "-F", "32", esp, fmt.Sprint(34<<10))
	run("mmd", "-i", esp, "::EFI", "::EFI/Linux", "::EFI/Linux/birthmark_9.0.0+sv9.efi")
	for name, text := range files {
		path := filepath.Join(dir, "file")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		run("mcopy", "-i", esp, path, "::EFI/Linux/"+name)
	}
	text, err := os.ReadFile(esp)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func names(entries []Entry) (all []string) {
	for _, e := range entries {
		all = append(all, e.Name)
	}
	return all
}

// TestOrder: what is started first is in front, and what is none is not there.
func TestOrder(t *testing.T) {
	esp := newESP(t, map[string]string{
		"birthmark_1.0.0+sv1+3.efi":    "old",
		"birthmark_1.10.0+sv1+0-3.efi": "bad",
		"birthmark_1.9.0+sv1+1-2.efi":  "tried",
		"birthmark_1.2.0+sv1.efi":      "not counted",
		"birthmark_1.9.0+sv1+2-1.EFI":  "its other name",
		".birthmark_2.0.0+sv1.new":     "a draft",
		"birthmark_3.0.0+sv1+3.efi":    "",
	})
	entries, err := Entries(bytes.NewReader(esp))
	want := []string{"birthmark_1.9.0+sv1+2-1.EFI", "birthmark_1.9.0+sv1+1-2.efi", "birthmark_1.2.0+sv1.efi", "birthmark_1.0.0+sv1+3.efi", "birthmark_1.10.0+sv1+0-3.efi"}
	if got := names(entries); err != nil || !slices.Equal(got, want) {
		t.Fatalf("got %q (%v), want %q", got, err, want)
	}
	if e := entries[1]; !e.Counted || e.Left != 1 || e.Done != 2 || e.Version.String() != "1.9.0+sv1" || string(e.Program) != "tried" {
		t.Errorf("got %+v", e)
	}
	if e := entries[2]; e.Counted {
		t.Errorf("without a counter: got %+v", e)
	}
}

// TestContents: a file is read whole, also one in pieces, and no further than its chain goes.
func TestContents(t *testing.T) {
	large := string(bytes.Repeat([]byte("0123456789abcde\n"), 20000))
	esp := newESP(t, map[string]string{"birthmark_1.0.0+sv1+3.efi": large})
	v, err := open(bytes.NewReader(esp))
	if err != nil {
		t.Fatal(err)
	}
	read := func() []byte {
		t.Helper()
		entries, err := Entries(bytes.NewReader(esp))
		if err != nil || len(entries) != 1 {
			t.Fatalf("got %d entries (%v), want 1", len(entries), err)
		}
		return entries[0].Program
	}
	if got := read(); string(got) != large {
		t.Fatalf("got %d bytes, want %d", len(got), len(large))
	}
	files, err := v.folder("efi", "linux")
	if err != nil {
		t.Fatal(err)
	}
	first := files[slices.IndexFunc(files, func(f file) bool { return f.size > 0 })].first
	fat := int(32 * 512) // reserved sectors, as mkfs.vfat has them
	set := func(cluster, next uint32) {
		copy(esp[fat+4*int(cluster):], []byte{byte(next), byte(next >> 8), byte(next >> 16), byte(next >> 24)})
	}
	// Its third cluster moves to the end of the file system.
	free := uint32(60000)
	copy(esp[v.data+int64(free-2)*v.cluster:], large[2*v.cluster:3*v.cluster])
	set(first+1, free)
	set(free, first+3)
	clear(esp[v.data+int64(first)*v.cluster : v.data+int64(first+1)*v.cluster])
	if got := read(); string(got) != large {
		t.Errorf("in pieces: got %d other bytes", len(got))
	}
	set(free, 0)
	if got := read(); string(got) != large[:3*v.cluster] {
		t.Errorf("cut off after 3 clusters: got %d bytes, want %d", len(got), 3*v.cluster)
	}
	set(free, first) // round and round
	if got := read(); len(got) != len(large) {
		t.Errorf("a chain without end: got %d bytes", len(got))
	}
}

func TestNoFileSystem(t *testing.T) {
	for name, esp := range map[string][]byte{"zeros": make([]byte, 4096), "nothing": nil, "the half": newESP(t, nil)[:40<<10]} {
		if entries, err := Entries(bytes.NewReader(esp)); err == nil {
			t.Errorf("%s: got %q", name, names(entries))
		}
	}
}

func FuzzEntries(f *testing.F) {
	esp := newESP(f, map[string]string{"birthmark_1.0.0+sv1+3.efi": "old"})
	for _, at := range []int{13, 36, 44, 32 * 512} {
		f.Add(at, []byte{1, 2, 3})
	}
	f.Fuzz(func(t *testing.T, at int, change []byte) {
		_, _ = Entries(patched{bytes.NewReader(esp), at, change}) // ends
	})
}

// A patched one has other bytes somewhere.
type patched struct {
	*bytes.Reader
	at     int
	change []byte
}

func (p patched) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.Reader.ReadAt(b, off)
	for i := range b[:n] {
		if at := off + int64(i) - int64(p.at); at >= 0 && at < int64(len(p.change)) {
			b[i] = p.change[at]
		}
	}
	return n, err
}
