package image

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// What Debian's package systemd-boot-efi holds.
const (
	bootLoader = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"
	stub       = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
)

// A release is what a UKI is made of: kernel, initrd and command line behind one
// signature.
type release struct {
	version        string
	kernel, initrd string // files
	arguments      string // the kernel's command line
}

// commandLine is the kernel's. Without init= a kernel that finds no init gives a root
// shell to the console; without root= there is nothing to fall back to if the initrd
// fails; and a panic restarts the device.
const commandLine = "console=ttyS0 quiet init=/sbin/init panic=1 systemd.show_status=0 systemd.gpt_auto=0 "

// osRelease is by which the boot loader sorts releases, and what a device says it is.
func osRelease(version string) string {
	plain, _, _ := strings.Cut(version, "+") // VERSION_ID takes no sign
	return fmt.Sprintf("ID=birthmark\nID_LIKE=debian\nNAME=\"Birthmark virtual device\"\nPRETTY_NAME=\"Birthmark virtual device %s\"\n"+
		"IMAGE_ID=birthmark\nIMAGE_VERSION=%s\nVERSION_ID=%s\n", version, version, plain)
}

// uki is a unified kernel image (the UAPI group's specification), not signed yet.
func uki(ctx context.Context, r release) ([]byte, error) {
	dir, err := os.MkdirTemp("", "bm-uki")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := func(name string) string { return filepath.Join(dir, name) }
	for name, text := range map[string]string{"osrel": osRelease(r.version), "cmdline": r.arguments} {
		if err := os.WriteFile(file(name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	var args []string
	for _, s := range []struct{ name, file, at string }{
		{".osrel", file("osrel"), "0x20000"},
		{".cmdline", file("cmdline"), "0x30000"},
		{".linux", r.kernel, "0x2000000"},
		{".initrd", r.initrd, "0x4000000"},
	} {
		args = append(args, "--add-section", s.name+"="+s.file, "--change-section-vma", s.name+"="+s.at)
	}
	if err := run(ctx, "objcopy", append(args, stub, file("uki"))...); err != nil {
		return nil, err
	}
	return os.ReadFile(file("uki"))
}

// earlyModules are what the initrd needs besides what is built into the kernel, as the
// NVMe disk's driver is; earlyTestModules are for the disk of a test that logs its writes.
var (
	earlyModules     = []string{"dm-verity"}
	earlyTestModules = []string{"virtio_pci", "virtio_blk"}
)

// initrd makes the initrd of a kernel into path: our process 1, and the modules it
// loads first.
func initrd(ctx context.Context, path, kernel string, early []string, epoch int64) error {
	top, err := Top()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bm-initrd")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=",
		"-o", filepath.Join(dir, "init"), "./test/qemu/initrd")
	build.Dir = top
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=")
	if _, err := command(build); err != nil {
		return err
	}
	modules, err := modulesOf(kernel, early...)
	if err != nil {
		return err
	}
	names := make([]string, len(modules))
	archive := cpio{epoch: epoch}
	archive.dir("modules")
	for i, m := range modules {
		names[i] = filepath.Base(m)
		text, err := os.ReadFile(m)
		if err != nil {
			return err
		}
		archive.file("modules/"+names[i], text, 0o644)
	}
	archive.file("modules/list", []byte(strings.Join(names, "\n")), 0o644)
	init, err := os.ReadFile(filepath.Join(dir, "init"))
	if err != nil {
		return err
	}
	archive.file("init", init, 0o755)
	plain := filepath.Join(dir, "initrd.cpio")
	if err := os.WriteFile(plain, archive.end(), 0o600); err != nil {
		return err
	}
	return run(ctx, "zstd", "-q", "-f", "-19", plain, "-o", path)
}

// A cpio is an archive in the format that the kernel unpacks ("newc", cpio(5)).
type cpio struct {
	epoch int64
	text  []byte
	inode int
}

func (c *cpio) dir(name string) { c.entry(name, nil, 0o040755) }
func (c *cpio) file(name string, text []byte, permission int) {
	c.entry(name, text, 0o100000|permission)
}

func (c *cpio) end() []byte {
	c.entry("TRAILER!!!", nil, 0)
	return c.text
}

func (c *cpio) entry(name string, text []byte, mode int) {
	c.inode++
	c.text = append(c.text, "070701"...)
	for _, field := range []int{c.inode, mode, 0, 0, 1, int(c.epoch), len(text), 0, 0, 0, 0, len(name) + 1, 0} {
		c.text = fmt.Appendf(c.text, "%08x", field)
	}
	c.text = append(c.text, name+"\x00"...)
	c.pad()
	c.text = append(c.text, text...)
	c.pad()
}

func (c *cpio) pad() { c.text = append(c.text, make([]byte, -len(c.text)&3)...) }

// modulesOf are the files of kernel modules and of what they need, which comes first.
func modulesOf(kernel string, names ...string) ([]string, error) {
	version, err := kernelVersion(kernel)
	if err != nil {
		return nil, err
	}
	folder := filepath.Join(kernel, "lib", "modules", version)
	text, err := os.ReadFile(filepath.Join(folder, "modules.dep"))
	if err != nil {
		return nil, err
	}
	file, needs := map[string]string{}, map[string][]string{} // by name, by file
	for line := range strings.Lines(string(text)) {
		path, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		file[strings.ReplaceAll(strings.TrimSuffix(filepath.Base(path), ".ko"), "_", "-")] = path
		needs[path] = strings.Fields(rest)
	}
	var order []string
	listed := map[string]bool{}
	add := func(path string) {
		if !listed[path] {
			listed[path] = true
			order = append(order, filepath.Join(folder, path))
		}
	}
	for _, name := range names {
		path := file[strings.ReplaceAll(name, "_", "-")]
		if path == "" {
			return nil, fmt.Errorf("kernel %s has no module %s", version, name)
		}
		// modules.dep names all that a module needs, what is needed first last.
		for i := len(needs[path]) - 1; i >= 0; i-- {
			add(needs[path][i])
		}
		add(path)
	}
	return order, nil
}
