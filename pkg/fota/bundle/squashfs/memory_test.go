package squashfs_test

import (
	"bytes"
	"compress/zlib"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const memoryLimit = 64 << 20 // bytes that a process that reads hostile file systems may ever have

// TestMain is also the process that is measured: it reads the file systems in a folder
// and says what it found, and how much memory it had at the most, in KiB.
func TestMain(m *testing.M) {
	dir := os.Getenv("SQUASHFS_FOLDER")
	if dir == "" {
		os.Exit(m.Run())
	}
	if err := readFolder(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func readFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err != nil {
			return err
		}
		fmt.Printf("%s\t%s\n", e.Name(), verdict(f, info.Size()))
		f.Close()
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	_, peak, _ := strings.Cut(string(status), "VmHWM:")
	kib, _, _ := strings.Cut(peak, "kB")
	fmt.Printf("peak\t%s\n", strings.TrimSpace(kib))
	return nil
}

// bomb is what a compressor makes of 128 MiB of zeros.
func bomb(t *testing.T, comp string) []byte {
	t.Helper()
	const size = 128 << 20
	var out bytes.Buffer
	var err error
	switch comp {
	case "gzip": // zlib's format, for which there is no command
		w := zlib.NewWriter(&out)
		if _, err = io.CopyN(w, zeros{}, size); err == nil {
			err = w.Close()
		}
	case "xz":
		err = pipe(&out, size, "xz", "-1", "-T1", "--check=crc32")
	case "zstd":
		err = pipe(&out, size, "zstd", "-q", "-1", "--single-thread")
	}
	if err != nil {
		t.Fatalf("%s: %v", comp, err)
	}
	return out.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func pipe(out io.Writer, size int64, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdin, cmd.Stdout = io.LimitReader(zeros{}, size), out
	return cmd.Run()
}

func TestHostileFileSystemsNeedLittleMemory(t *testing.T) {
	images, want := map[string][]byte{}, map[string]string{}
	good := stored(t)
	for i, c := range crimes {
		v := dissect(t, good)
		c.do(v)
		name := fmt.Sprintf("crime-%d", i)
		images[name], want[name] = v.b, c.code
	}
	for name, c := range syntheticCrimes {
		images[name], want[name] = c.image, c.code
	}
	dir := folder(t, map[string][]byte{"a": noise(1 << 20)})
	large := folder(t, map[string][]byte{"b": text(1, 5<<20+1)})
	for _, comp := range []string{"gzip", "xz", "zstd"} {
		v := dissect(t, mksquashfs(t, dir, "-comp", comp, "-b", "1M", "-noI", "-no-fragments"))
		b := bomb(t, comp)
		copy(v.b[v.u32(v.inode["a"]+start):], b)
		v.put32(v.inode["a"]+list, uint32(len(b)))
		images["bomb-"+comp], want["bomb-"+comp] = v.b, "block"
		images["good-"+comp] = mksquashfs(t, large, "-comp", comp, "-b", "1M")
		want["good-"+comp] = ""
	}

	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SQUASHFS_FOLDER="+folder(t, images), "GOMAXPROCS=2")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	got, peak := map[string]string{}, -1
	for line := range strings.Lines(string(out)) {
		name, word, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if name != "peak" {
			got[name] = word
		} else if _, err := fmt.Sscan(word, &peak); err != nil {
			t.Errorf("peak %q: %v", word, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] != want[name] {
			t.Errorf("%s: got %q, want %q", name, got[name], want[name])
		}
	}
	if peak < 0 || peak<<10 > memoryLimit {
		t.Errorf("got %d KiB of memory at the most, want at most %d", peak, memoryLimit>>10)
	}
	t.Logf("%d file systems were read in %d KiB", len(want), peak)
}
