package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"birthmark/internal/agent"
	"birthmark/pkg/audit"
	"birthmark/pkg/store"
	"birthmark/test/qemu/writelog"
)

// An offline looks at the disks of devices that are off.
type offline struct {
	size int64  // of the disks
	dir  string // for files
}

func newOffline(t *testing.T) offline {
	t.Helper()
	info, err := os.Stat(img.Disk)
	if err != nil {
		t.Fatal(err)
	}
	return offline{info.Size(), t.TempDir()}
}

// read reads what look needs of a disk.
func (o offline) read(path string) (*writelog.Disk, error) {
	d := writelog.NewDisk()
	if err := o.readTables(d, path); err != nil {
		return nil, err
	}
	start, size, err := partition(d, o.size, "data")
	if err != nil {
		return nil, err
	}
	return d, load(d, path, start, size)
}

// readTables reads no more than both tables of a disk.
func (o offline) readTables(d *writelog.Disk, path string) error {
	return errors.Join(load(d, path, 0, tableSize), load(d, path, o.size-tableSize, tableSize))
}

// load reads a part of a disk in a file.
func load(d *writelog.Disk, path string, at, size int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(io.NewOffsetWriter(d, at), io.NewSectionReader(f, at, size))
	return err
}

// A wreck is what is found on a disk after a power cut. There may be no file system yet,
// and no state.
type wreck struct {
	dir    string // the state folder, until the next look
	state  []byte // state.json
	device agent.Device
	audit  []byte
}

// look does to a disk what a device does when it starts, and tells what is on it.
func (o offline) look(d *writelog.Disk) (wreck, error) {
	start, size, err := partition(d, o.size, "data")
	if err != nil || size == 0 {
		return wreck{}, err // the device makes it when it starts again
	}
	data, state := filepath.Join(o.dir, "data.img"), filepath.Join(o.dir, "birthmark")
	if err := errors.Join(os.RemoveAll(state), d.Save(data, start, size)); err != nil {
		return wreck{}, err
	}
	// systemd does this, and goes on when it ends with 0 or 1: all is well now.
	out, err := exec.Command("/usr/sbin/e2fsck", "-p", data).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		return wreck{}, fmt.Errorf("the device does not start: e2fsck: %w: %s", err, out)
	}
	if out, err := exec.Command("/usr/sbin/e2fsck", "-f", "-n", data).CombinedOutput(); err != nil {
		return wreck{}, fmt.Errorf("the file system is damaged: e2fsck: %w: %s", err, out)
	}
	// debugfs ends with 0 in any case.
	out, err = exec.Command("/usr/sbin/debugfs", "-R", "rdump /lib/birthmark "+o.dir, data).CombinedOutput()
	if err != nil {
		return wreck{}, fmt.Errorf("debugfs: %w: %s", err, out)
	}
	if bytes.Contains(out, []byte("File not found")) {
		return wreck{}, nil
	}
	if _, err := os.Stat(state); err != nil {
		return wreck{}, fmt.Errorf("debugfs: %w: %s", err, out)
	}
	w := wreck{dir: state}
	for name, text := range map[string]*[]byte{"state.json": &w.state, "audit.log": &w.audit} {
		if *text, err = os.ReadFile(filepath.Join(state, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return wreck{}, err
		}
	}
	if w.device, _, err = store.Read[agent.Device](state); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return wreck{}, fmt.Errorf("half a state: %w", err)
	}
	return w, nil
}

// openAudit opens the audit log as the agent does, and finds nothing damaged.
func (w wreck) openAudit() error {
	if w.audit == nil {
		return nil
	}
	log, err := audit.Open(w.dir)
	if err != nil {
		return err
	}
	if damaged, err := filepath.Glob(filepath.Join(w.dir, "*damaged*")); err != nil || len(damaged) > 0 {
		return errors.Join(fmt.Errorf("the agent takes for damaged what is in %q", damaged), err, log.Close())
	}
	return log.Close()
}
