package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"birthmark/pkg/audit"
	"birthmark/pkg/clock"
	"birthmark/pkg/lifecycle"
)

const (
	roomWanted = 16 << 20 // bytes that all files of the agent together can take, and some more
	roomNeeded = 1 << 20  // bytes without which it stands still
	syncSlow   = time.Second
)

// state looks at the state file. err is what reading the state
// ended in.
func (x *examination) state(err error) Check {
	c := Check{Name: "state", Result: OK, Found: fmt.Sprintf("the device %s is %s", x.device.ID, x.device.State)}
	aside, _ := filepath.Glob(filepath.Join(x.Device.State, "*.damaged-*"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.Found = "there is none yet: the device was never started"
	case err != nil:
		c = failed("state", err)
		if c.Do == "" {
			c.Do = "the agent keeps a damaged file aside when it starts, and begins with the device's birth again"
		}
		if c.Unreachable {
			c.Do = "ask as root, or as a member of group birthmark-admin while the agent runs"
		}
	case !lifecycle.Known(x.device.State):
		c.Result, c.Found = Fail, fmt.Sprintf("the state %q is not known to this version", x.device.State)
		c.Do = "a newer agent wrote it: install that one"
	case len(aside) > 0:
		c.Result, c.Found = Warn, c.Found+fmt.Sprintf("; %d damaged files were kept aside, such as %s", len(aside), aside[0])
		c.Do = "look for the cause (disk, power), then remove them"
	}
	return c
}

// audit follows the chain of the audit log.
func (x *examination) audit() Check {
	c := Check{Name: "audit log", Result: OK}
	f, err := os.Open(filepath.Join(x.Device.State, "audit.log"))
	if errors.Is(err, fs.ErrNotExist) {
		c.Found = "there is none yet"
		return c
	}
	if err != nil {
		return failed(c.Name, err)
	}
	defer f.Close()
	_, n, err := audit.Verify(f, "")
	c.Found = fmt.Sprintf("%d lines, an unbroken chain", n)
	if err != nil {
		c.Result, c.Found = Fail, err.Error()
		c.Do = "somebody, or a broken disk, changed it: keep a copy as evidence"
	}
	return c
}

// disk looks for room, and whether what is written stays.
func (x *examination) disk(context.Context) []Check {
	folder := x.Device.State
	c := Check{Name: "disk", Result: OK}
	if _, err := os.Stat(folder); errors.Is(err, fs.ErrNotExist) {
		c.Found = folder + " is not there yet: the agent makes it"
		return []Check{c}
	}
	var room syscall.Statfs_t
	if err := syscall.Statfs(folder, &room); err != nil {
		return []Check{failed(c.Name, &fs.PathError{Op: "statfs", Path: folder, Err: err})}
	}
	free := room.Bavail * uint64(room.Frsize)
	took, err := writeAndSync(folder)
	c.Found = fmt.Sprintf("%d MiB free, a synced write took %.1f ms", free>>20, float64(took.Microseconds())/1000)
	switch {
	case errors.Is(err, fs.ErrPermission):
		c = failed(c.Name, err)
		c.Do = "ask as root, or as a member of group birthmark-admin while the agent runs"
	case err != nil:
		c.Result, c.Found, c.Do = Fail, err.Error(), "is the disk full, or mounted read-only?"
	case free < roomNeeded:
		c.Result, c.Do = Fail, "make room: the agent cannot remember anything new"
	case free < roomWanted:
		c.Result, c.Do = Warn, fmt.Sprintf("make room: the agent may need %d MiB", roomWanted>>20)
	case took > syncSlow:
		c.Result, c.Do = Warn, "the disk is slow, or wears out: every step of the agent waits for it"
	}
	return []Check{c}
}

// writeAndSync writes a file to folder and removes it again.
func writeAndSync(folder string) (took time.Duration, err error) {
	start := time.Now()
	f, err := os.CreateTemp(folder, ".doctor-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	if _, err := f.Write(make([]byte, 4096)); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	return time.Since(start), nil
}

// time looks at the clock.
func (x *examination) time(context.Context) []Check {
	now := time.Now()
	c := Check{Name: "clock", Result: OK, Found: fmt.Sprintf("%s, synchronised", now.UTC().Format(time.RFC3339))}
	if !x.clock.Trusted() {
		c.Result, c.Found = Warn, fmt.Sprintf("%s, not synchronised: an expired certificate cannot be told from a valid one", now.UTC().Format(time.RFC3339))
		c.Do = "run systemd-timesyncd, and see whether it reaches a server"
	}
	if now.Before(clock.Build()) {
		c.Found += ", and before this software was built"
	}
	return []Check{c}
}
