package squashfs_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// BenchmarkRead reads a file of 64 MiB that can be packed to about a third.
func BenchmarkRead(b *testing.B) {
	const size = 64 << 20
	dir := folder(b, map[string][]byte{"rootfs.img": program(b, size)})
	for _, comp := range []string{"gzip", "xz", "zstd"} {
		b.Run(comp, func(b *testing.B) {
			f := open(b, mksquashfs(b, dir, "-comp", comp))
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				r, err := f.Open("rootfs.img")
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, r); n != size || err != nil {
					b.Fatalf("got %d bytes, %v, want %d", n, err, size)
				}
			}
		})
	}
}

// program is n bytes like those of an image: the Go command's, again and again.
func program(b *testing.B, n int) []byte {
	path, err := exec.LookPath("go")
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		b.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	out := make([]byte, 0, n+len(text))
	for len(out) < n {
		out = append(out, text...)
	}
	return out[:n]
}
