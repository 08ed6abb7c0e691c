package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"birthmark/internal/agent"
	"birthmark/internal/agent/agenttest"
	"birthmark/internal/lab"
	"birthmark/internal/lab/board"
	"birthmark/internal/lab/sign"
	"birthmark/internal/swtpm/swtpmtest"
	"birthmark/pkg/fota"
)

// A bundleServer has a bundle for devices of an owner. What it does from a request on may
// be something else.
type bundleServer struct {
	url      string
	requests atomic.Int64
	ill      atomic.Pointer[func(n int64, w http.ResponseWriter, r *http.Request) bool]
}

func serveBundle(t *testing.T, l *lab.Lab, b []byte) *bundleServer {
	t.Helper()
	cert, err := l.OwnerCA().Server("updates")
	if err != nil {
		t.Fatal(err)
	}
	owned := x509.NewCertPool()
	owned.AddCert(l.OwnerCA().Root())
	socket, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: owned})
	if err != nil {
		t.Fatal(err)
	}
	s := &bundleServer{url: "https://" + socket.Addr().(*net.TCPAddr).String() + "/release.raucb"}
	h := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := s.requests.Add(1)
		if ill := s.ill.Load(); ill == nil || !(*ill)(n, w, r) {
			answerWith(w, r, `"v1"`, b)
		}
	})}
	go h.Serve(socket)
	t.Cleanup(func() { h.Close() })
	return s
}

func answerWith(w http.ResponseWriter, r *http.Request, etag string, b []byte) {
	w.Header().Set("ETag", etag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

// A playedDevice is a board on which the first release runs, and what it says.
type playedDevice struct {
	*testing.T
	*board.Board
	conf    string
	started chan board.Start
	events  chan agent.UpdateSummary // of its updates, that came to their end
}

// next is the next one of a channel.
func next[T any](d *playedDevice, what string, c <-chan T) (v T) {
	d.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		d.Fatalf("no %s within %v", what, patience)
	}
	return v
}

// firmware is `birthmark firmware` on the device.
func (d *playedDevice) firmware(args ...string) (stdout, stderr string, code int) {
	d.Helper()
	cmd := d.Command(d.Context(), "firmware", append(args, "--config", d.conf)...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	var failed *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &failed) {
		d.Fatal(err)
	}
	return out.String(), said.String(), cmd.ProcessState.ExitCode()
}

func (d *playedDevice) update() *agent.UpdateSummary {
	d.Helper()
	var status struct{ Update *agent.UpdateSummary }
	text, said, _ := d.firmware("status", "--json")
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		d.Fatalf("birthmark firmware status --json: %v: %s%s", err, text, said)
	}
	return status.Update
}

// TestAServersFaultsAreTold has the device's own programs, on a board, update from a server
// that misbehaves: who ordered hears why not, `birthmark firmware status` says the same, and
// the owner. The next start is that of what runs; and then the device takes the release.
func TestAServersFaultsAreTold(t *testing.T) {
	const id = "dev-firmware"
	events := make(chan agent.UpdateSummary, 100)
	bench := agenttest.StartLab(t, func(o *lab.Options) {
		heard := o.Heard
		o.Heard = func(client, topic string, payload []byte) {
			heard(client, topic, payload)
			var event struct{ Data agent.UpdateSummary }
			if strings.HasSuffix(topic, "/evt/firmware") && json.Unmarshal(payload, &event) == nil && event.Data.Outcome != "" {
				events <- event.Data
			}
		}
	})
	dir, err := os.MkdirTemp("", "board-") // short, since sockets lie in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	maker, err := sign.Lab(bench.Dir)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := sign.Lab(filepath.Join(dir, "stranger"))
	if err != nil {
		t.Fatal(err)
	}
	db, err := board.NewKey(dir, "db")
	if err != nil {
		t.Fatal(err)
	}
	build := func(security uint32) *board.Image {
		trust := map[string]board.File{}
		for name, path := range map[string]string{"anchors.pem": maker.Anchors, "signing-cas.pem": maker.SigningCAs, "crls.pem": maker.CRLs} {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			trust["usr/lib/birthmark/firmware/"+name] = board.File{Text: text, Mode: 0o644}
		}
		image, err := board.Release{Name: "acme-gw", Version: fota.Version{Major: 1, Minor: security, Security: security}, Agent: birthmark,
			Files: trust, Load: 1 << 20}.Build(t.Context(), dir, db)
		if err != nil {
			t.Fatal(err)
		}
		return image
	}
	ship := func(i *board.Image, by sign.Signer) []byte {
		release := sign.Release{Compatible: "acme-gw", Version: i.Version, Compression: sign.Zstd, Time: time.Now(),
			Images: []sign.Image{{Slot: fota.RootSlot, Path: i.Root}, {Slot: fota.UKISlot, Path: i.UKI}}}
		out := filepath.Join(dir, "bundle")
		if _, err := sign.Firmware(t.Context(), release, by, out, func(string) {}); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	first, second := build(1), build(2)
	good, foreign := ship(second, maker), ship(second, stranger)
	bent := bytes.Clone(good)
	bent[len(bent)/2] ^= 1
	server := serveBundle(t, bench.Lab, good)

	d := &playedDevice{T: t, conf: bench.ConfigFile(), started: make(chan board.Start, 100), events: events}
	conf := board.Config{Dir: dir, DB: db, TPM: swtpmtest.Start(t).Address(), Conf: d.conf, Env: append(bench.DeviceEnv(t, id, ""),
		"BIRTHMARK_FIRMWARE__SERVER_ANCHORS="+filepath.Join(bench.Dir, "device", "owner-root.pem")),
		Log:     func(string, string) {},
		Started: func(s board.Start) { d.started <- s },
		Exited:  func(string, int) {},
	}
	if d.Board, err = board.New(conf, first); err != nil {
		t.Fatal(err)
	}
	on, off := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Board.Run(on) }()
	t.Cleanup(func() {
		off()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	runs := next(d, "start", d.started)
	next(d, "telemetry", bench.InService(id))

	type answer = func(n int64, w http.ResponseWriter, r *http.Request) bool
	from := func(first int64, etag string, b []byte) answer {
		return func(n int64, w http.ResponseWriter, r *http.Request) bool {
			if n >= first {
				answerWith(w, r, etag, b)
			}
			return n >= first
		}
	}
	for _, c := range []struct {
		name  string
		ill   answer
		code  int
		says  string
		begun bool // it was found out when the update had begun
	}{
		{"no ranges", func(_ int64, w http.ResponseWriter, r *http.Request) bool {
			r.Header.Del("Range")
			return false
		}, 3, "the server sends the whole file", false},
		{"a redirect to another origin", func(_ int64, w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "https://example.org/", http.StatusFound)
			return true
		}, 3, "another origin", false},
		{"somebody else's bundle", from(1, `"v1"`, foreign), 1, "chain: ", false},
		{"another file amid the update", from(5, `"v2"`, good), 1, "the file is not the one that was opened", true},
		{"another bit, once it was believed", from(5, `"v1"`, bent), 1, "payload: ", true},
	} {
		server.requests.Store(0)
		server.ill.Store(&c.ill)
		_, said, code := d.firmware("install", server.url, "--reboot")
		if code != c.code || !strings.Contains(said, c.says) {
			t.Errorf("%s: exit code %d, and it says %q; want %d and %q", c.name, code, said, c.code, c.says)
		}
		if c.begun {
			told, status := next(d, "event", d.events), d.update()
			if told.Outcome != "failed" || told.Why == nil || status == nil || !reflect.DeepEqual(status.Why, told.Why) || !strings.Contains(status.String(), c.says) {
				t.Errorf("%s: the owner was told %+v, and the status is %v", c.name, told, status)
			}
		}
		if n := server.requests.Load(); n > 20 {
			t.Errorf("%s: %d requests", c.name, n)
		}
		// Its tries may be counted, or wound back, at any time.
		if entries, err := d.Entries(); err != nil || len(entries) != 1 || !strings.HasPrefix(entries[0], "acme-gw_"+first.Version.String()+"+") {
			t.Errorf("%s: the entries are %q (%v), want that of %v only", c.name, entries, err, first.Version)
		}
	}
	d.Restart()
	if s := next(d, "start", d.started); s.Err != nil || s.Slot != runs.Slot {
		t.Errorf("the next start is %+v, want one from %s", s, runs.Slot)
	}

	server.ill.Store(nil)
	for deadline := time.Now().Add(patience); ; {
		_, said, code := d.firmware("install", server.url, "--reboot")
		if code == 0 {
			break
		}
		if code != 3 || time.Now().After(deadline) { // 3: the agent is not up yet
			t.Fatalf("from a good server: exit code %d: %s", code, said)
		}
	}
	if s := next(d, "start", d.started); s.Err != nil || s.Slot == runs.Slot {
		t.Errorf("updated, the next start is %+v, want one from the other slot than %s", s, runs.Slot)
	}
	if told := next(d, "event", d.events); told.Outcome != "installed" || told.Version != second.Version.String() {
		t.Errorf("the owner was told %+v, want %v to be installed", told, second.Version)
	}
}
