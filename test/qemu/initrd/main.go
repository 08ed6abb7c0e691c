// Initrd is process 1 of the virtual device's initrd. It finds the slot that its
// release is in, maps it through dm-verity, mounts it read-only and gives way to
// /sbin/init in there.
//
// What it trusts is the kernel's command line, which is part of the signed image
// that the firmware verified:
//
//	verity.hash=HEX    root hash, SHA-256
//	verity.salt=HEX
//	verity.blocks=N    data blocks of 4096 bytes; the hash tree starts behind them
//
// The release is in the slot whose tree has that root: root-a or root-b, by the names
// of their partitions. So one signed image serves both, and a name that lies finds
// nothing. A damaged block is found when it is read, then or later: dm-verity restarts
// the device.
//
// There is no shell, and no other way out: what goes wrong is printed, and the device
// restarts, so that the boot loader, which counts, takes the other slot.
//
// If no partition is named data, /run/first-boot tells systemd to make one.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	root      = "/sysroot"
	firstBoot = "/run/first-boot"
	drain     = time.Second // for a serial port to send the last line
)

func main() {
	say("cannot start the system: %v", boot())
	time.Sleep(drain)
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	os.Exit(1) // the kernel panics, and panic=1 restarts it
}

func say(format string, args ...any) { fmt.Printf("initrd: "+format+"\n", args...) }

// boot returns only with an error.
func boot() error {
	for _, m := range []struct {
		fs, dir string
		flags   uintptr
		data    string
	}{
		{"proc", "/proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fs, m.dir, m.fs, m.flags, m.data); err != nil {
			return fmt.Errorf("cannot mount %s: %w", m.dir, err)
		}
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	v, err := parseVerity(string(line))
	if err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	slot, err := findSlot(v)
	if err != nil {
		return err
	}
	node, err := v.mapTo(slot)
	if err != nil {
		return err
	}
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(node, root, "ext4", unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("cannot mount %s: %w", slot.name, err)
	}
	say("the root file system is %s, verified", slot.name)
	return switchRoot()
}

// loadModules loads what /modules/list names, in that order.
func loadModules() error {
	list, err := os.ReadFile("/modules/list")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(list)) {
		f, err := os.Open("/modules/" + name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("cannot load %s: %w", name, err)
		}
	}
	return nil
}

// switchRoot gives the initrd's memory back, makes root the root file system and
// becomes its /sbin/init.
func switchRoot() error {
	for _, dir := range []string{"/proc", "/sys", "/dev", "/run"} {
		if err := unix.Mount(dir, root+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("cannot move %s: %w", dir, err)
		}
	}
	if err := errors.Join(os.RemoveAll("/modules"), os.Remove("/init")); err != nil {
		return err
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("cannot move %s: %w", root, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("cannot change the root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	const init = "/sbin/init"
	return fmt.Errorf("cannot run %s: %w", init, unix.Exec(init, []string{init}, []string{"HOME=/", "TERM=linux"}))
}
