package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"birthmark/internal/agent/agenttest"
	"birthmark/internal/agent/api"
	"birthmark/internal/swtpm/swtpmtest"
)

// A service is the real binary, as a service manager starts it.
type service struct {
	*exec.Cmd
	t      *testing.T
	log    bytes.Buffer // to be read when it has ended
	ended  chan error
	notify *net.UnixConn
}

// startService starts the binary with files from descriptor 3 on. $$ in env is its own
// process id.
func startService(t *testing.T, env []string, files []*os.File, args ...string) *service {
	t.Helper()
	own := "true"
	for _, e := range env {
		if strings.Contains(e, "$$") {
			own += "; export " + e
		}
	}
	d := &service{t: t, ended: make(chan error, 1)}
	d.Cmd = exec.Command("sh", append([]string{"-c", own + `; exec birthmark "$@"`, "sh"}, args...)...)
	d.Env = append(os.Environ(), env...)
	d.ExtraFiles = files
	d.Stderr = &d.log
	dir := shortDir(t)
	var err error
	if d.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "n"), Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.notify.Close() })
	if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "NOTIFY_SOCKET=") }) {
		d.Env = append(d.Env, "NOTIFY_SOCKET="+filepath.Join(dir, "n"))
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Process.Kill() })
	go func() { d.ended <- d.Wait() }()
	return d
}

// shortDir is a folder with a name that is short enough for the path of a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// end waits for the end of the daemon and returns its exit code and log.
func (d *service) end(within time.Duration) (code int, log string) {
	d.t.Helper()
	select {
	case err := <-d.ended:
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			d.t.Fatal(err)
		}
		return d.ProcessState.ExitCode(), d.log.String()
	case <-time.After(within):
		_ = d.Process.Signal(syscall.SIGQUIT) // and see what it does
		<-d.ended
		d.t.Fatalf("it did not end within %v\n%s", within, &d.log)
		return 0, ""
	}
}

// hear waits for a notification with the prefix and returns it. What comes before is
// passed over.
func (d *service) hear(prefix string, within time.Duration) (state string, ok bool) {
	d.t.Helper()
	if err := d.notify.SetReadDeadline(time.Now().Add(within)); err != nil {
		d.t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for {
		n, err := d.notify.Read(buf)
		if err != nil {
			return "", false
		}
		if state := string(buf[:n]); strings.HasPrefix(state, prefix) {
			return state, true
		}
	}
}

// mustHear is hear of what has to come.
func (d *service) mustHear(prefix string) string {
	d.t.Helper()
	state, ok := d.hear(prefix, patience)
	if !ok {
		d.t.Fatalf("it never said %q", prefix)
	}
	return state
}

// listener is a socket that listens at path, as a file.
func listener(t *testing.T, path string) *os.File {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	t.Cleanup(func() { f.Close() })
	return f
}

func TestTheInstallerServesItsSocket(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	env := []string{"LISTEN_PID=$$", "LISTEN_FDS=1", "LISTEN_FDNAMES=" + installerDoor, "STATE_DIRECTORY=" + filepath.Dir(path)}
	d := startService(t, env, []*os.File{listener(t, path)}, "installer")
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, `{"verb":"status"}`+"\n"); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if want := `{"status":{"version":"dev","protocol":1,`; err != nil || !strings.HasPrefix(string(got), want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	_ = d.Process.Signal(syscall.SIGTERM)
	if code, log := d.end(patience); code != 0 {
		t.Errorf("it ended with %d\n%s", code, log)
	}
}

// TestAnOddEnvironmentIsRefused gives the installer, which needs a socket, none that it
// can use. It must say so and end.
func TestAnOddEnvironmentIsRefused(t *testing.T) {
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	name := "LISTEN_FDNAMES=" + installerDoor
	for what, c := range map[string]struct {
		env  []string
		file *os.File
		says string
	}{
		"nothing":              {nil, nil, ""},
		"of another process":   {[]string{"LISTEN_PID=1", "LISTEN_FDS=1", name}, listener(t, filepath.Join(shortDir(t), "s")), ""},
		"none":                 {[]string{"LISTEN_PID=$$", "LISTEN_FDS=0", name}, nil, `LISTEN_FDS is \"0\"`},
		"fewer than none":      {[]string{"LISTEN_PID=$$", "LISTEN_FDS=-1", name}, nil, `LISTEN_FDS is \"-1\"`},
		"no number":            {[]string{"LISTEN_PID=$$", "LISTEN_FDS=x", name}, nil, `LISTEN_FDS is \"x\"`},
		"two thousand million": {[]string{"LISTEN_PID=$$", "LISTEN_FDS=2147483647", name}, nil, "want 1 to 16"},
		"not there":            {[]string{"LISTEN_PID=$$", "LISTEN_FDS=9", name}, nil, "is no socket"},
		"no socket":            {[]string{"LISTEN_PID=$$", "LISTEN_FDS=1", name}, file, "descriptor 3 is no socket"},
		"of another name":      {[]string{"LISTEN_PID=$$", "LISTEN_FDS=1", "LISTEN_FDNAMES=x"}, listener(t, filepath.Join(shortDir(t), "s")), "is not used"},
		"without a name":       {[]string{"LISTEN_PID=$$", "LISTEN_FDS=1"}, listener(t, filepath.Join(shortDir(t), "s")), "is not used"},
	} {
		t.Run(what, func(t *testing.T) {
			var files []*os.File
			if c.file != nil {
				files = append(files, c.file)
			}
			code, log := startService(t, c.env, files, "installer").end(patience)
			if code != 3 || !strings.Contains(log, c.says) || !strings.Contains(log, "cannot serve without the socket") {
				t.Errorf("it ended with %d, want 3, and said\n%s\nwant %q in it", code, log, c.says)
			}
		})
	}
}

// device is a new device of a lab, with the network as env says.
func device(t *testing.T, id string, env ...string) (args, environ []string) {
	t.Helper()
	l := agenttest.StartLab(t)
	environ = append(l.DeviceEnv(t, id, swtpmtest.Start(t).Address()), "BIRTHMARK_DOORS__FOLDER="+filepath.Join(shortDir(t), "run"))
	return []string{"run", "--config", l.ConfigFile()}, append(environ, env...)
}

// unreachable are servers in a network that is not there (RFC 5737).
var unreachable = []string{
	"BIRTHMARK_BIRTH__URL=https://192.0.2.1", "BIRTHMARK_EST__URL=https://192.0.2.1", "BIRTHMARK_BROKER__URLS=mqtts://192.0.2.1:8883",
}

// TestReadyWithoutANetwork has a service manager listen to a device without one, with
// doors that it has made, and stops it in the middle of an attempt to enrol.
func TestReadyWithoutANetwork(t *testing.T) {
	control := filepath.Join(shortDir(t), "c")
	env := append([]string{"WATCHDOG_USEC=1000000", "LISTEN_PID=$$", "LISTEN_FDS=1", "LISTEN_FDNAMES=" + api.Control}, unreachable...)
	args, env := device(t, "dev-ready", env...)
	d := startService(t, env, []*os.File{listener(t, control)}, args...)
	d.mustHear("READY=1")
	d.mustHear("WATCHDOG=1")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := api.Get(ctx, filepath.Dir(control), filepath.Base(control), "/v1/metrics"); err != nil {
		t.Errorf("the door that was given: %v", err)
	}
	awaitDoor(t, doorsOf(env)) // one that it made itself
	start := time.Now()
	_ = d.Process.Signal(syscall.SIGTERM)
	d.mustHear("STOPPING=1")
	if code, log := d.end(patience); code != 0 || time.Since(start) >= 2*time.Second {
		t.Errorf("it ended with %d, %v after SIGTERM; want 0 within 2s\n%s", code, time.Since(start), log)
	}
	if strings.Contains(d.log.String(), "not all doors are open") {
		t.Errorf("it made the door that was given once more:\n%s", &d.log)
	}
	if _, err := os.Lstat(control); err != nil {
		t.Errorf("the door that was given was removed: %v", err)
	}
}

// TestAStopDoesNotWaitForAServerThatIsSilent stops a device whose CA has taken its
// connection and says nothing.
func TestAStopDoesNotWaitForAServerThatIsSilent(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	args, env := device(t, "dev-silent", "BIRTHMARK_BIRTH__URL=https://"+silent.Addr().String())
	d := startService(t, env, nil, args...)
	d.mustHear("READY=1")
	c, err := silent.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err != nil { // it waits for an answer from now on
		t.Fatal(err)
	}
	start := time.Now()
	_ = d.Process.Signal(syscall.SIGTERM)
	if code, log := d.end(patience); code != 0 || time.Since(start) >= 2*time.Second {
		t.Errorf("it ended with %d, %v after SIGTERM; want 0 within 2s\n%s", code, time.Since(start), log)
	}
}

// TestReloadOfTheRealBinary changes its configuration for the worse and the better.
func TestReloadOfTheRealBinary(t *testing.T) {
	args, env := device(t, "dev-hup", unreachable...)
	good, err := os.ReadFile(args[2])
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(filepath.Dir(args[2]), "changed.toml")
	args[2] = file
	write := func(more string) {
		t.Helper()
		if err := os.WriteFile(file, append(good[:len(good):len(good)], more...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	d := startService(t, env, nil, args...)
	d.mustHear("READY=1")
	for _, more := range []string{"[nonsense]\n", "[log]\nlevel = \"debug\"\n"} {
		write(more)
		_ = d.Process.Signal(syscall.SIGHUP)
		if state := d.mustHear("RELOADING=1"); !strings.Contains(state, "\nMONOTONIC_USEC=") {
			t.Errorf("it said %q, want MONOTONIC_USEC in it", state)
		}
		d.mustHear("READY=1")
	}
	_ = d.Process.Signal(syscall.SIGTERM)
	code, log := d.end(patience)
	if code != 0 || strings.Count(log, "configuration refused") != 1 || strings.Count(log, "configuration reloaded") != 1 {
		t.Errorf("it ended with %d, want 0, and one refusal and one reload in its log\n%s", code, log)
	}
}

// TestAStuckPartOfTheRealBinary lets its file of metrics never be opened: a pipe that
// nobody reads. The pings end, the log names the part, and so does a stop, which does
// not wait for it.
func TestAStuckPartOfTheRealBinary(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "m.prom.new"), 0o600); err != nil {
		t.Fatal(err)
	}
	args, env := device(t, "dev-stuck", append(unreachable, "WATCHDOG_USEC=500000", "BIRTHMARK_METRICS__TEXTFILE="+filepath.Join(dir, "m.prom"))...)
	d := startService(t, env, nil, args...)
	d.mustHear("WATCHDOG=1")
	for pings := 0; ; pings++ {
		if _, ok := d.hear("WATCHDOG=1", 3*time.Second); !ok {
			break
		}
		if pings > 100 {
			t.Fatal("it pings on, with a part that is stuck")
		}
	}
	start := time.Now()
	_ = d.Process.Signal(syscall.SIGTERM)
	code, log := d.end(patience)
	if took := time.Since(start); code != 3 || took >= 2500*time.Millisecond {
		t.Errorf("it ended with %d, %v after SIGTERM; want 3, cut off after %v", code, took, stopLimit)
	}
	if strings.Count(log, `"a part of the agent is stuck" part=textfile`) != 1 {
		t.Errorf("the log does not say once which part is stuck:\n%s", log)
	}
}

// TestNobodyToNotify gives it service managers that are not there.
func TestNobodyToNotify(t *testing.T) {
	for _, socket := range []string{"/nonexistent", "@nobody", "relative", os.DevNull} {
		args, env := device(t, "dev-mute", append(unreachable, "NOTIFY_SOCKET="+socket, "WATCHDOG_USEC=nonsense")...)
		d := startService(t, env, nil, args...)
		folder := doorsOf(env)
		awaitDoor(t, folder)
		_ = d.Process.Signal(syscall.SIGTERM)
		if code, log := d.end(patience); code != 0 || strings.Count(log, "cannot tell the service manager") != 1 || !strings.Contains(log, "watchdog is not served") {
			t.Errorf("NOTIFY_SOCKET=%s: it ended with %d and said\n%s\nwant 0, and once that nobody listens", socket, code, log)
		}
	}
}

// doorsOf is the folder of the doors in an environment; the last one counts.
func doorsOf(env []string) (folder string) {
	for _, e := range env {
		if f, ok := strings.CutPrefix(e, "BIRTHMARK_DOORS__FOLDER="); ok {
			folder = f
		}
	}
	return folder
}

// awaitDoor waits until an agent answers at its door.
func awaitDoor(t *testing.T, folder string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for ctx.Err() == nil {
		if _, err := api.Get(ctx, folder, api.Status, "/v1/status"); err == nil {
			return
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	t.Fatal("no agent answers")
}
