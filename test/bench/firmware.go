package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"birthmark/internal/lab/sign"
)

// A firmware is the bundles of a maker, and a device to install them.
type firmware struct {
	dir    string
	agent  string   // the device binary
	env    []string // of the installer's unit
	by     sign.Signer
	device device

	memory float64 // MiB, the most that an installer had
}

// compressions are what the squashfs of a bundle is made with: rauc's own default is
// gzip, and docs/firmware.md advises zstd at that level.
var compressions = map[string]string{
	"none": "-noI -noD -noF -noX",
	"gzip": "-comp gzip",
	"zstd": "-comp zstd -Xcompression-level 15",
}

// newFirmware makes a device that believes the signer, with slots of so many bytes.
func (w *world) newFirmware(by sign.Signer, unit string, slot int64) (*firmware, error) {
	f := &firmware{dir: w.path("firmware"), agent: w.agent, by: by}
	var err error
	if f.env, err = unitEnvironment(unit); err != nil {
		return nil, err
	}
	if f.device, err = makeDevice(w.path("device"), slot, by, strings.TrimPrefix(w.tpm.Address(), "unix:")); err != nil {
		return nil, err
	}
	if err := os.Mkdir(f.dir, 0o700); err != nil {
		return nil, err
	}
	// RAUC's own default is a purpose that no certificate for signing code has.
	conf := "[system]\ncompatible=" + product + "\nbootloader=noop\n[keyring]\npath=" + by.Anchors + "\ncheck-purpose=codesign\n"
	return f, os.WriteFile(f.path("system.conf"), []byte(conf), 0o600)
}

// makeFirmware makes a bundle for every compression, too, signed by the lab.
func (w *world) makeFirmware(ctx context.Context, o options) (*firmware, error) {
	by, err := sign.Lab(w.path("lab"))
	if err != nil {
		return nil, err
	}
	f, err := w.newFirmware(by, o.unit, max(o.image, o.half, o.sparse)+verityBlock)
	if err != nil {
		return nil, err
	}
	for compression, args := range compressions {
		if err := f.bundle(ctx, compression, args, o.image, fillProgram); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (f *firmware) path(name string) string { return filepath.Join(f.dir, name) }

// file is where a bundle lies.
func (f *firmware) file(name string) string { return f.path(name + ".raucb") }

// bundle lets rauc make a bundle, of an image of so many bytes that fill writes, and of
// the UKI that starts it.
func (f *firmware) bundle(ctx context.Context, name, mksquashfs string, size int64, fill func(*os.File, int64) error) error {
	in := f.path("in")
	defer os.RemoveAll(in) // best effort: all goes with the world
	if err := os.Mkdir(in, 0o700); err != nil {
		return err
	}
	image, err := os.Create(filepath.Join(in, "rootfs.img"))
	if err != nil {
		return err
	}
	err = fill(image, size)
	if err == nil {
		_, err = image.WriteAt(treeTop(release), size)
	}
	if err := errors.Join(err, image.Close()); err != nil {
		return err
	}
	manifest := "[update]\ncompatible=" + product + "\nversion=" + release + "\n\n[bundle]\nformat=verity\n\n" +
		"[image.rootfs]\nfilename=rootfs.img\n\n[image.uki]\nfilename=uki.efi\n"
	for name, b := range map[string][]byte{"manifest.raucm": []byte(manifest), "uki.efi": uki(release, size/verityBlock)} {
		if err := os.WriteFile(filepath.Join(in, name), b, 0o600); err != nil {
			return err
		}
	}
	args := []string{"bundle", "--cert=" + f.by.Certificate, "--key=" + f.by.Key, "--mksquashfs-args=" + mksquashfs}
	for _, path := range f.by.Intermediates {
		args = append(args, "--intermediate="+path)
	}
	return run(ctx, f.dir, "", "", "rauc", append(args, in, f.file(name))...)
}

// fillProgram writes what an image is made of: programs and their texts, of the Go that
// built this one.
func fillProgram(f *os.File, size int64) error {
	root, err := goRoot()
	for err == nil && size > 0 {
		before := size
		for _, folder := range []string{"bin", "pkg", "src"} {
			err = errors.Join(err, filepath.WalkDir(filepath.Join(root, folder), func(path string, e fs.DirEntry, err error) error {
				if err != nil || size == 0 || !e.Type().IsRegular() {
					return err
				}
				in, err := os.Open(path)
				if err != nil {
					return err
				}
				defer in.Close()
				n, err := io.Copy(f, io.LimitReader(in, size))
				size -= n
				return err
			}))
		}
		if err == nil && size == before {
			err = fmt.Errorf("%s is empty", root)
		}
	}
	return err
}

func goRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	return string(bytes.TrimSpace(out)), err
}

// fillSparse is for an image that is almost all holes: after a megabyte of programs there
// is one block in every 64 MiB.
func fillSparse(f *os.File, size int64) error {
	const step = 64 << 20
	err := fillProgram(f, min(size, 1<<20))
	for at := int64(step); at < size && err == nil; at += step {
		_, err = f.WriteAt(treeTop(running), at)
	}
	return errors.Join(err, f.Truncate(size))
}

// A contest is lanes of one kind, ours first, and how their time is called.
type contest struct {
	figure string // our time over that of the second lane; docs/numbers.md
	what   string
	lanes  []*lane
}

// contests are those of firmware. The time of an install is that of processors.
func (f *firmware) contests() []contest {
	ours := func(name string) *lane {
		return &lane{name: "birthmark installer, " + name, once: func(ctx context.Context) (time.Duration, error) {
			return f.install(ctx, name)
		}}
	}
	peer := func(name string) *lane {
		return &lane{name: "rauc extract, " + name, once: func(ctx context.Context) (time.Duration, error) {
			return f.extract(ctx, name)
		}}
	}
	gzip := peer("gzip")
	return []contest{
		{"bundle-verify-ratio", "full verification", f.verifying()},
		{"bundle-install-ratio-none", "install, CPU, not compressed", []*lane{ours("none"), peer("none")}},
		{"bundle-install-ratio-gzip", "install, CPU, gzip", []*lane{ours("gzip"), gzip}},
		{"bundle-install-ratio-zstd", "install, CPU, zstd", []*lane{ours("zstd"), gzip}},
	}
}

// round lets every lane have a turn.
func (f *firmware) round(ctx context.Context, m *measurement) error {
	var all []*lane
	for _, c := range m.firmware {
		for _, l := range c.lanes {
			if !slices.Contains(all, l) {
				all = append(all, l)
			}
		}
	}
	if err := race(ctx, 1, all); err != nil {
		return err
	}
	for range 5 {
		took, err := f.judged(ctx)
		if err != nil {
			return err
		}
		m.figures.add("bundle-policy-time", took)
	}
	return nil
}

// finish measures what does not depend on what else the machine does.
func (f *firmware) finish(ctx context.Context, w *world, o options, found figures) error {
	ratio, err := f.fetched(ctx, w)
	if err != nil {
		return err
	}
	if err := f.remember(ctx, o); err != nil {
		return err
	}
	found.add("bundle-fetched-ratio", ratio)
	found.add("installer-memory", f.memory)
	return nil
}

// extract lets rauc verify a bundle and unpack all that is in it.
func (f *firmware) extract(ctx context.Context, name string) (time.Duration, error) {
	out := f.path("out")
	if err := os.RemoveAll(out); err != nil {
		return 0, err
	}
	return processorTime(exec.CommandContext(ctx, "rauc", "--conf="+f.path("system.conf"), "extract", f.file(name), out))
}

// verifying are the lanes of the one ratio of time as it passes.
func (f *firmware) verifying() []*lane {
	timed := func(name string, command func(context.Context) *exec.Cmd) *lane {
		return &lane{name: name, once: func(ctx context.Context) (time.Duration, error) {
			start := time.Now()
			_, err := processorTime(command(ctx))
			return time.Since(start), err
		}}
	}
	return []*lane{
		timed("birthmark firmware verify", func(ctx context.Context) *exec.Cmd { return f.verify(ctx) }),
		timed("openssl dgst -sha256", func(ctx context.Context) *exec.Cmd {
			return exec.CommandContext(ctx, "openssl", "dgst", "-sha256", f.file("none"))
		}),
	}
}

// verify is `birthmark firmware verify` of the bundle that is not compressed.
func (f *firmware) verify(ctx context.Context, more ...string) *exec.Cmd {
	return exec.CommandContext(ctx, f.agent, append([]string{"firmware", "verify", f.file("none"),
		"--anchors", f.by.Anchors, "--signing-cas", f.by.SigningCAs, "--crls", f.by.CRLs}, more...)...)
}

// judged is the CPU of a process that verifies who signed and what, and refuses the
// bundle by policy, in ms.
func (f *firmware) judged(ctx context.Context) (float64, error) {
	took, err := processorTime(f.verify(ctx, "--running-version", release))
	var refused *exec.ExitError
	if !errors.As(err, &refused) || refused.ExitCode() != 1 {
		return 0, fmt.Errorf("the release that runs was not refused (%v)", err)
	}
	return ms(took), nil
}

// processorTime runs a program to its end, and says what it and its children took.
func processorTime(cmd *exec.Cmd) (time.Duration, error) {
	var said bytes.Buffer
	cmd.Stderr = &said
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, &said)
	}
	if cmd.ProcessState == nil {
		return 0, err
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), err
}
