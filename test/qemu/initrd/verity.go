package main

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	blockSize  = 4096
	sectorSize = 512
)

// A verity is what the command line says about the root file system.
type verity struct {
	hash, salt []byte
	blocks     uint64
}

// parseVerity reads a command line. An argument that is there twice is refused: who
// put the second one there?
func parseVerity(line string) (v verity, err error) {
	arg := map[string]string{}
	for word := range strings.FieldsSeq(line) {
		name, value, _ := strings.Cut(word, "=")
		if !strings.HasPrefix(name, "verity.") {
			continue
		}
		if _, twice := arg[name]; twice {
			return v, fmt.Errorf("%s is on the command line twice", name)
		}
		arg[name] = value
	}
	if v.hash, err = hex.DecodeString(arg["verity.hash"]); err != nil || len(v.hash) != 32 {
		return v, errors.New("verity.hash is not 32 bytes in hex")
	}
	if v.salt, err = hex.DecodeString(arg["verity.salt"]); err != nil || len(v.salt) != 32 {
		return v, errors.New("verity.salt is not 32 bytes in hex")
	}
	if v.blocks, err = strconv.ParseUint(arg["verity.blocks"], 10, 32); err != nil || v.blocks == 0 {
		return v, errors.New("verity.blocks is not a number of blocks")
	}
	return v, nil
}

// table is the mapping in the words of the kernel's dm-verity: format, data and hash
// device, their block sizes, data blocks, first block of the tree, algorithm, root
// hash, salt; and what is to happen when a block does not verify.
func (v verity) table(device string) string {
	return fmt.Sprintf("1 %s %s %d %d %d %d sha256 %x %x 1 restart_on_corruption",
		device, device, blockSize, blockSize, v.blocks, v.blocks, v.hash, v.salt)
}

// mapTo makes the verified device of a slot and returns its node.
func (v verity) mapTo(slot partition) (string, error) {
	if v.blocks >= slot.sectors/(blockSize/sectorSize) {
		return "", fmt.Errorf("verity.blocks is %d, and %s has %d with its tree", v.blocks, slot.name, slot.sectors/(blockSize/sectorSize))
	}
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer control.Close()
	created := message(0)
	copy(created[uuidAt:], fmt.Sprintf("CRYPT-VERITY-%x-root", v.hash[:16])) // as cryptsetup names it, for udev
	load := message(readOnly, target{0, v.blocks * (blockSize / sectorSize), "verity", v.table(slot.number)})
	for _, step := range []struct {
		request uintptr
		message []byte
	}{{deviceCreate, created}, {tableLoad, load}, {deviceSuspend, message(0)}} {
		if err := tell(control, step.request, step.message); err != nil {
			return "", fmt.Errorf("cannot map %s: %w", slot.name, err)
		}
	}
	return fmt.Sprintf("/dev/dm-%d", unix.Minor(binary.LittleEndian.Uint64(created[deviceAt:]))), nil
}

// The kernel's device mapper, linux/dm-ioctl.h: requests with the size of struct
// dm_ioctl in them, and where its fields are.
const (
	deviceCreate  = 0xc138fd03
	deviceSuspend = 0xc138fd06 // resume, without the flag to suspend
	tableLoad     = 0xc138fd09

	readOnly = 1 << 0

	headerSize = 312 // struct dm_ioctl
	targetSize = 40  // struct dm_target_spec

	sizeAt, startAt, countAt, flagsAt = 12, 16, 20, 28
	deviceAt, nameAt, uuidAt          = 40, 48, 176
)

// A target is one line of a device's table.
type target struct {
	start, length uint64 // in sectors
	kind, params  string
}

// message is a request about the device "root".
func message(flags uint32, targets ...target) []byte {
	le := binary.LittleEndian
	b := make([]byte, headerSize)
	for _, t := range targets {
		size := (targetSize + len(t.params) + 1 + 7) &^ 7 // with a NUL, in eights
		spec := make([]byte, size)
		le.PutUint64(spec[0:], t.start)
		le.PutUint64(spec[8:], t.length)
		le.PutUint32(spec[20:], uint32(size)) // to the next
		copy(spec[24:40], t.kind)
		copy(spec[targetSize:], t.params)
		b = append(b, spec...)
	}
	le.PutUint32(b, 4) // version 4.0.0 of the interface
	le.PutUint32(b[sizeAt:], uint32(len(b)))
	le.PutUint32(b[startAt:], headerSize)
	le.PutUint32(b[countAt:], uint32(len(targets)))
	le.PutUint32(b[flagsAt:], flags)
	copy(b[nameAt:], "root")
	return b
}

// tell sends a message; the kernel answers in it.
func tell(control *os.File, request uintptr, message []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), request, uintptr(unsafe.Pointer(&message[0])))
	runtime.KeepAlive(message)
	if errno != 0 {
		return errno
	}
	return nil
}
