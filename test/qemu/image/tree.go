package image

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Files of ours over Debian's: those of a product, and those of a device under test.
//
//go:embed all:product all:overlay
var ours embed.FS

// modules are what udev loads on the hardware that the device has, and what mounts
// need; testModules are of the doors that only a test has.
var (
	modules = []string{"virtio_pci", "virtio_net", "virtio-rng", "vfat", "nls_ascii", "nls_cp437",
		"efivarfs", "autofs4", "loop", "dm-verity"}
	testModules = []string{"virtio_console", "qemu_fw_cfg"}
)

// trimmed is what a device that is never logged into, and never changed but as a
// whole, does not need: shells' comforts, documents, Perl, the package manager, folders
// for what an administrator adds, and ways to log in.
var trimmed = []string{
	"usr/share/bash-completion", "usr/share/zsh", "usr/share/lintian", "usr/share/bug", "usr/share/doc",
	"usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/perl*", "usr/share/keyrings",
	"usr/lib/*-linux-gnu/perl*", "usr/lib/*-linux-gnu/libperl*", "usr/lib/*-linux-gnu/gconv",
	"usr/lib/*-linux-gnu/libapt*", "usr/bin/perl*", "usr/bin/apt*", "usr/bin/dpkg*", "usr/lib/apt", "usr/lib/dpkg",
	"etc/apt", "etc/dpkg", "etc/cron.*", "etc/init.d", "etc/rc?.d", "usr/lib/udev/hwdb.d", "usr/lib/udev/hwdb.bin",
	"usr/local", "opt", "srv", "media", "mnt", "etc/opt", "etc/xml", "etc/sgml", "root/.ssh",
	"usr/bin/login", "usr/bin/su", "usr/sbin/agetty", "usr/sbin/getty", "usr/sbin/sulogin",
	"boot/*", "var/*", "tmp/*", "run/*", "dev/*",
}

// masked are units that offer a login or a shell, or have nothing to do on a root
// file system that cannot be written to. systemd-bless-boot would take the counter
// off a release for ever, and damage found later would have no way out.
var masked = []string{
	"getty.target", "getty@.service", "serial-getty@.service", "console-getty.service", "container-getty@.service",
	"autovt@.service", "getty-static.service", "debug-shell.service", "systemd-ask-password-console.path",
	"systemd-ask-password-wall.path", "systemd-bless-boot.service", "systemd-firstboot.service",
	"systemd-hwdb-update.service", "ldconfig.service", "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service",
	"systemd-journal-flush.service", "systemd-pstore.service", "systemd-random-seed.service", "systemd-user-sessions.service",
	"systemd-boot-update.service", "systemd-boot-system-token.service", "systemd-machine-id-commit.service",
	"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
	"fstrim.timer", "remote-fs.target", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-kernel-config.mount",
	"sys-fs-fuse-connections.mount", "proc-sys-fs-binfmt_misc.automount", "systemd-initctl.socket",
	"dev-hugepages.mount", "dev-mqueue.mount",
}

// labFiles are what a device under test gets from its lab: the links to it in
// /etc/birthmark, and the files, which are there from the start or not at all.
var labFiles = map[string]string{
	"conf.d/50-lab.toml":       "birthmark.toml",
	"firmware/anchors.pem":     "anchors.pem",
	"firmware/signing-cas.pem": "signing-cas.pem",
	"firmware/crls.pem":        "crls.pem",
}

// A tree is the root file system while it is made, in a folder.
type tree struct {
	dir   string
	epoch int64
}

// makeTree unpacks Debian into dir, installs Birthmark and makes a device of it.
func makeTree(ctx context.Context, dir, rootfs, kernel string, o Options) error {
	t := tree{dir, o.Epoch}
	if err := run(ctx, "tar", "--extract", "--numeric-owner", "--same-permissions", "--file="+rootfs, "--directory="+dir); err != nil {
		return err
	}
	if err := t.install(ctx); err != nil {
		return fmt.Errorf("cannot install Birthmark: %w", err)
	}
	if err := t.lay("product"); err != nil {
		return err
	}
	enabled, load := []string{"systemd-networkd.service"}, modules
	if o.Test {
		if err := t.lay("overlay"); err != nil {
			return err
		}
		enabled = append(enabled, "test-control.service", "test-configuration.service")
		// It comes when D-Bus is asked for it.
		if err := t.chroot(ctx, "systemctl", "--quiet", "disable", "tpm2-abrmd.service"); err != nil {
			return err
		}
		load = append(modules[:len(modules):len(modules)], testModules...)
		for name, file := range labFiles {
			if err := t.link("etc/birthmark/"+name, "/run/lab/"+file); err != nil {
				return err
			}
		}
	}
	for _, systemctl := range [][]string{
		append([]string{"mask"}, masked...),
		append([]string{"enable"}, enabled...),
		{"set-default", "multi-user.target"},
	} {
		if err := t.chroot(ctx, append([]string{"systemctl", "--quiet"}, systemctl...)...); err != nil {
			return err
		}
	}
	if err := t.addModules(ctx, kernel, load); err != nil {
		return err
	}
	if err := t.trim(); err != nil {
		return err
	}
	return t.settle(o.Version)
}

// install installs the package that `make deb` built.
func (t tree) install(ctx context.Context) error {
	deb, err := Package()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(deb)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(t.dir, "tmp", "birthmark.deb"), text, 0o644); err != nil {
		return err
	}
	return t.chroot(ctx, "dpkg", "--install", "/tmp/birthmark.deb")
}

// Package is the path of Birthmark's package for the machine, which `make deb` builds.
func Package() (string, error) {
	top, err := Top()
	if err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(top, "bin", "birthmark_*_amd64.deb"))
	if err == nil && len(debs) != 1 {
		err = fmt.Errorf("there are %d packages for amd64 in bin, want 1: run make deb", len(debs))
	}
	if err != nil {
		return "", err
	}
	return debs[0], nil
}

// chroot runs a program of the tree in it.
func (t tree) chroot(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "chroot", append([]string{t.dir}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", fmt.Sprintf("SOURCE_DATE_EPOCH=%d", t.epoch))
	_, err := command(cmd)
	return err
}

// lay puts one of our folders over the tree. A file that starts with #! is a program.
func (t tree) lay(folder string) error {
	return fs.WalkDir(ours, folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(t.dir, strings.TrimPrefix(path, folder))
		if d.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		text, err := ours.ReadFile(path)
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if strings.HasPrefix(string(text), "#!") {
			mode = 0o755
		}
		return errors.Join(os.WriteFile(to, text, mode), os.Chmod(to, mode)) // whatever the umask is
	})
}

// link makes a symbolic link in place of what may be there.
func (t tree) link(name, target string) error {
	path := filepath.Join(t.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(target, path)
}

func (t tree) addModules(ctx context.Context, kernel string, names []string) error {
	version, err := kernelVersion(kernel)
	if err != nil {
		return err
	}
	files, err := modulesOf(kernel, names...)
	if err != nil {
		return err
	}
	from := filepath.Join(kernel, "lib", "modules", version)
	for _, name := range []string{"modules.order", "modules.builtin", "modules.builtin.modinfo"} {
		files = append(files, filepath.Join(from, name))
	}
	to := filepath.Join(t.dir, "usr", "lib", "modules", version)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		copied := filepath.Join(to, strings.TrimPrefix(file, from))
		if err := os.MkdirAll(filepath.Dir(copied), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(copied, text, 0o644); err != nil {
			return err
		}
	}
	return run(ctx, "depmod", "--basedir", t.dir, version)
}

func (t tree) trim() error {
	for _, pattern := range trimmed {
		found, err := filepath.Glob(filepath.Join(t.dir, pattern))
		if err != nil {
			return err
		}
		for _, path := range found {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	// Nobody is logged in who could use what is set-user-ID.
	return filepath.WalkDir(t.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) == 0 {
			return err
		}
		return os.Chmod(path, info.Mode().Perm())
	})
}

// settle is what a root needs that is never written to.
func (t tree) settle(version string) error {
	for name, text := range map[string]string{
		"etc/machine-id":     "", // systemd binds a new one over it, at each boot
		"etc/hostname":       "birthmark\n",
		"usr/lib/os-release": osRelease(version),
	} {
		path := filepath.Join(t.dir, name)
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o644), os.Chmod(path, 0o644)); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{
		"etc/resolv.conf": "../run/resolv.conf",
		"etc/mtab":        "../proc/self/mounts",
		"etc/systemd/system/local-fs.target.wants/tmp.mount": "/usr/share/systemd/tmp.mount",
		"etc/systemd/system/tmp.mount":                       "/usr/share/systemd/tmp.mount",
	} {
		if err := t.link(name, target); err != nil {
			return err
		}
	}
	return os.MkdirAll(filepath.Join(t.dir, "efi"), 0o755)
}
