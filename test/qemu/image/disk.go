package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const mib = 1 << 20

// The disk: a GPT with the EFI system partition and two slots, and room behind them,
// of which the device makes its data partition when it first starts.
const (
	espStart, espSize    = 1 * mib, 128 * mib
	slotSize, fileSystem = 192 * mib, 188 * mib // the tree is in the rest
	SlotA                = espStart + espSize
	SlotB                = SlotA + slotSize
	dataRoom             = 256 * mib
	diskSize             = SlotB + slotSize + dataRoom + mib
)

// makeDisk makes the table and fills the first two partitions.
func makeDisk(ctx context.Context, path, esp, root string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(diskSize); err != nil {
		return err
	}
	const rootType = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709" // Discoverable Partitions Specification
	table := exec.CommandContext(ctx, "sfdisk", "--quiet", path)
	table.Stdin = strings.NewReader(fmt.Sprintf(`label: gpt
label-id: b1a8c5d0-0000-4000-8000-000000000010
start=%dKiB, size=%dKiB, type=U, name=esp, uuid=b1a8c5d0-0000-4000-8000-000000000011
start=%dKiB, size=%dKiB, type=%s, name=root-a, uuid=b1a8c5d0-0000-4000-8000-000000000012
start=%dKiB, size=%dKiB, type=%s, name=root-b, uuid=b1a8c5d0-0000-4000-8000-000000000013
`, espStart>>10, espSize>>10, SlotA>>10, slotSize>>10, rootType, SlotB>>10, slotSize>>10, rootType))
	if _, err := command(table); err != nil {
		return err
	}
	return errors.Join(put(f, esp, espStart), put(f, root, SlotA), f.Close())
}

// put writes a file into another at an offset, and leaves out what is zero.
func put(to *os.File, from string, at int64) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	chunk, zero := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(f, chunk)
		if n > 0 && !bytes.Equal(chunk[:n], zero[:n]) {
			if _, err := to.WriteAt(chunk[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// loaderConf starts the newest release at once, and lets nobody change its command
// line.
const loaderConf = "timeout 0\neditor no\n"

// makeESP makes the EFI system partition with a boot loader and one release.
func makeESP(ctx context.Context, path string, loader []byte, name string, uki []byte) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	if err := run(ctx, "mkfs.vfat", "-C", "-F", "32", "-n", "ESP", "-i", "b1a8c5d0", path, fmt.Sprint(espSize>>10)); err != nil {
		return err
	}
	esp := esp{path}
	if err := run(ctx, "mmd", "-i", path, "::EFI", "::EFI/BOOT", "::EFI/systemd", "::EFI/Linux", "::loader"); err != nil {
		return err
	}
	return errors.Join(
		esp.write(ctx, "EFI/BOOT/BOOTX64.EFI", loader),
		esp.write(ctx, "EFI/systemd/systemd-bootx64.efi", loader),
		esp.write(ctx, "loader/loader.conf", []byte(loaderConf)),
		esp.write(ctx, "EFI/Linux/"+name, uki),
	)
}

// An esp is an EFI system partition: a file, or FILE@@OFFSET.
type esp struct{ at string }

func (e esp) write(ctx context.Context, name string, text []byte) error {
	dir, err := os.MkdirTemp("", "bm-esp")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	from := filepath.Join(dir, "file")
	if err := os.WriteFile(from, text, 0o600); err != nil {
		return err
	}
	return run(ctx, "mcopy", "-o", "-i", e.at, from, "::"+name)
}
