// Package image makes the disk of a virtual device: a product as its maker would
// ship it, with Debian below and Birthmark in it.
//
// [Build] makes everything anew from Debian's root file system and kernel, which are
// kept ([Rootfs], [Kernel]). The firmware verifies the boot loader and the loader a
// release, one file with kernel, command line and initrd; the command line has the
// root hash of the root file system, and the initrd (test/qemu/initrd) maps that
// through dm-verity:
//
//	db key -(signs)-> boot loader -> release -(root hash)-> root file system
//
// The same commit gives the same root file system and release, byte for byte, as long
// as Debian's packages and the keys are the same.
//
// The disk:
//
//	esp      systemd-boot; releases, EFI/Linux/birthmark_VERSION+TRIES.efi
//	root-a   ext4, read-only, its hash tree behind it
//	root-b   the same, or nothing yet
//	data     /var; made by the device when it first starts (docs/decisions)
//
// Nobody can log in. What an image for tests has more is in overlay/: a root shell on
// a virtio-serial port (birthmark.control), and the configuration of the agent, which
// the virtual machine gives as files opt/birthmark/NAME of QEMU's fw_cfg: birthmark.toml,
// NAME.pem, password. They are in /run/lab then, the password as the agent's credential
// birth-password.
//
// Only root can build one; there are no mounts and no loop devices, though.
package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Tries is how often the boot loader starts a release that nobody says is good.
const Tries = 3

// Options say what image it is to be.
type Options struct {
	Dir     string // for what Build makes; made if it is not there
	Version string // X.Y.Z
	Epoch   int64  // seconds since 1970, the time of everything in it
	Test    bool   // with the test overlay
}

// An Image is what Build made: files in one folder.
type Image struct {
	Dir     string
	Version string
	Disk    string // raw, sparse
	Vars    string // the firmware's variables, with the maker's keys
	Root    string // what is in a slot
	Release string // the signed UKI
	Verity  Verity
	Keys    Keys

	kernel, initrd string
}

// ReleaseName is the name of a release in EFI/Linux.
func ReleaseName(version string, tries int) string {
	return fmt.Sprintf("birthmark_%s+%d.efi", version, tries)
}

// Build makes an image.
func Build(ctx context.Context, o Options) (*Image, error) {
	img := &Image{Dir: o.Dir, Version: o.Version}
	if err := img.build(ctx, o); err != nil {
		return nil, fmt.Errorf("cannot build an image: %w", err)
	}
	return img, nil
}

func (img *Image) build(ctx context.Context, o Options) error {
	if os.Geteuid() != 0 {
		return errors.New("only root can: the tree has files of several users")
	}
	if err := os.MkdirAll(img.Dir, 0o755); err != nil {
		return err
	}
	file := func(name string) string { return filepath.Join(img.Dir, name) }
	img.Disk, img.Vars, img.Root, img.Release = file("disk.raw"), file("vars.fd"), file("root.img"), file("release.efi")
	img.initrd = file("initrd.zst")

	cache, err := CacheDir()
	if err != nil {
		return err
	}
	rootfs := Rootfs
	if o.Test {
		rootfs = TestRootfs
	}
	debian, err := rootfs(ctx, cache)
	if err != nil {
		return err
	}
	kernel, err := Kernel(ctx, cache)
	if err != nil {
		return err
	}
	version, err := kernelVersion(kernel)
	if err != nil {
		return err
	}
	img.kernel = filepath.Join(kernel, "boot", "vmlinuz-"+version)
	if img.Keys, err = keysIn(file("keys")); err != nil {
		return err
	}
	if err := img.buildRoot(ctx, debian, kernel, o); err != nil {
		return fmt.Errorf("root file system: %w", err)
	}
	early := earlyModules
	if o.Test {
		early = append(early[:len(early):len(early)], earlyTestModules...)
	}
	if err := initrd(ctx, img.initrd, kernel, early, o.Epoch); err != nil {
		return fmt.Errorf("initrd: %w", err)
	}
	uki, err := img.UKI(ctx, img.Verity)
	if err != nil {
		return err
	}
	if uki, err = Sign(uki, img.Keys.DB); err != nil {
		return err
	}
	loader, err := os.ReadFile(bootLoader)
	if err != nil {
		return fmt.Errorf("%w: run make setup", err)
	}
	if loader, err = Sign(loader, img.Keys.DB); err != nil {
		return err
	}
	vars, err := enrolled(img.Keys)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(img.Release, uki, 0o644),
		os.WriteFile(img.Vars, vars, 0o644),
		makeESP(ctx, file("esp.img"), loader, ReleaseName(img.Version, Tries), uki),
		makeDisk(ctx, img.Disk, file("esp.img"), img.Root),
	)
}

// buildRoot makes the root file system and its tree.
func (img *Image) buildRoot(ctx context.Context, debian, kernel string, o Options) error {
	dir, err := os.MkdirTemp("", "bm-root")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // it becomes the root's own
		return err
	}
	if err := makeTree(ctx, dir, debian, kernel, o); err != nil {
		return err
	}
	if err := os.RemoveAll(img.Root); err != nil {
		return err
	}
	if err := makeExt4(ctx, img.Root, dir, fileSystem/blockSize, o.Epoch); err != nil {
		return err
	}
	f, err := os.OpenFile(img.Root, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	img.Verity, err = addTree(f, fileSystem/blockSize, sha256.Sum256([]byte("birthmark "+o.Version)))
	return errors.Join(err, f.Truncate(slotSize), f.Close())
}

// UKI makes a release of this image's kernel and initrd, not signed. v is the image's own, or a
// lie; the kernel gets more arguments if there are some.
func (img *Image) UKI(ctx context.Context, v Verity, more ...string) ([]byte, error) {
	b, err := uki(ctx, release{img.Version, img.kernel, img.initrd, strings.Join(append([]string{commandLine + v.Arguments()}, more...), " ")})
	if err != nil {
		return nil, fmt.Errorf("cannot make a release: %w", err)
	}
	return b, nil
}
