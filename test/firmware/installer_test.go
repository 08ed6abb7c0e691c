package firmware

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"birthmark/internal/installer"
	"birthmark/pkg/clock"
	"birthmark/pkg/fota"
	"birthmark/pkg/fota/sdboot"
)

// serverOf is the installer of a device.
func serverOf(root string, log io.Writer) *installer.Server {
	return &installer.Server{Version: "test", Users: []uint32{uint32(os.Getuid())}, Idle: time.Hour, Log: slog.New(slog.NewTextHandler(log, nil)),
		Boot: sdboot.Installer{Root: root, Tries: 3}, Clock: clock.Host(),
		Trust: []string{filepath.Join(root, "trust")}, State: filepath.Join(root, "installer")}
}

// listen makes the installer's socket.
func (d *device) listen() *net.UnixListener {
	d.Helper()
	folder, err := os.MkdirTemp("", "") // the path of a socket is short
	d.must(err)
	d.Cleanup(func() { os.RemoveAll(folder) })
	d.socket = filepath.Join(folder, "socket")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.socket, Net: "unix"})
	d.must(err)
	return l
}

// serve has an installer serve the device until stop. It is not part of a bubble.
func (d *device) serve() *device {
	d.Helper()
	l := d.listen()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serverOf(d.root, io.Discard).Serve(ctx, l) }()
	d.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			d.Errorf("the installer ended with %v", err)
		}
		d.stop = func() {}
	}
	d.Cleanup(func() { d.stop() })
	return d
}

// A fault is what the kernel does to the installer of a device.
type fault struct {
	// Room is how many bytes the EFI system partition has; 0: as many as the disk.
	Room int64
	// Call is a system call that fails with an error, if one of its arguments is Value, or
	// at least that.
	Call    uint32
	Fails   syscall.Errno
	Arg     int
	Value   uint32
	AtLeast bool
}

// playVariable has the test program play the installer, as it says.
const playVariable = "BIRTHMARK_TEST_INSTALLER"

type part struct {
	Root  string
	Fault fault
}

// serveWith has an installer serve the device, as a process to which the kernel does
// that, until stop.
func (d *device) serveWith(f fault) *device {
	d.Helper()
	socket, err := d.listen().File()
	d.must(err)
	defer socket.Close()
	order, err := json.Marshal(part{d.root, f})
	d.must(err)
	self, err := os.Executable()
	d.must(err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), playVariable+"="+string(order))
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Stderr = os.Stderr
	if f.Room > 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}}
	}
	said, err := cmd.StdoutPipe()
	d.must(err)
	d.must(cmd.Start())
	d.stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		d.esp, d.stop = d.path("efi"), func() {}
	}
	d.Cleanup(func() { d.stop() })
	if line, err := bufio.NewReader(said).ReadString('\n'); err != nil {
		d.Fatalf("the installer said %q, %v", line, err)
	}
	if f.Room > 0 {
		d.esp = filepath.Join(fmt.Sprintf("/proc/%d/root", cmd.Process.Pid), d.path("efi"))
	}
	return d
}

// play is the installer as a process.
func play(order string) error {
	var p part
	if err := json.Unmarshal([]byte(order), &p); err != nil {
		return err
	}
	f, err := net.FileListener(os.NewFile(3, "socket"))
	if err != nil {
		return err
	}
	if p.Fault.Room > 0 {
		if err := small(filepath.Join(p.Root, "efi"), p.Fault.Room); err != nil {
			return fmt.Errorf("cannot have a small file system: %w", err)
		}
	}
	if p.Fault.Fails != 0 {
		if err := p.Fault.install(); err != nil {
			return fmt.Errorf("cannot have a system call fail: %w", err)
		}
	}
	fmt.Println("up")
	return serverOf(p.Root, io.Discard).Serve(context.Background(), f.(*net.UnixListener))
}

// small puts a file system of so many bytes in the place of a folder, with what is in it.
func small(folder string, size int64) error {
	files := map[string][]byte{}
	err := filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		files[path], err = os.ReadFile(path)
		return err
	})
	if err == nil {
		err = syscall.Mount("tmpfs", folder, "tmpfs", 0, fmt.Sprintf("size=%d", size))
	}
	for path, b := range files {
		err = errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b, 0o600))
	}
	return err
}

// install has the kernel let a system call fail from now on (seccomp(2)), in all threads.
func (f fault) install() error {
	const number, arguments = 0, 16 // of struct seccomp_data; on a little-endian machine
	compare := uint16(unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K)
	if f.AtLeast {
		compare = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	}
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: f.Call, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: uint32(arguments + 8*f.Arg)},
		{Code: compare, K: f.Value, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(f.Fails)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return errno
	}
	return nil
}

// A rootSide is the installer as the agent wants it.
type rootSide struct{ installer.Client }

func (r rootSide) Status(ctx context.Context) (fota.Status, error) {
	s, err := r.Client.Status(ctx)
	switch {
	case err != nil:
		return fota.Status{}, err
	case s.Device == nil:
		return fota.Status{}, fmt.Errorf("the installer says %q", s.Notes)
	}
	return *s.Device, nil
}

func (r rootSide) Install(ctx context.Context, bundle io.ReaderAt, size int64, progress func(done, total int64)) error {
	_, err := r.Client.Install(ctx, bundle, size, progress)
	return err
}
