package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// A desk is an agent behind doors that remembers what it was told.
type desk struct {
	mu     sync.Mutex
	told   []Message
	answer error // of Tell
}

func (d *desk) agent() Agent {
	return Agent{
		Status:  func() any { return map[string]string{"state": "born"} },
		Doctor:  func(context.Context) any { return map[string]bool{"well": true} },
		Metrics: func() ([]byte, error) { return []byte("m 1\n"), nil },
		Tell: func(m Message) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.told = append(d.told, m)
			return d.answer
		},
	}
}

// newFolder is a folder that everybody can reach, which t.TempDir is not.
func newFolder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "doors-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "run")
}

func open(t testing.TB, folder string, agent Agent) *Doors {
	t.Helper()
	d, err := Open(folder, nil, agent, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { d.Close() })
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// do sends one request, as it is, to a socket.
func do(t testing.TB, socket, method, target string, body io.Reader) (status int, answer string, header http.Header) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequest(method, "http://x"+target, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text), resp.Header
}

func TestWhatIsAnsweredAtWhichDoor(t *testing.T) {
	folder, desk := newFolder(t), &desk{}
	open(t, folder, desk.agent())
	deep := func(n int) string { return `{"a":` + strings.Repeat("[", n-1) + strings.Repeat("]", n-1) + `}` }
	large := func(n int) string { return `{"a":"` + strings.Repeat("x", n-8) + `"}` }
	for _, tc := range []struct {
		door, method, target, body string
		status                     int
		says                       string
	}{
		{Status, "GET", "/v1/status", "", 200, `{"state":"born"}`},
		{Status, "GET", "/v1/metrics", "", 404, "no such path"},
		{Status, "GET", "/v1/doctor", "", 404, "no such path"},
		{Status, "POST", "/v1/tele/gps", "{}", 404, "no such path"},
		{Status, "POST", "/v1/status", "", 405, "only GET"},
		{Status, "HEAD", "/v1/status", "", 405, ""},
		{Status, "GET", "/v1/status?x", "", 400, "neither a query"},
		{Status, "GET", "/v1/status", "{}", 400, "neither a query nor a body"},
		{Status, "GET", "/v1/status/", "", 404, "no such path"},
		{Status, "GET", "//v1/status", "", 404, "no such path"},
		{Status, "GET", "/v1/./status", "", 404, "no such path"},
		{Status, "GET", "/v1/%73tatus", "", 404, "no such path"},
		{Status, "GET", "/", "", 404, "no such path"},
		{Status, "GET", "/v1/status", strings.Repeat("x", 64<<10), 400, "neither a query nor a body"},

		{Control, "GET", "/v1/status", "", 200, `{"state":"born"}`},
		{Control, "GET", "/v1/metrics", "", 200, "m 1\n"},
		{Control, "GET", "/v1/doctor", "", 200, `{"well":true}`},
		{Control, "DELETE", "/v1/doctor", "", 405, "only GET"},
		{Control, "POST", "/v1/tele/gps", "{}", 404, "no such path"},

		{Telemetry, "POST", "/v1/tele/gps", `{"lat": 1}`, 202, ""},
		{Telemetry, "POST", "/v1/tele/gps?durable", `{"lat":2}`, 202, ""},
		{Telemetry, "POST", "/v1/tele/gps", deep(16), 202, ""},
		{Telemetry, "POST", "/v1/tele/gps", large(16 << 10), 202, ""},
		{Telemetry, "GET", "/v1/status", "", 404, "no such path"},
		{Telemetry, "GET", "/v1/tele/gps", "", 405, "only POST"},
		{Telemetry, "PUT", "/v1/tele/gps", "{}", 405, "only POST"},
		{Telemetry, "POST", "/v1/tele/system", "{}", 400, "the agent's own"},
		{Telemetry, "POST", "/v1/tele/", "{}", 400, "the name is not"},
		{Telemetry, "POST", "/v1/tele/a/b", "{}", 400, "the name is not"},
		{Telemetry, "POST", "/v1/tele/a%2fb", "{}", 400, "the name is not"},
		{Telemetry, "POST", "/v1/tele/%67ps", "{}", 400, "the name is not"},
		{Telemetry, "POST", "/v1/tele/..", "{}", 400, "the name is not"},
		{Telemetry, "POST", "/v1/tele/+", "{}", 400, "the name is not"},
		{Telemetry, "POST", "/v1/tele/" + strings.Repeat("x", 65), "{}", 400, "the name is not"},
		{Telemetry, "POST", "/v1/tele/gps?durable=1", "{}", 400, "?durable"},
		{Telemetry, "POST", "/v1/tele/gps", "", 400, "not a JSON object"},
		{Telemetry, "POST", "/v1/tele/gps", "null", 400, "not a JSON object"},
		{Telemetry, "POST", "/v1/tele/gps", "[1]", 400, "not a JSON object"},
		{Telemetry, "POST", "/v1/tele/gps", `{"a":1}{}`, 400, "not a JSON object"},
		{Telemetry, "POST", "/v1/tele/gps", `{"a":1`, 400, "not a JSON object"},
		{Telemetry, "POST", "/v1/tele/gps", "{\"a\":\"\xff\"}", 400, "not UTF-8"},
		{Telemetry, "POST", "/v1/tele/gps", `{"seq":null}`, 400, `"seq" is the agent's own`},
		{Telemetry, "POST", "/v1/tele/gps", deep(17), 400, "more than 16 levels"},
		{Telemetry, "POST", "/v1/tele/gps", large(16<<10 + 1), 413, "at most 16384 bytes"},
		{Telemetry, "POST", "/v1/tele/gps", large(64 << 10), 413, "at most 16384 bytes"},
	} {
		name := fmt.Sprintf("%s %s %s %.20q", tc.door, tc.method, tc.target, tc.body)
		var body io.Reader
		if tc.body != "" {
			body = strings.NewReader(tc.body)
		}
		status, answer, header := do(t, filepath.Join(folder, tc.door), tc.method, tc.target, body)
		if status != tc.status {
			t.Errorf("%s: status %d, want %d: %s", name, status, tc.status, answer)
		}
		if status >= 400 && tc.method != "HEAD" {
			var said struct{ Error string }
			if err := json.Unmarshal([]byte(answer), &said); err != nil || !strings.Contains(said.Error, tc.says) {
				t.Errorf("%s: got %q, want an error that says %q", name, answer, tc.says)
			}
		} else if strings.TrimSpace(answer) != strings.TrimSpace(tc.says) {
			t.Errorf("%s: got %q, want %q", name, answer, tc.says)
		}
		if status == 405 && header.Get("Allow") == "" {
			t.Errorf("%s: it does not say what is allowed (RFC 9110, 15.5.6)", name)
		}
	}
	if len(desk.told) != 4 || desk.told[0].Durable || !desk.told[1].Durable || desk.told[0].Name != "gps" || string(desk.told[0].Object) != `{"lat": 1}` {
		t.Errorf("told %d messages, first %+v, want the 4 that were taken", len(desk.told), desk.told[0])
	}
}

func TestWhatTheAgentSaysOfAMessageIsPassedOn(t *testing.T) {
	folder, desk := newFolder(t), &desk{answer: fmt.Errorf("the disk is full: %w", ErrNoRoom)}
	open(t, folder, desk.agent())
	socket := filepath.Join(folder, Telemetry)
	if status, answer, _ := do(t, socket, "POST", "/v1/tele/x", strings.NewReader("{}")); status != 507 || !strings.Contains(answer, "the disk is full") {
		t.Errorf("no room: status %d, %s; want 507 and the reason", status, answer)
	}
	desk.answer = errors.New("closed")
	if status, _, _ := do(t, socket, "POST", "/v1/tele/x", strings.NewReader("{}")); status != 500 {
		t.Errorf("another error: status %d, want 500", status)
	}
}

// TestWhoMayComeIn tries the doors as root, who may, and as somebody who is in no
// group. Without root it holds the files' modes against what they must be.
func TestWhoMayComeIn(t *testing.T) {
	folder, desk := newFolder(t), &desk{}
	open(t, folder, desk.agent())
	for name, want := range map[string]fs.FileMode{Status: 0o666, Control: 0o600, Telemetry: 0o600} {
		info, err := os.Lstat(filepath.Join(folder, name))
		if err != nil {
			t.Fatal(err)
		}
		got := info.Mode().Perm()
		if gid := info.Sys().(*syscall.Stat_t).Gid; got != want && !(want == 0o600 && got == 0o660 && gid != 0) {
			t.Errorf("%s has mode %v, want %v", name, got, want)
		}
	}
	if os.Geteuid() != 0 {
		return
	}
	for name, may := range map[string]bool{Status: true, Control: false, Telemetry: false} {
		socket := filepath.Join(folder, name)
		if err := connectAs(65534, 65534, socket); may != (err == nil) || !may && !errors.Is(err, syscall.EACCES) {
			t.Errorf("nobody at %s: %v, want it to be open: %t", name, err, may)
		}
		if err := connectAs(0, 0, socket); err != nil {
			t.Errorf("root at %s: %v", name, err)
		}
	}
}

// TestAGroupIsLetIn gives a socket to a group that every system has.
func TestAGroupIsLetIn(t *testing.T) {
	folder := newFolder(t)
	if err := makeFolder(folder); err != nil {
		t.Fatal(err)
	}
	const group, gid = "daemon", 1
	s, err := listen(filepath.Join(folder, Control), group)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	info, err := os.Lstat(s.path)
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 { // who may not give a file away keeps it
		if info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, want 0600", info.Mode().Perm())
		}
		return
	}
	if got := info.Sys().(*syscall.Stat_t).Gid; info.Mode().Perm() != 0o660 || got != gid {
		t.Errorf("mode %v, group %d, want 0660, %d", info.Mode().Perm(), got, gid)
	}
	if err := connectAs(65534, gid, s.path); err != nil {
		t.Errorf("a member of the group: %v", err)
	}
	if err := connectAs(65534, 65534, s.path); !errors.Is(err, syscall.EACCES) {
		t.Errorf("nobody: %v, want %v", err, syscall.EACCES)
	}
}

// connectAs connects as another user. The kernel keeps users by thread, so one thread
// becomes that user, and ends with the goroutine that it is locked to.
func connectAs(uid, gid uintptr, socket string) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			for _, call := range [][4]uintptr{{syscall.SYS_SETGROUPS, 0, 0, 0}, {syscall.SYS_SETRESGID, gid, gid, gid}, {syscall.SYS_SETRESUID, uid, uid, uid}} {
				if _, _, e := syscall.RawSyscall(call[0], call[1], call[2], call[3]); e != 0 {
					return fmt.Errorf("cannot become user %d: %w", uid, e)
				}
			}
			fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer syscall.Close(fd)
			return syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket})
		}()
	}()
	return <-done
}

func TestASocketIsReplacedOnlyWhenNobodyListens(t *testing.T) {
	log, desk := slog.New(slog.DiscardHandler), &desk{}
	folder := newFolder(t)
	if err := makeFolder(folder); err != nil {
		t.Fatal(err)
	}
	// As a killed agent leaves it.
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(folder, Status), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if err := os.MkdirAll(filepath.Join(folder, draft, "s"), 0o700); err != nil {
		t.Fatal(err)
	}
	// What somebody put there is nobody's to remove.
	other := filepath.Join(folder, Telemetry)
	if err := os.WriteFile(other, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}

	first, err := Open(folder, nil, desk.agent(), log)
	if err == nil || !strings.Contains(err.Error(), "something else than a socket") {
		t.Errorf("over a file: %v", err)
	}
	t.Cleanup(func() { first.Close() })
	if status, _, _ := do(t, filepath.Join(folder, Status), "GET", "/v1/status", nil); status != 200 {
		t.Errorf("over a dead agent's socket: status %d", status)
	}

	second, err := Open(folder, nil, desk.agent(), log)
	if err == nil || strings.Count(err.Error(), "another program listens there") != 2 {
		t.Errorf("beside another agent: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if status, _, _ := do(t, filepath.Join(folder, Control), "GET", "/v1/status", nil); status != 200 {
		t.Errorf("the first agent's door: status %d after the second one left", status)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(folder)
	if err != nil || len(left) != 1 || left[0].Name() != Telemetry {
		t.Errorf("left in the folder: %v, %v; want what was not ours", left, err)
	}
}

func TestASocketOfAnotherIsNotRemoved(t *testing.T) {
	folder, desk := newFolder(t), &desk{}
	d := open(t, folder, desk.agent())
	socket := filepath.Join(folder, Status)
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	successor, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer successor.Close()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socket); err != nil {
		t.Error(err)
	}
}

func TestAFolderThatOthersCanWriteToIsNotUsed(t *testing.T) {
	folder := newFolder(t)
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(folder, 0o775); err != nil {
		t.Fatal(err)
	}
	if err := makeFolder(folder); err == nil {
		t.Error("a folder with mode 0775 is used")
	}
	link := filepath.Join(filepath.Dir(folder), "link")
	if err := os.Symlink("/", link); err != nil {
		t.Fatal(err)
	}
	if err := makeFolder(link); err == nil {
		t.Error("a symlink is used")
	}
	if os.Geteuid() == 0 {
		if err := errors.Join(os.Chmod(folder, 0o755), os.Chown(folder, 65534, -1)); err != nil {
			t.Fatal(err)
		}
		if err := makeFolder(folder); err == nil {
			t.Error("a folder of another user is used")
		}
	}
}

func TestTheFolderIsMadeForAllWhateverTheUmask(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	folder, desk := newFolder(t), &desk{}
	open(t, folder, desk.agent())
	for name, want := range map[string]fs.FileMode{"": 0o755, Status: 0o666} {
		if info, err := os.Lstat(filepath.Join(folder, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%q has mode %v, want %v (%v)", name, info.Mode().Perm(), want, err)
		}
	}
}

func TestGet(t *testing.T) {
	folder, desk := newFolder(t), &desk{}
	if _, err := Get(t.Context(), folder, Status, "/v1/status"); !errors.Is(err, ErrNobody) {
		t.Errorf("without a folder: %v, want %v", err, ErrNobody)
	}
	agent := desk.agent()
	agent.Metrics = func() ([]byte, error) { return bytes.Repeat([]byte{'x'}, reportLimit+1), nil }
	d := open(t, folder, agent)
	if body, err := Get(t.Context(), folder, Status, "/v1/status"); err != nil || !json.Valid(body) {
		t.Errorf("got %q, %v", body, err)
	}
	if _, err := Get(t.Context(), folder, Status, "/v1/doctor"); err == nil || !strings.Contains(err.Error(), "404: no such path") {
		t.Errorf("a path that is not there: %v", err)
	}
	if _, err := Get(t.Context(), folder, Control, "/v1/metrics"); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("an answer without end: %v", err)
	}
	d.Close()
	if _, err := Get(t.Context(), folder, Status, "/v1/status"); !errors.Is(err, ErrNobody) {
		t.Errorf("after the agent left: %v, want %v", err, ErrNobody)
	}
}
