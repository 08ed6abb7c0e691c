package main

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"birthmark/internal/agent"
	"birthmark/internal/agent/api"
	"birthmark/internal/agent/firmware"
	"birthmark/internal/agent/update"
	"birthmark/internal/config"
	"birthmark/internal/installer"
	"birthmark/pkg/clock"
	"birthmark/pkg/fota"
	bt "birthmark/pkg/fota/bundle/bundletest"
)

// A slotInMemory stands for slots and boot loader. It holds what [fota.Installer]
// promises as long as nobody starts it.
type slotInMemory struct {
	mu     sync.Mutex
	other  fota.Other
	images map[string]*bytes.Buffer
}

func (s *slotInMemory) Status(context.Context) (fota.Status, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	running, err := fota.Running(os.DirFS("/")) // of the machine that the test runs on
	if errors.Is(err, fota.ErrNoVersion) {
		err = nil
	}
	return fota.Status{Compatible: "acme-gw", Running: running, Slots: map[string]int64{"rootfs": 1 << 20, "appfs": 1 << 20}, Other: s.other}, err
}

func (s *slotInMemory) Install(ctx context.Context, m *fota.Manifest, copyImage fota.CopyImage, progress func(done, total int64)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images = map[string]*bytes.Buffer{}
	for _, image := range m.Images {
		s.images[image.Slot] = &bytes.Buffer{}
		if err := copyImage(ctx, s.images[image.Slot], image, progress); err != nil {
			return err
		}
	}
	s.other = fota.Other{Version: m.Version, Mark: fota.Staged}
	return nil
}

func (s *slotInMemory) Arm(_ context.Context, m *fota.Manifest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.other = fota.Other{Version: m.Version, Mark: fota.Armed, Tries: 3}
	return nil
}

func (s *slotInMemory) Cancel(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.other = fota.Other{}
	return nil
}

func (s *slotInMemory) Bless(context.Context) error { return nil }

// TestABundleIsInstalled has an agent, at its door, install what `rauc bundle` made,
// through the installer's socket. It needs neither TPM nor network for that.
func TestABundleIsInstalled(t *testing.T) {
	dir := t.TempDir()
	maker, stranger := bt.NewPKI(t, "P-256", "P-256"), bt.NewPKI(t, "P-384", "P-384")
	release := bt.NewRelease("acme-gw", "9.1.0+sv2")
	for name, text := range map[string][]byte{
		"good.raucb":      release.Rauc(t, maker.Signer, "-comp zstd"),
		"foreign.raucb":   release.Rauc(t, stranger.Signer, "-comp zstd"),
		"anchors.pem":     bt.PEM(maker.Root.Cert),
		"signing-cas.pem": bt.PEM(maker.Issuing.Cert),
		"crls.pem": bytes.Join([][]byte{
			pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: bt.CRL(t, maker.Root, nil)}),
			pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: bt.CRL(t, maker.Issuing, nil)}),
		}, nil),
	} {
		write(t, filepath.Join(dir, name), string(text))
	}
	folders := firmware.Folders
	firmware.Folders = []string{dir}
	t.Cleanup(func() { firmware.Folders = folders })

	slot := &slotInMemory{}
	socket := filepath.Join(dir, "installer.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	root := installer.Server{Version: "test", Users: []uint32{uint32(os.Getuid())}, Idle: time.Hour, Log: log,
		Boot: slot, Trust: []string{dir}, Clock: clock.Host(), State: filepath.Join(dir, "installer")}
	conf := config.Default()
	conf.Device.State, conf.Doors.Folder = filepath.Join(dir, "state"), filepath.Join(dir, "run")
	conf.TPM.Address = "unix:" + filepath.Join(dir, "none")
	a, err := agent.New(&conf, log)
	if err != nil {
		t.Fatal(err)
	}
	restarted := make(chan struct{}, 1)
	a.UpdateBy(rootSide{installer.Client{Path: socket}}, func(context.Context) error { restarted <- struct{}{}; return nil })
	doors := openDoors(a, func() *config.Loaded { return &config.Loaded{Config: conf} })
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := root.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	running.Go(func() {
		if err := a.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer func() {
		cancel()
		running.Wait()
		if err := errors.Join(doors.Close(), a.Close()); err != nil {
			t.Error(err)
		}
	}()

	order := func(from string) error {
		_, err := api.Post(ctx, conf.Doors.Folder, "/v1/firmware/install", api.Install{From: from, Restart: true})
		return err
	}
	for _, c := range []struct {
		from   string
		status int
		want   string
	}{
		{filepath.Join(dir, "foreign.raucb"), http.StatusUnprocessableEntity, "chain: "},
		{filepath.Join(dir, "none.raucb"), http.StatusServiceUnavailable, "no such file"},
		{"https://127.0.0.1:1/good.raucb", http.StatusBadRequest, "firmware.server_anchors is missing"},
		{"good.raucb", http.StatusBadRequest, "absolute path"},
	} {
		err := order(c.from)
		var refusal *api.Refusal
		if !errors.As(err, &refusal) || refusal.Status != c.status || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want status %d and %q", c.from, err, c.status, c.want)
		}
	}
	if s := a.Status(); s.Update != nil || slot.images != nil {
		t.Errorf("after refusals: %+v, %d images written; want nothing", s.Update, len(slot.images))
	}

	if err := order(filepath.Join(dir, "good.raucb")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-restarted:
	case <-time.After(time.Minute):
		t.Fatalf("no restart; the update is %+v", a.Status().Update)
	}
	s := a.Status()
	if s.Update == nil || s.Update.Phase != update.Armed || s.Update.Version != "9.1.0+sv2" || slot.other.Mark != fota.Armed {
		t.Errorf("%+v, and the slot is %+v; want 9.1.0+sv2 armed", s.Update, slot.other)
	}
	for class, file := range release.Slots {
		if got := slot.images[class]; got == nil || !bytes.Equal(got.Bytes(), release.Files[file]) {
			t.Errorf("slot %s does not hold %s", class, file)
		}
	}
	var printed strings.Builder
	if err := s.Print(&printed); err != nil || !strings.Contains(printed.String(), "firmware  9.1.0+sv2 armed since ") {
		t.Errorf("status prints\n%s%v", &printed, err)
	}
	if text, err := a.Metrics(); err != nil || !strings.Contains(string(text), `birthmark_firmware_update{phase="armed"} 1`) {
		t.Errorf("no such phase in the metrics: %v\n%s", err, text)
	}
	if lines, err := os.ReadFile(filepath.Join(conf.Device.State, "audit.log")); err != nil || strings.Count(string(lines), `"event":"firmware"`) < 3 {
		t.Errorf("the audit log: %v\n%s", err, lines)
	}
}
