package sdboot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"birthmark/pkg/fota"
)

// A variable of UEFI is a name, and whose it is.
type variable struct{ name, vendor string }

const (
	vendorGlobal   = "8be4df61-93ca-11d2-aa0d-00e098032b8c" // UEFI 2.10, 3.3
	vendorSecurity = "d719b2cb-3d3a-4596-a3bc-dad00e67656f" // UEFI 2.10, 32.4
	vendorLoader   = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f" // Boot Loader Interface
)

// The Boot Loader Interface (systemd.io/BOOT_LOADER_INTERFACE).
var (
	loaderInfo     = variable{"LoaderInfo", vendorLoader}
	loaderFeatures = variable{"LoaderFeatures", vendorLoader}
	entrySelected  = variable{"LoaderEntrySelected", vendorLoader}
	entryOneShot   = variable{"LoaderEntryOneShot", vendorLoader}
	entryDefault   = variable{"LoaderEntryDefault", vendorLoader}
	bootCountPath  = variable{"LoaderBootCountPath", vendorLoader}

	secureBootState = variable{"SecureBoot", vendorGlobal}
	allowedList     = variable{"db", vendorSecurity}
	forbiddenList   = variable{"dbx", vendorSecurity}
)

const (
	textLimit = 4 << 10   // bytes of a variable with text
	dataLimit = 256 << 10 // bytes of any; dbx is the largest, with about 24 KiB in 2025

	attributesSize   = 4
	loaderAttributes = 7 // non-volatile, boot and run time

	featureBootCounting = 1 << 4 // of LoaderFeatures
)

// variables is a folder that is efivarfs (Documentation/filesystems/efivarfs.rst): each
// file holds the attributes, 32 bits, and then the contents.
type variables struct{ folder string }

func (v variables) path(x variable) string { return filepath.Join(v.folder, x.name+"-"+x.vendor) }

// read returns the contents of a variable; the error is fs.ErrNotExist for one that is
// not there.
func (v variables) read(x variable, limit int) ([]byte, error) {
	b, err := fota.ReadFile(v.path(x), attributesSize+limit)
	if err != nil {
		return nil, fmt.Errorf("cannot read the variable %s: %w", x.name, err)
	}
	if len(b) < attributesSize {
		return nil, fmt.Errorf("the variable %s has %d bytes, too few", x.name, len(b))
	}
	return b[attributesSize:], nil
}

// text reads a variable that holds text.
func (v variables) text(x variable) (string, error) {
	b, err := v.read(x, textLimit)
	if err != nil {
		return "", err
	}
	text, ok := decodeText(b)
	if !ok {
		return "", fmt.Errorf("the variable %s holds no text", x.name)
	}
	return text, nil
}

// decodeText reads text as UEFI writes it: UTF-16, low byte first, with a NUL at its end.
func decodeText(b []byte) (text string, ok bool) {
	if len(b)%2 != 0 {
		return "", false
	}
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	text, ok = strings.CutSuffix(string(utf16.Decode(units)), "\x00")
	// Half a character is decoded as the sign for that.
	return text, ok && !strings.ContainsAny(text, "\x00"+string(utf8.RuneError))
}

func encodeText(text string) (b []byte) {
	for _, unit := range utf16.Encode([]rune(text + "\x00")) {
		b = binary.LittleEndian.AppendUint16(b, unit)
	}
	return b
}

// setText writes a variable, unless it holds that text already: each write wears the
// firmware's memory out.
func (v variables) setText(x variable, text string) error {
	want := append(binary.LittleEndian.AppendUint32(nil, loaderAttributes), encodeText(text)...)
	if len(want) > attributesSize+textLimit {
		return fmt.Errorf("the text for the variable %s has %d bytes, limit %d", x.name, len(want), textLimit)
	}
	path := v.path(x)
	old, err := fota.ReadFile(path, attributesSize+dataLimit)
	if err == nil && bytes.Equal(old, want) {
		return nil
	}
	isNew := errors.Is(err, fs.ErrNotExist)
	if err != nil && !isNew {
		return err
	}
	if !isNew {
		if err := makeMutable(path); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	// All of it in one write(2): each one sets the variable.
	_, err = f.Write(want)
	if err = errors.Join(err, f.Close()); err != nil {
		if isNew {
			err = errors.Join(err, os.Remove(path)) // it is there, and empty
		}
		return fmt.Errorf("cannot set the variable %s: %w", x.name, err)
	}
	return nil
}

// remove removes a variable that need not be there.
func (v variables) remove(x variable) error {
	err := makeMutable(v.path(x))
	if err == nil {
		err = os.Remove(v.path(x))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove the variable %s: %w", x.name, err)
	}
	return nil
}

const immutable = 0x10 // FS_IMMUTABLE_FL of linux/fs.h, chattr(1)'s i

// makeMutable clears the flag with which efivarfs protects variables from `rm -r`.
func makeMutable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fail := func(err error) error { return &fs.PathError{Op: "ioctl", Path: path, Err: err} }
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	switch {
	case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EOPNOTSUPP):
		return nil // a file system without flags
	case err != nil:
		return fail(err)
	case flags&immutable == 0:
		return nil
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutable); err != nil {
		return fail(err)
	}
	return nil
}

// secureBoot reports whether the firmware asks for signatures (UEFI 2.10, 3.3). Firmware
// that does not know the question does not ask.
func (v variables) secureBoot() (bool, error) {
	b, err := v.read(secureBootState, 1)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil && (len(b) != 1 || b[0] > 1) {
		err = fmt.Errorf("the variable SecureBoot is %x, want 00 or 01", b)
	}
	return err == nil && b[0] == 1, err
}

// countsBoots reports whether the boot loader says that it counts tries.
func (v variables) countsBoots() (bool, error) {
	b, err := v.read(loaderFeatures, 8)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil && len(b) != 8 {
		err = fmt.Errorf("the variable LoaderFeatures has %d bytes, want 8", len(b))
	}
	return err == nil && binary.LittleEndian.Uint64(b)&featureBootCounting != 0, err
}
