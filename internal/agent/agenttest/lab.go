package agenttest

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"birthmark/internal/config"
	"birthmark/internal/lab"
)

// A Lab is a lab that tells when a device is in service.
type Lab struct {
	*lab.Lab
	Dir string

	mu        sync.Mutex
	inService map[string]chan struct{} // by device id; closed at its first telemetry
}

// StartLab brings up a lab of its own for tb, with what options change.
func StartLab(tb testing.TB, options ...func(*lab.Options)) *Lab {
	tb.Helper()
	l := &Lab{Dir: tb.TempDir(), inService: map[string]chan struct{}{}}
	o := lab.Options{Dir: l.Dir, Heard: l.heard}
	for _, change := range options {
		change(&o)
	}
	var err error
	if l.Lab, err = lab.Up(tb.Context(), o); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Lab.Close() })
	return l
}

// InService is closed once the broker has telemetry of the device.
func (l *Lab) InService(id string) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.inService[id] == nil {
		l.inService[id] = make(chan struct{})
	}
	return l.inService[id]
}

// heard notes what the broker got.
func (l *Lab) heard(client, topic string, _ []byte) {
	if !strings.HasSuffix(topic, "/tele/system") {
		return
	}
	c := l.InService(client)
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-c:
	default:
		close(l.inService[client])
	}
}

// ConfigFile is what a device of this lab is configured with, but for what
// DeviceEnv adds.
func (l *Lab) ConfigFile() string { return filepath.Join(l.Dir, "device", "birthmark.toml") }

// DeviceEnv makes a new device of this lab, with a folder of its own, the TPM at
// address and a one-time password of the maker. It returns the settings that are
// the device's own, as environment variables.
func (l *Lab) DeviceEnv(tb testing.TB, id, address string) []string {
	tb.Helper()
	dir := tb.TempDir()
	password, err := l.NewPassword("maker", id)
	if err != nil {
		tb.Fatal(err)
	}
	file := filepath.Join(dir, "password")
	if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	return []string{
		"BIRTHMARK_DEVICE__ID=" + id,
		"BIRTHMARK_DEVICE__STATE=" + filepath.Join(dir, "state"),
		"BIRTHMARK_DOORS__FOLDER=" + filepath.Join(dir, "run"),
		"BIRTHMARK_TPM__ADDRESS=" + address,
		"BIRTHMARK_BIRTH__PASSWORD_FILE=" + file,
	}
}

// Device is the whole configuration of a new device.
func (l *Lab) Device(tb testing.TB, id, address string) *config.Config {
	tb.Helper()
	loaded, err := config.Load(config.Options{File: l.ConfigFile(), Env: l.DeviceEnv(tb, id, address)})
	if err != nil {
		tb.Fatal(err)
	}
	return &loaded.Config
}
