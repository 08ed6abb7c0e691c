package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const suite = "bookworm"

// productPackages are what a device needs besides Birthmark itself.
var productPackages = []string{
	"systemd", "systemd-sysv", "udev", "dbus", "kmod",
	"tpm-udev",   // group tss, and /dev/tpmrm0 for it
	"polkitd",    // lets the agent restart the device, and nobody else
	"e2fsprogs",  // makes and checks the data partition
	"util-linux", // mount
	"dosfstools", // checks the EFI system partition: renames on FAT are not atomic
}

// testPackages are on a device under test only: other people's programs that use
// its identity, and what looks at it from inside.
var testPackages = []string{
	"curl", "openssl", "tpm2-openssl", "tpm2-abrmd", "libtss2-tcti-device0", "libtss2-tcti-tabrmd0", "mosquitto-clients",
	"iproute2", "strace", "rauc",
}

// Rootfs is the Debian root file system of the product as a tar, without kernel,
// without Birthmark. dir is the cache, see [CacheDir]. It takes half a minute, once.
func Rootfs(ctx context.Context, dir string) (string, error) {
	return debian(ctx, dir, "rootfs", productPackages)
}

// TestRootfs is [Rootfs] with the packages of the test overlay in it.
func TestRootfs(ctx context.Context, dir string) (string, error) {
	return debian(ctx, dir, "rootfs-test", append(productPackages[:len(productPackages):len(productPackages)], testPackages...))
}

func debian(ctx context.Context, dir, name string, packages []string) (string, error) {
	args := []string{
		"--quiet", "--mode=root", "--format=tar", "--variant=minbase",
		"--include=" + strings.Join(packages, ","),
		`--aptopt=APT::Install-Recommends "false"`,
		"--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-exclude=/usr/share/info/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*",
		suite,
	}
	path, err := cached(dir, name, strings.Join(args, "\n"), func(path string) error {
		if os.Geteuid() != 0 {
			return errors.New("only root can: the tree has files of several users, and device nodes")
		}
		return run(ctx, "mmdebstrap", append(args, path)...)
	})
	if err != nil {
		return "", fmt.Errorf("cannot make Debian's root file system: %w", err)
	}
	return path, nil
}

// kernelPackage names the kernel of the day: the one without drivers for hardware
// that a virtual machine does not have.
const kernelPackage = "linux-image-cloud-amd64"

// Kernel is a folder with Debian's kernel: boot/vmlinuz-VERSION and
// lib/modules/VERSION with modules.dep. The package is unpacked, never installed: its
// scripts would make an initrd that nobody wants.
func Kernel(ctx context.Context, dir string) (string, error) {
	says, err := output(ctx, "apt-cache", "depends", "--important", kernelPackage)
	if err != nil {
		return "", fmt.Errorf("cannot tell the kernel of the day: %w", err)
	}
	_, name, _ := strings.Cut(says, "Depends: ")
	name, _, _ = strings.Cut(name, "\n")
	if !strings.HasPrefix(name, "linux-image-") {
		return "", fmt.Errorf("cannot tell the kernel of the day: %s depends on %q", kernelPackage, name)
	}
	path, err := cached(dir, "kernel", name, func(path string) error {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		download := exec.CommandContext(ctx, "apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", name)
		download.Dir = path
		if _, err := command(download); err != nil {
			return err
		}
		debs, err := filepath.Glob(filepath.Join(path, name+"_*.deb"))
		if err != nil || len(debs) != 1 {
			return fmt.Errorf("apt-get downloaded %d packages (%v), want 1", len(debs), err)
		}
		if err := run(ctx, "dpkg-deb", "--extract", debs[0], path); err != nil {
			return err
		}
		version := strings.TrimPrefix(strings.TrimSuffix(name, "-unsigned"), "linux-image-")
		return errors.Join(os.Remove(debs[0]), run(ctx, "depmod", "--basedir", path, version))
	})
	if err != nil {
		return "", fmt.Errorf("cannot get the kernel: %w", err)
	}
	return path, nil
}

// kernelVersion is the VERSION in a folder that [Kernel] made.
func kernelVersion(kernel string) (string, error) {
	found, err := filepath.Glob(filepath.Join(kernel, "lib", "modules", "*"))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("%s has modules of %d kernels (%v), want 1", kernel, len(found), err)
	}
	return filepath.Base(found[0]), nil
}
