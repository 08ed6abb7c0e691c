package api

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// everybody is in place of a group.
const everybody = "everybody"

// draft is the folder, for its owner only, in which a socket is made before it is
// moved to its place.
const draft = ".new"

// A socket is listened at by us.
type socket struct {
	net.Listener
	path string
	info fs.FileInfo
	who  string // who may come in; for people
}

// makeFolder makes a folder for sockets, which all may enter and nobody else may
// write to: who can, can put a socket of his own in place of ours.
func makeFolder(folder string) error {
	err := os.Mkdir(folder, 0o755)
	if err == nil {
		err = os.Chmod(folder, 0o755) // whatever the umask
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("cannot make a folder for sockets: %w", err)
	}
	info, err := os.Lstat(folder)
	if err != nil {
		return fmt.Errorf("cannot use a folder for sockets: %w", err)
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	if !info.IsDir() || info.Mode().Perm()&0o022 != 0 || owner != 0 && owner != uint32(os.Geteuid()) {
		return fmt.Errorf("cannot use %s for sockets: not a folder (%v) that only this user can write to", folder, info.Mode())
	}
	return nil
}

// listen listens at path, for the members of group. The socket is made, and given
// to them, where nobody can see it, and then moved: it is never open to others, not
// even for a moment. One that a killed agent left there is replaced.
func listen(path, group string) (_ *socket, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot open the door %s: %w", path, err)
		}
	}()
	if err := vacant(path); err != nil {
		return nil, err
	}
	dir := filepath.Join(filepath.Dir(path), draft)
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) // what stays is removed by the next one
	made := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // by its first name
	s := &socket{Listener: l, path: path}
	if s.who, err = admit(made, group); err == nil {
		if s.info, err = os.Lstat(made); err == nil {
			err = os.Rename(made, path)
		}
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return s, nil
}

// vacant says why there can be no socket of ours at path.
func vacant(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("there is something else than a socket")
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return errors.New("another program listens there")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) { // a queue that is full, for example
		return err
	}
	return nil
}

// admit lets group in, or nobody where that cannot be, and returns who it was.
func admit(path, group string) (string, error) {
	if group == everybody {
		return group, os.Chmod(path, 0o666)
	}
	mode, who := fs.FileMode(0o660), "group "+group
	g, err := user.LookupGroup(group)
	if err == nil {
		var gid int
		if gid, err = strconv.Atoi(g.Gid); err == nil {
			err = os.Chown(path, -1, gid)
		}
	}
	if err != nil {
		mode, who = 0o600, "this user only: "+err.Error()
	}
	return who, os.Chmod(path, mode)
}

// remove removes the socket's file, unless somebody has put another one there.
func (s *socket) remove() error {
	info, err := os.Lstat(s.path)
	if err != nil || !os.SameFile(info, s.info) {
		return err
	}
	return os.Remove(s.path)
}
