// Package board is a device's board in a folder: the medium, the firmware, the boot loader
// and the system around the device's own programs. What is proved on it is proved of
// these: the agent and the installer that run there are the device binary, in processes of
// its own, and write with the code that writes on a device.
//
//	keys, err := board.NewKey(dir, "db")
//	image, err := board.Release{Name: "acme-gw", Version: v, Agent: "bin/birthmark"}.Build(ctx, dir, keys)
//	b, err := board.New(board.Config{Dir: dir, DB: keys, TPM: tpm.Address(), …}, image)
//	err = b.Run(ctx)        // powers it on; it restarts itself when it is asked to
//
// The folder root below [Config.Dir] is what the programs take for "/" (package sysroot):
//
//	efi/EFI/Linux                    the EFI system partition: entries, which are UKIs
//	dev/disk/by-partlabel/root-a, b  the slots, files of [SlotSize]
//	dev/tpmrm0                       the TPM, as the kernel shares it: a socket
//	sys/firmware/efi/efivars         the firmware's variables
//	var/lib                          what programs remember
//	proc, run                        made anew at each start
//	usr, etc, sbin                   the root file system of the release that was started
//
// # A start
//
// What happens is what happens on a device. The boot loader takes LoaderEntryOneShot, or
// the newest entry by IMAGE_VERSION that has tries left, or the newest that has none;
// counts a try in the name of the file, and says what it did in variables, as systemd-boot
// 252 does. The firmware starts nothing that was not signed by the key in db. The kernel
// finds the slot whose hash tree the UKI's command line names, verifies all of it, and
// panics if there is none, or no init in it. Then the agent is started and, when it is
// ready, `birthmark health`; the installer is started by whoever connects to its socket.
// A call of logind's Reboot at the socket of D-Bus ends them, and the next start begins.
//
// A start that ends before the agent is tried is followed by another one. After
// [startsLimit] in a row the board stands still, which is a visit.
//
// # What it is not
//
// There is no kernel: programs are those of the machine, of one user, without sandboxes,
// and the root file system is unpacked, not mounted. Nothing loses power in the middle of
// a write: what was written is there. For that there are the tests with crashing disks
// and virtual machines.
package board

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"birthmark/internal/sysroot"
)

const (
	// SlotSize is that of each of the two slots, in bytes. They are sparse.
	SlotSize = 16 << 20
	// tries is what the release from the factory has.
	tries = 3
	// startsLimit is how many starts in a row may end before the agent is started.
	startsLimit = 12
)

// Config is what a board is made of. The functions are called from several goroutines.
type Config struct {
	Dir string // the folder; it is short, since Unix sockets lie in it
	DB  *Key   // whose UKIs the firmware starts
	TPM string // where it is, in the form that package tpm takes; nobody else speaks to it

	// Conf is the agent's configuration file, outside of the board, Env what is in its
	// environment besides: BIRTHMARK_….
	Conf string
	Env  []string

	// Log is told of each line that a program writes: agent, health, installer.
	Log func(program, line string)
	// Started is told of each start, when it has come as far as it does.
	Started func(Start)
	// Exited is told of a program that ended by itself.
	Exited func(program string, code int)
}

// A Start is what became of one.
type Start struct {
	Entry string // the file that was started, after its try was counted; "" if there is none
	Slot  string // that it runs from
	Boot  string // its name: boot_id of random(4)
	Err   error  // what stopped it before the agent
}

// A Board is a device that is off, or on while Run runs.
type Board struct {
	Config
	restart chan bool // whether in good order
}

// New makes a board on which a release was installed at the factory, blessed.
func New(c Config, r *Image) (*Board, error) {
	b := &Board{Config: c, restart: make(chan bool, 1)}
	if err := b.manufacture(r); err != nil {
		return nil, fmt.Errorf("cannot make a board in %s: %w", c.Dir, err)
	}
	return b, nil
}

func (b *Board) manufacture(r *Image) error {
	for _, folder := range []string{entryFolder, "efi/loader", variableFolder, slotFolder, "var/lib/birthmark", "var/lib/birthmark-installer"} {
		if err := os.MkdirAll(b.path(folder), 0o700); err != nil {
			return err
		}
	}
	for _, slot := range slots {
		f, err := os.OpenFile(b.path(slotFolder, slot), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Truncate(SlotSize), f.Close()); err != nil {
			return err
		}
	}
	root, err := os.ReadFile(r.Root)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(b.path(slotFolder, slots[0]), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(root)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	uki, err := os.ReadFile(r.UKI)
	if err != nil {
		return err
	}
	entry := fmt.Sprintf("%s_%v+%d.efi", r.Name, r.Version, tries)
	return errors.Join(os.WriteFile(b.path(entryFolder, entry), uki, 0o600), b.set(db, signatureList(b.DB.cert.Raw)))
}

// path is a file of the device.
func (b *Board) path(elem ...string) string {
	return filepath.Join(append([]string{b.Dir, "root"}, elem...)...)
}

// Path is a file of the device, by its path there.
func (b *Board) Path(path string) string { return b.path(path) }

// Entries are the names in EFI/Linux: what can be started, and how often, is in them.
func (b *Board) Entries() ([]string, error) {
	entries, err := os.ReadDir(b.path(entryFolder))
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, err
}

// Run powers the board on, and ends in good order when ctx ends, which is no error.
func (b *Board) Run(ctx context.Context) error {
	chip, err := b.openChip(ctx)
	if err != nil {
		return err
	}
	defer chip.close()
	for failed := 0; ctx.Err() == nil; {
		s, err := b.start()
		if err != nil {
			return fmt.Errorf("cannot start the board: %w", err)
		}
		if s.Err == nil {
			failed = 0
			if err := b.live(ctx, s); err != nil {
				return fmt.Errorf("cannot run %s: %w", s.Entry, err)
			}
			continue
		}
		if b.Started != nil {
			b.Started(s)
		}
		if failed++; failed == startsLimit {
			return fmt.Errorf("the board stands still after %d starts: %w", failed, s.Err)
		}
	}
	return nil
}

// Restart starts the board anew, as a person at its button does.
func (b *Board) Restart() { b.again(true) }

// Cut cuts its power and gives it back.
func (b *Board) Cut() { b.again(false) }

func (b *Board) again(orderly bool) {
	select {
	case b.restart <- orderly:
	default: // it is about to
	}
}

// Command is a command of the device's own binary on the device.
func (b *Board) Command(ctx context.Context, verb string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.path(agentPath), append([]string{verb}, args...)...)
	cmd.Env = b.environment()
	return cmd
}

const agentPath = "usr/bin/birthmark"

// environment is what every program on the device has.
func (b *Board) environment() []string {
	return append(append(os.Environ(), b.Env...), sysroot.Variable+"="+b.path(),
		"BIRTHMARK_DEVICE__STATE="+b.path("var/lib/birthmark"),
		"BIRTHMARK_DOORS__FOLDER="+b.path("run/birthmark"),
		"BIRTHMARK_TPM__ADDRESS=unix:"+b.path(chipPath))
}
