package board

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"birthmark/pkg/fota/sdboot/pe"
)

const slotFolder = "dev/disk/by-partlabel"

var slots = [2]string{"root-a", "root-b"}

// start is firmware, boot loader and kernel. Its error is one of this machine's; what
// befell the board is in the Start.
func (b *Board) start() (s Start, err error) {
	if s.Entry, err = b.boot(); err != nil {
		return s, err
	}
	if s.Entry == "" {
		s.Err = errors.New("the boot loader finds nothing to start")
		return s, nil
	}
	var line string
	s.Err = b.program(s.Entry, func(program *pe.File) (err error) {
		if err := b.verify(program); err != nil {
			return err
		}
		line, err = section(program, ".cmdline")
		return err
	})
	if s.Err != nil {
		return s, nil
	}
	for _, folder := range []string{"usr", "etc", "sbin", "proc", "run"} {
		if err := os.RemoveAll(b.path(folder)); err != nil {
			return s, err
		}
	}
	for _, folder := range []string{"proc/sys/kernel/random", "run/birthmark", "run/dbus"} {
		if err := os.MkdirAll(b.path(folder), 0o755); err != nil {
			return s, err
		}
	}
	s.Boot = bootID()
	if err := errors.Join(
		os.WriteFile(b.path("proc/cmdline"), []byte(line+"\n"), 0o644),
		os.WriteFile(b.path("proc/sys/kernel/random/boot_id"), []byte(s.Boot+"\n"), 0o644)); err != nil {
		return s, err
	}
	s.Slot, s.Err = b.mount(line)
	return s, nil
}

// bootID is a random UUID (RFC 9562, 5.4).
func bootID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// mount finds the slot that a command line names by the root of its hash tree, verifies
// it, unpacks it, and looks for init.
func (b *Board) mount(line string) (slot string, err error) {
	arg := map[string]string{}
	for word := range strings.FieldsSeq(line) {
		name, value, _ := strings.Cut(word, "=")
		arg[name] = value
	}
	root, errRoot := hex.DecodeString(arg["verity.hash"])
	salt, errSalt := hex.DecodeString(arg["verity.salt"])
	blocks, errBlocks := strconv.Atoi(arg["verity.blocks"])
	if errors.Join(errRoot, errSalt, errBlocks) != nil || len(salt) != 32 {
		return "", fmt.Errorf("panic: the command line names no root file system: %s", line)
	}
	for _, slot := range slots {
		medium, err := os.ReadFile(b.path(slotFolder, slot))
		if err != nil {
			return "", err
		}
		if blocks < 1 || blocks >= len(medium)/blockSize {
			continue
		}
		data, behind := medium[:blocks*blockSize], medium[blocks*blockSize:]
		if top := blockHash(behind[:blockSize], [32]byte(salt)); !bytes.Equal(top[:], root) {
			continue
		}
		tree, hash := hashTree(data, [32]byte(salt))
		if !bytes.Equal(hash[:], root) || !bytes.HasPrefix(behind, tree) {
			return slot, fmt.Errorf("panic: %s is not what its hash tree says", slot)
		}
		if err := unpack(data, b.path()); err != nil {
			return slot, err
		}
		if _, err := os.Stat(b.path(arg["init"])); arg["init"] == "" || err != nil {
			return slot, fmt.Errorf("panic: no working init found: %s", arg["init"])
		}
		return slot, nil
	}
	return "", errors.New("panic: no slot has the root file system that the command line names")
}
