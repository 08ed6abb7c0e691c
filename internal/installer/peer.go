package installer

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// peerLimit is how long a peer may take to make its request, and to take a line.
const peerLimit = 5 * time.Second

// A peer is who is at the other end of a connection.
type peer struct {
	c     *net.UnixConn
	uid   uint32
	inbox inbox
	in    *bufio.Reader // of inbox

	mu sync.Mutex // for lines to it
}

func newPeer(c *net.UnixConn) (*peer, error) {
	p := &peer{c: c, inbox: inbox{c: c}}
	p.in = bufio.NewReaderSize(&p.inbox, requestLimit)
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var errCred error
	err = raw.Control(func(fd uintptr) {
		cred, errCred = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, errCred); err != nil {
		return nil, fmt.Errorf("cannot tell who asks: %w", err)
	}
	p.uid = cred.Uid
	return p, nil
}

// tell sends a line.
func (p *peer) tell(a answer) error {
	text, err := line(a, answerLimit)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.c.SetWriteDeadline(time.Now().Add(peerLimit)); err != nil {
		return err
	}
	_, err = p.c.Write(text)
	return err
}

// request reads the one line that a peer may send by itself, and the descriptor that
// may come with it.
func (p *peer) request() (r request, file *os.File, err error) {
	if err := p.c.SetReadDeadline(time.Now().Add(peerLimit)); err != nil {
		return r, nil, err
	}
	text, err := readLine(p.in)
	if err != nil {
		return r, nil, fmt.Errorf("no whole request came: %w", err)
	}
	if p.in.Buffered() > 0 {
		return r, nil, errors.New("a connection is for one request")
	}
	if r, err = parseRequest(text); err != nil {
		return r, nil, fmt.Errorf("cannot take the request: %w", err)
	}
	switch files := p.inbox.files; {
	case len(files) > 1:
		return r, nil, fmt.Errorf("%d descriptors came, one is allowed", len(files))
	case len(files) == 1 && r.verb != "permit" && (r.verb != "install" || r.size != nil):
		return r, nil, errors.New("a descriptor is for an install that names no size, or for a permit")
	case len(files) == 1:
		file, p.inbox.files = files[0], nil
	case r.verb == "permit":
		return r, nil, errors.New("permit takes a descriptor")
	case r.verb == "install" && r.size == nil:
		return r, nil, errors.New("install takes a size, or a descriptor")
	}
	return r, file, p.c.SetReadDeadline(time.Time{})
}

// An inbox reads from a connection, and keeps the descriptors that come along.
type inbox struct {
	c     *net.UnixConn
	files []*os.File
}

// descriptorsLimit is how many descriptors are counted; the kernel closes the others.
const descriptorsLimit = 4

func (i *inbox) Read(b []byte) (int, error) {
	var control [64]byte
	oob := control[:unix.CmsgSpace(4*descriptorsLimit)]
	n, oobn, flags, _, err := i.c.ReadMsgUnix(b, oob)
	if err != nil {
		return 0, err // n may be negative
	}
	if err := i.take(oob[:oobn]); err != nil {
		return 0, err
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return 0, errors.New("too many descriptors came")
	}
	return n, nil
}

func (i *inbox) take(oob []byte) error {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return err
		}
		for _, fd := range fds {
			i.files = append(i.files, os.NewFile(uintptr(fd), "the bundle"))
		}
	}
	if len(i.files) > descriptorsLimit {
		return errors.New("too many descriptors came")
	}
	return nil
}

func (i *inbox) close() {
	for _, f := range i.files {
		f.Close()
	}
	i.files = nil
}

// fileSize is the size of a file that a peer has opened, if it is one whose reads end:
// a pipe, a device, or a file system that is some process may keep a reader for ever.
func fileSize(f *os.File) (int64, error) {
	var st unix.Stat_t
	var fs unix.Statfs_t
	var flags int
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var errs [3]error
	err = raw.Control(func(fd uintptr) {
		flags, errs[0] = unix.FcntlInt(fd, unix.F_GETFL, 0)
		errs[1] = unix.Fstat(int(fd), &st)
		errs[2] = unix.Fstatfs(int(fd), &fs)
	})
	switch {
	case errors.Join(err, errs[0], errs[1], errs[2]) != nil:
		return 0, fmt.Errorf("cannot look at the descriptor: %w", errors.Join(err, errs[0], errs[1], errs[2]))
	case st.Mode&syscall.S_IFMT != syscall.S_IFREG:
		return 0, errors.New("the descriptor is not of a regular file")
	case flags&unix.O_PATH != 0 || flags&unix.O_ACCMODE == unix.O_WRONLY:
		return 0, errors.New("the descriptor is not for reading")
	case fs.Type == unix.FUSE_SUPER_MAGIC:
		return 0, errors.New("the file is in a file system of a process (FUSE)")
	}
	return st.Size, nil
}
