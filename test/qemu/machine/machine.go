// Package machine is a virtual device: QEMU with UEFI firmware and a TPM 2.0 in
// software, and the three wires that a test holds it by.
//
// [Start] powers it on with a disk and firmware variables of its own, copies of those
// that it is given. Then:
//
//   - the control channel, a virtio-serial port behind which an image for tests has a
//     root shell: [Machine.Ready] waits for it after each start, [Machine.Sh] uses it;
//   - the monitor: [Machine.Reset] presses the reset button, [Machine.Unplug] and
//     [Machine.Plug] hold the network cable, [Machine.Cut] pulls the mains, after which
//     [Machine.PowerOn] starts it again;
//   - the console, a serial port that is written to a file: [Machine.Console].
//
// The guest's network is QEMU's own: the guest is 10.0.2.15, and what listens on the
// host's loopback interface is at 10.0.2.2 ([Host]). Nothing outside reaches the guest.
//
// The device runs under KVM where /dev/kvm can be opened, and is translated (TCG), ten
// times slower, elsewhere. It ends with the process that started it, however that ends.
package machine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"birthmark/internal/swtpm"
)

const (
	// Host is where the guest finds what listens on the host's loopback interface.
	Host = "10.0.2.2"

	memory      = "640M"
	processors  = "2"
	connectTime = time.Minute      // for QEMU to start, which takes a tenth of a second
	endTime     = 10 * time.Second // for a TPM to leave after its QEMU
	logLimit    = 2000             // bytes of a log that an error quotes
)

// A Config is what a machine is made of.
type Config struct {
	Dir      string            // for its files; made if it is not there; at most 80 bytes long
	Firmware string            // file with UEFI's code
	Vars     string            // file with UEFI's variables, copied
	Disk     string            // raw file, copied
	TPM      string            // folder of swtpm.Manufacture, used; made in Dir when empty
	Files    map[string][]byte // what the guest finds as fw_cfg opt/birthmark/NAME
	Clock    time.Time         // of the hardware when it is powered on; now when zero
	Unplug   bool              // the network cable, before the power goes on

	// Log, if set, is a file for the writes to the disk, see [birthmark/test/qemu/writelog].
	// The disk is a virtio-blk one then, which knows no forced unit access: flushes alone,
	// all of them logged, tell what is durable.
	Log string
}

// A Machine is on, or was cut off, until it is closed.
type Machine struct {
	conf Config

	mu      sync.Mutex // one talks to the guest at a time
	control *bufio.ReadWriter
	wire    net.Conn // of control
	monitor *monitor

	qemu, tpm *process
}

// Start makes a machine and powers it on. ctx is for that only.
func Start(ctx context.Context, conf Config) (*Machine, error) {
	m := &Machine{conf: conf}
	if err := m.make(ctx); err != nil {
		return nil, fmt.Errorf("cannot make a virtual device: %w", err)
	}
	return m, m.PowerOn(ctx)
}

func (m *Machine) file(name string) string { return filepath.Join(m.conf.Dir, name) }

// Disk and TPM are its own, for another machine once this one is off.
func (m *Machine) Disk() string { return m.file("disk.raw") }
func (m *Machine) TPM() string  { return m.conf.TPM }

// make makes what outlives the power.
func (m *Machine) make(ctx context.Context) (err error) {
	if m.conf.Dir, err = filepath.Abs(m.conf.Dir); err != nil {
		return err
	}
	if err := os.MkdirAll(m.file("files"), 0o700); err != nil {
		return err
	}
	for from, to := range map[string]string{m.conf.Disk: m.Disk(), m.conf.Vars: m.file("vars.fd")} {
		if out, err := exec.CommandContext(ctx, "cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
			return fmt.Errorf("cannot copy %s: %w: %s", from, err, out)
		}
	}
	for name, text := range m.conf.Files {
		if err := os.WriteFile(m.file("files/"+name), text, 0o600); err != nil {
			return err
		}
	}
	if m.conf.TPM != "" {
		return nil
	}
	m.conf.TPM = m.file("tpm")
	if err := os.MkdirAll(m.conf.TPM, 0o700); err != nil {
		return err
	}
	return swtpm.Manufacture(ctx, m.conf.TPM)
}

// PowerOn starts a machine that is off.
func (m *Machine) PowerOn(ctx context.Context) error {
	if err := m.powerOn(ctx); err != nil {
		return errors.Join(fmt.Errorf("cannot power on the virtual device: %w", err), m.Cut())
	}
	return nil
}

func (m *Machine) powerOn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	tpm, err := listen(m.file("tpm.sock"))
	if err != nil {
		return err
	}
	tpm.Close() // swtpm makes its own; what was there is gone
	if m.tpm, err = start(m.file("swtpm.log"), "swtpm", "socket", "--tpm2", "--terminate",
		"--tpmstate", "dir="+filepath.Join(m.conf.TPM, "tpm"), "--ctrl", "type=unixio,path="+m.file("tpm.sock")); err != nil {
		return err
	}
	if err := awaitSocket(ctx, m.file("tpm.sock"), m.tpm); err != nil {
		return err
	}
	// QEMU comes to us, so that there is nothing to try again.
	control, err := listen(m.file("control.sock"))
	if err != nil {
		return err
	}
	defer control.Close()
	mon, err := listen(m.file("monitor.sock"))
	if err != nil {
		return err
	}
	defer mon.Close()
	if m.qemu, err = start(m.file("qemu.log"), "qemu-system-x86_64", m.arguments()...); err != nil {
		return err
	}
	monitorWire, err := accept(ctx, mon, m.qemu)
	if err != nil {
		return err
	}
	if m.wire, err = accept(ctx, control, m.qemu); err != nil {
		return errors.Join(err, monitorWire.Close())
	}
	m.control = bufio.NewReadWriter(bufio.NewReader(m.wire), bufio.NewWriter(m.wire))
	if m.monitor, err = newMonitor(ctx, monitorWire); err != nil {
		return err
	}
	if m.conf.Unplug {
		if err := m.Unplug(ctx); err != nil {
			return err
		}
	}
	return m.monitor.do(ctx, "cont", nil)
}

// arguments are QEMU's. It waits with the processor stopped (-S) until the cable is
// as it is to be.
func (m *Machine) arguments() []string {
	clock := "utc"
	if !m.conf.Clock.IsZero() {
		clock = m.conf.Clock.UTC().Format("2006-01-02T15:04:05")
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-S",
		"-machine", "q35,smm=off,vmport=off", "-accel", accelerator(), "-cpu", "max",
		"-smp", processors, "-m", memory, "-rtc", "base=" + clock,
		"-drive", "if=pflash,unit=0,format=raw,readonly=on,file=" + m.conf.Firmware,
		"-drive", "if=pflash,unit=1,format=raw,file=" + m.file("vars.fd"),
		"-chardev", "socket,id=tpm,path=" + m.file("tpm.sock"),
		"-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm",
		"-chardev", "file,id=console,append=on,path=" + m.file("console"), "-serial", "chardev:console",
		"-netdev", "user,id=network", "-device", "virtio-net-pci,netdev=network,id=cable,romfile=",
		"-device", "virtio-rng-pci",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=control,path=" + m.file("control.sock"),
		"-device", "virtserialport,chardev=control,name=birthmark.control",
		"-chardev", "socket,id=monitor,path=" + m.file("monitor.sock"), "-mon", "chardev=monitor,mode=control",
	}
	args = append(args, m.drive()...)
	var names []string
	for name := range m.conf.Files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		args = append(args, "-fw_cfg", "name=opt/birthmark/"+name+",file="+m.file("files/"+name))
	}
	return args
}

// drive is the disk. What the guest writes outlives QEMU, in the order of the writes: the
// host's memory is its cache, and does not lose power. What a cache in the disk itself
// may lose shows in the Log only.
func (m *Machine) drive() []string {
	if m.conf.Log == "" {
		return []string{
			"-drive", "if=none,id=disk,format=raw,cache=unsafe,discard=unmap,file=" + m.Disk(),
			"-device", "nvme,drive=disk,serial=disk,bootindex=1",
		}
	}
	return []string{
		"-blockdev", "driver=file,node-name=raw,cache.no-flush=on,filename=" + m.Disk(),
		"-blockdev", "driver=file,node-name=log,cache.no-flush=on,filename=" + m.conf.Log,
		"-blockdev", "driver=blklogwrites,node-name=disk,file=raw,log=log", // flushes are logged
		"-device", "virtio-blk-pci,drive=disk,bootindex=1,romfile=",
	}
}

func accelerator() string {
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err == nil {
		f.Close()
		return "kvm"
	}
	return "tcg,thread=multi,tb-size=256"
}

// Accelerated reports whether devices run under KVM.
func Accelerated() bool { return accelerator() == "kvm" }

// Cut pulls the mains. It may be called again.
func (m *Machine) Cut() error {
	for _, p := range []*process{m.qemu, m.tpm} {
		if p != nil {
			p.kill()
		}
	}
	if m.wire != nil {
		m.wire.Close()
	}
	if m.monitor != nil {
		m.monitor.close()
	}
	return nil
}

// Off waits for a device that shuts itself down.
func (m *Machine) Off(ctx context.Context) error {
	select {
	case <-m.qemu.gone:
		return m.Cut()
	case <-ctx.Done():
		return fmt.Errorf("the virtual device does not switch itself off: %w", ctx.Err())
	}
}

// Console is all that was on the console since the machine was made.
func (m *Machine) Console() string {
	text, err := os.ReadFile(m.file("console"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err.Error()
	}
	return string(text)
}

// A process is one that ends with us.
type process struct {
	*exec.Cmd
	log  string
	gone chan struct{}
}

func start(log, program string, args ...string) (*process, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p := &process{exec.Command(program, args...), log, make(chan struct{})}
	p.Stdout, p.Stderr = out, out
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.Start(); errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("%w: run make setup", err)
	} else if err != nil {
		return nil, err
	}
	go func() {
		_ = p.Wait() // how it ended is in the log
		close(p.gone)
	}()
	return p, nil
}

func (p *process) kill() {
	_ = p.Process.Kill() // it may have ended by itself
	<-p.gone
}

// ended says that a process has, and what it said last.
func (p *process) ended() error {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err
	}
	return fmt.Errorf("%s ended: %s", filepath.Base(p.Path), strings.TrimSpace(string(text[max(0, len(text)-logLimit):])))
}

func listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
}

// accept waits for a process to come.
func accept(ctx context.Context, l *net.UnixListener, p *process) (net.Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-p.gone:
			cancel(p.ended())
		case <-ctx.Done():
		}
	}()
	defer context.AfterFunc(ctx, func() { _ = l.SetDeadline(time.Unix(1, 0)) })()
	c, err := l.Accept()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return c, err
}

// awaitSocket waits until a process has made its socket. To connect would be to take
// the only connection that it serves.
func awaitSocket(ctx context.Context, path string, p *process) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.gone:
			return p.ended()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
