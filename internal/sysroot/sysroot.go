// Package sysroot says where the file system of the device begins: at "/", unless
// $BIRTHMARK_ROOT names a folder. Then what the agent and the installer look for at fixed
// places is looked for below that: os-release, the kernel's word on this start, EFI
// variables and slots, trust in firmware, health checks, the sockets of the installer and
// of D-Bus. So a lab can play a device in a folder, with the device's own binary.
//
// A folder in place of "/" is the word of who starts the program, about what that program
// alone looks at, and believes: whom it trusts, which release runs, and even a TPM, for in a
// folder the installer's is a socket there, of whoever has made it. So a program that plays
// says nothing about the device that it runs on, and says in its log that it plays. On a
// device nothing plays: the units take the variable away (UnsetEnvironment=), sudo and
// polkit pass none on, and who can change root's units could as well start another program.
package sysroot

import (
	"cmp"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// Variable is the name of the environment variable.
const Variable = "BIRTHMARK_ROOT"

var dir = filepath.Clean(cmp.Or(os.Getenv(Variable), "/"))

// Check refuses a folder that is not named by an absolute path: it would be another one for
// each program.
func Check() error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("%s is %q, which is no absolute path", Variable, dir)
	}
	return nil
}

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
