package sign

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"birthmark/pkg/fota"
)

// A Compression is how the payload is made smaller.
type Compression string

const (
	Zstd Compression = "zstd" // the smallest bundle, and the fastest to install
	Gzip Compression = "gzip"
	XZ   Compression = "xz"
	Fast Compression = "fast" // zstd at its lowest level: a larger bundle, at once
)

// arguments are mksquashfs's; "" for a compression that is not known.
func (c Compression) arguments() string {
	switch c {
	case Zstd:
		return "-comp zstd -Xcompression-level 15"
	case Fast:
		return "-comp zstd -Xcompression-level 1"
	case Gzip, XZ:
		return "-comp " + string(c)
	}
	return ""
}

const manifestName = "manifest.raucm"

// A MissingError: a program that does the work is not there.
type MissingError struct{ Program, Package string }

func (e *MissingError) Error() string { return e.Program + " is not installed" }

// installed wants the programs to be there that pack needs: rauc starts the other.
func installed() error {
	for _, m := range []*MissingError{{"rauc", "rauc"}, {"mksquashfs", "squashfs-tools"}} {
		if _, err := exec.LookPath(m.Program); err != nil {
			return m
		}
	}
	return nil
}

// lay lays out in the folder dir what `rauc bundle` makes a bundle of, and returns what
// a device has to find in that. The images are copied: what was hashed here is what is
// packed, whoever writes to the originals meanwhile.
func lay(ctx context.Context, r Release, dir string, tell func(string)) (want fota.Manifest, err error) {
	want = fota.Manifest{Compatible: r.Compatible, Version: r.Version, Description: r.Description, Build: r.Build, Format: fota.FormatVerity}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return want, err
	}
	for _, i := range r.Images {
		image := fota.Image{Slot: i.Slot, File: filepath.Base(i.Path)}
		tell("reading " + i.Path)
		if image.Size, image.SHA256, err = copyFile(ctx, i.Path, filepath.Join(dir, image.File)); err != nil {
			return want, err
		}
		want.Images = append(want.Images, image)
	}
	return want, os.WriteFile(filepath.Join(dir, manifestName), []byte(manifest(want)), 0o600)
}

// manifest is what RAUC wants to be told; it adds sizes and digests itself.
func manifest(m fota.Manifest) string {
	var b strings.Builder
	group := func(name string, pairs ...string) {
		fmt.Fprintf(&b, "[%s]\n", name)
		for pair := range slices.Chunk(pairs, 2) {
			if pair[1] != "" {
				fmt.Fprintf(&b, "%s=%s\n", pair[0], escape.Replace(pair[1]))
			}
		}
		b.WriteByte('\n')
	}
	group("update", "compatible", m.Compatible, "version", m.Version.String(), "description", m.Description, "build", m.Build)
	group("bundle", "format", string(m.Format))
	for _, i := range m.Images {
		group("image."+i.Slot, "filename", i.File)
	}
	return b.String()
}

// escape is how GKeyFile writes a value that has no space at its beginning.
var escape = strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\t", `\t`, "\r", `\r`)

// copyFile copies a file to a new one, and returns its size and digest.
func copyFile(ctx context.Context, from, to string) (size int64, digest [sha256.Size]byte, err error) {
	if info, err := os.Stat(from); err != nil {
		return 0, digest, err
	} else if !info.Mode().IsRegular() || info.Size() == 0 {
		return 0, digest, &ReleaseError{fmt.Sprintf("image %s is no file with something in it", from)}
	}
	in, err := os.Open(from)
	if err != nil {
		return 0, digest, err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return 0, digest, err
	}
	h := sha256.New()
	size, err = io.Copy(io.MultiWriter(out, h), reader{ctx, in})
	if closing := out.Close(); err == nil {
		err = closing
	}
	return size, [sha256.Size]byte(h.Sum(nil)), err
}

// A reader ends with its context.
type reader struct {
	ctx context.Context
	io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

const (
	sayingLimit = 4 << 10 // bytes of what rauc says
	farewell    = 5 * time.Second
)

// pack runs `rauc bundle` over the folder in.
func pack(ctx context.Context, r Release, by Signer, in, out string) error {
	args := []string{"bundle", "--cert=" + by.Certificate, "--key=" + by.Key}
	for _, path := range by.Intermediates {
		args = append(args, "--intermediate="+path)
	}
	seconds := r.Time.Unix()
	args = append(args, fmt.Sprintf("--mksquashfs-args=%s -mkfs-time %d -all-time %d", r.Compression.arguments(), seconds, seconds), in, out)
	cmd := exec.CommandContext(ctx, "rauc", args...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "SOURCE_DATE_EPOCH=") // mksquashfs takes that or the options
	})
	// In a session of its own it cannot ask a terminal for a password, and ends together
	// with the mksquashfs that it has started.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = farewell
	var said tail
	cmd.Stderr = &said
	err := cmd.Run()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("rauc: %s", cmp.Or(said.reasons(), err.Error()))
	}
	return nil
}

// A tail keeps the end of what is written to it.
type tail struct{ text []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.text = append(t.text, p...)
	if over := len(t.text) - sayingLimit; over > 0 {
		t.text = slices.Delete(t.text, 0, over)
	}
	return len(p), nil
}

// reasons are the lines that say what was wrong, of rauc and of mksquashfs.
func (t *tail) reasons() string {
	var lines []string
	for line := range strings.Lines(string(t.text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "rauc-Message:") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}
