package squashfs_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"birthmark/pkg/fota/bundle/squashfs"
)

// mksquashfs returns the file system that mksquashfs makes of a folder.
func mksquashfs(t testing.TB, folder string, args ...string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "image")
	cmd := exec.Command("mksquashfs", append([]string{folder, out, "-quiet", "-no-progress", "-processors", "1"}, args...)...)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs %q: %v\n%s", args, err, text)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// folder makes a folder of these files.
func folder(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

var words = strings.Fields("birth mark device owner maker signed firmware slot update trial healthy rollback floor counter broker")

// text is n bytes that can be packed, others for each seed.
func text(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = append(b, words[r.IntN(len(words))]...)
	}
	return b[:n]
}

// noise is n bytes that cannot be packed.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// samples are files of each size at which something changes, for blocks of that size.
func samples(block int) map[string][]byte {
	sparse := make([]byte, 6*block+100)
	copy(sparse[2*block+10:], text(7, block))
	copy(sparse[6*block:], "end")
	return map[string][]byte{
		"empty":       {},
		"one":         {'1'},
		"block-1":     text(1, block-1),
		"block":       text(2, block),
		"block+1":     text(3, block+1),
		"blocks":      text(4, 3*block+99),
		"noise":       noise(2*block + 77),
		"sparse":      sparse,
		"zeros":       make([]byte, 3*block),
		"zeros+1":     make([]byte, 3*block+1),
		"tail":        text(5, 500),
		"same as one": {'1'},
	}
}

// open opens a file system that must be good.
func open(t testing.TB, image []byte) *squashfs.FS {
	t.Helper()
	f, err := squashfs.Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return f
}

// read returns the contents of a file that must be good.
func read(t testing.TB, f *squashfs.FS, name string) []byte {
	t.Helper()
	r, err := f.Open(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	var b bytes.Buffer
	if n, err := io.Copy(&b, r); err != nil || n != r.Size() {
		t.Fatalf("%s: got %d bytes, %v, want %d", name, n, err, r.Size())
	}
	return b.Bytes()
}

func TestReadsWhatMksquashfsMakes(t *testing.T) {
	for _, c := range []struct {
		block int
		args  string
	}{
		{4 << 10, "-comp gzip"},
		{4 << 10, "-comp xz"},
		{4 << 10, "-comp zstd"},
		{128 << 10, "-comp gzip"},
		{128 << 10, "-comp xz"},
		{128 << 10, "-comp zstd"},
		{1 << 20, "-comp gzip"},
		{1 << 20, "-comp xz"},
		{1 << 20, "-comp zstd"},
		{128 << 10, "-comp gzip -no-fragments"},
		{128 << 10, "-comp xz -no-fragments"},
		{128 << 10, "-comp zstd -no-fragments"},
		{128 << 10, "-comp gzip -always-use-fragments"},
		{128 << 10, "-comp xz -always-use-fragments"},
		{128 << 10, "-comp zstd -always-use-fragments"},
		{128 << 10, "-nopad -all-root"},
		{128 << 10, "-no-sparse -no-duplicates -no-exports -no-xattrs"},
		{128 << 10, "-noI -noD -noF -noX"},
		{4 << 10, "-comp xz -noI"},
		{4 << 10, "-comp zstd -noD"},
		{4 << 10, "-comp gzip -noF -always-use-fragments"},
		{256 << 10, "-comp gzip -Xcompression-level 1 -Xwindow-size 8"},
		{256 << 10, "-comp gzip -Xstrategy default,filtered,huffman_only,run_length_encoded,fixed"},
		{256 << 10, "-comp xz -Xdict-size 50%"},
		{1 << 20, "-comp zstd -Xcompression-level 1"},
		{256 << 10, "-comp zstd -Xcompression-level 22"},
	} {
		t.Run(fmt.Sprintf("%d %s", c.block, c.args), func(t *testing.T) {
			want := samples(c.block)
			f := open(t, mksquashfs(t, folder(t, want), append(strings.Fields(c.args), "-b", fmt.Sprint(c.block))...))
			var names []string
			for _, file := range f.Files() {
				names = append(names, file.Name)
				if file.Size != int64(len(want[file.Name])) {
					t.Errorf("%s: got %d bytes, want %d", file.Name, file.Size, len(want[file.Name]))
				}
				if got := read(t, f, file.Name); !bytes.Equal(got, want[file.Name]) {
					t.Errorf("%s: got other contents than went in", file.Name)
				}
			}
			if len(names) != len(want) || !slices.IsSorted(names) {
				t.Errorf("got the files %q, want %d in order", names, len(want))
			}
		})
	}
}

func TestReadsAThousandFiles(t *testing.T) {
	want := map[string][]byte{}
	for i := range 1000 {
		want[fmt.Sprintf("file-%d-%s", i, strings.Repeat("x", i%200))] = text(uint64(i), i)
	}
	for _, comp := range []string{"gzip", "xz", "zstd"} {
		f := open(t, mksquashfs(t, folder(t, want), "-comp", comp, "-b", "4096"))
		if n := len(f.Files()); n != len(want) {
			t.Errorf("%s: got %d files, want %d", comp, n, len(want))
		}
		for name, b := range want {
			if got := read(t, f, name); !bytes.Equal(got, b) {
				t.Errorf("%s: %s: got other contents than went in", comp, name)
			}
		}
	}
}

func TestReadsAnEmptyFolder(t *testing.T) {
	if files := open(t, mksquashfs(t, t.TempDir())).Files(); len(files) != 0 {
		t.Errorf("got %v, want no files", files)
	}
}

func TestReadsHardLinks(t *testing.T) {
	dir := folder(t, map[string][]byte{"a": []byte("hello")})
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	f := open(t, mksquashfs(t, dir))
	for _, name := range []string{"a", "b"} {
		if got := read(t, f, name); string(got) != "hello" {
			t.Errorf("%s: got %q, want %q", name, got, "hello")
		}
	}
}

func TestReadsAFileOfManyBlocks(t *testing.T) {
	want := map[string][]byte{"large": text(1, 5<<20)}
	for _, comp := range []string{"gzip", "xz", "zstd"} {
		f := open(t, mksquashfs(t, folder(t, want), "-comp", comp, "-b", "4096"))
		if got := read(t, f, "large"); !bytes.Equal(got, want["large"]) {
			t.Errorf("%s: got other contents than went in", comp)
		}
	}
}

// TestAgreesWithUnsquashfs asks another reader about the same bytes.
func TestAgreesWithUnsquashfs(t *testing.T) {
	image := mksquashfs(t, folder(t, samples(128<<10)), "-comp", "xz")
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	f := open(t, image)
	for _, file := range f.Files() {
		want, err := exec.Command("unsquashfs", "-cat", path, file.Name).Output()
		if err != nil {
			t.Fatalf("unsquashfs -cat %s: %v", file.Name, err)
		}
		if got := read(t, f, file.Name); sha256.Sum256(got) != sha256.Sum256(want) {
			t.Errorf("%s: got %d bytes, unsquashfs %d others", file.Name, len(got), len(want))
		}
	}
}

func TestSmallReadsGiveTheSame(t *testing.T) {
	want := text(1, 300_000)
	r, err := open(t, mksquashfs(t, folder(t, map[string][]byte{"a": want}))).Open("a")
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	for p := make([]byte, 777); ; {
		n, err := r.Read(p)
		got = append(got, p[:n]...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got %d bytes that are not the %d that went in", len(got), len(want))
	}
}

func TestFileThatIsNotThere(t *testing.T) {
	f := open(t, mksquashfs(t, folder(t, map[string][]byte{"a": nil})))
	for _, name := range []string{"", "b", "A", "a/", "../a"} {
		var bad *squashfs.FormatError
		if _, err := f.Open(name); !errors.Is(err, fs.ErrNotExist) || errors.As(err, &bad) {
			t.Errorf("%q: got %v, want fs.ErrNotExist", name, err)
		}
	}
}
