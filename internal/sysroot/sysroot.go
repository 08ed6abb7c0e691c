// Package sysroot says where the file system of the device begins: at "/", unless
// $BIRTHMARK_ROOT names a folder. Then what the agent and the installer look for at fixed
// places is looked for below that: os-release, the kernel's word on this start, EFI
// variables and slots, trust in firmware, health checks, the sockets of the installer and
// of D-Bus. So a lab can play a device in a folder, with the device's own binary.
//
// On a device it opens nothing. A folder in place of "/" is the word of who starts the
// program, about what that program alone looks at: for what runs as root that is who
// writes root's units, who could as well start another program; sudo and polkit pass no
// variables on. Nobody is believed more for it: what the TPM holds, and what its keys
// sign, is not in a folder. The agent and the installer say in their log that they play.
package sysroot

import (
	"cmp"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// Variable is the name of the environment variable.
const Variable = "BIRTHMARK_ROOT"

var dir = filepath.Clean(cmp.Or(os.Getenv(Variable), "/"))

// Dir is the folder.
func Dir() string { return dir }

// Path is where a file of the device is, by its path there.
func Path(path string) string { return filepath.Join(dir, path) }

// Device is where a character device answers: in a folder it is a Unix socket.
func Device(path string) string {
	if dir == "/" {
		return path
	}
	return "unix:" + Path(path)
}

// FS is the file system of the device.
func FS() fs.FS { return os.DirFS(dir) }

// Played is the message in a log that the device is played.
const Played = "a device is played in a folder"

// Tell says so.
func Tell(log *slog.Logger) {
	if dir != "/" {
		log.Warn(Played, "root", dir)
	}
}
