package update_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"birthmark/internal/agent/update"
	"birthmark/pkg/fota"
	"birthmark/pkg/fota/source"
	"birthmark/pkg/store"
)

// A cut is what a loss of power, or the end of the agent, panics with.
type cut string

// A machine stands for a device with two slots, the installer at its socket, a boot
// loader that counts, and the disk that the agent remembers on. It holds what
// [fota.Installer] promises, and after every effect asserts what must be true of a
// device at any moment.
type machine struct {
	t   *testing.T
	dir string // of the state

	mu      sync.Mutex
	running fota.Version
	trial   bool // what runs was not blessed in this start
	left    int  // starts that it has
	other   fota.Other
	boot    int
	since   time.Time // of this start
	health  func(fota.Version) string
	ready   error
	unready fota.Version          // that never is
	network map[fota.Version]bool // whether the broker is reached
	panics  map[fota.Version]bool // does not come up
	lies    map[string]bool       // of the installer, by his verb
	hangs   map[string]bool
	away    int                          // times that the source is away
	later   time.Duration                // that it asks for then
	bundles map[string]*fota.Manifest    // by path
	spoilt  error                        // of Open
	fails   map[string]int               // times that a verb fails
	calls   map[string]int               // of the installer
	effect  func(where string) (cut any) // sees every effect
	phases  []update.Phase               // as they were remembered
	told    []update.State
	restart chan struct{}
}

var v1, v2, v3 = version("1.0.0+sv1"), version("1.1.0+sv1"), version("1.2.0+sv1")

func version(s string) fota.Version {
	v, err := fota.ParseVersion(s)
	if err != nil {
		panic(err)
	}
	return v
}

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, dir: t.TempDir(), running: v1, left: fullTries, since: time.Now(), boot: 1,
		network: map[fota.Version]bool{v1: true, v2: true, v3: true}, panics: map[fota.Version]bool{},
		lies: map[string]bool{}, hangs: map[string]bool{}, fails: map[string]int{}, calls: map[string]int{},
		health:  func(fota.Version) string { return "" },
		bundles: map[string]*fota.Manifest{}, restart: make(chan struct{}, 1)}
	for path, v := range map[string]fota.Version{"/2": v2, "/3": v3, "/old": version("0.9.0+sv1")} {
		m.bundles[path] = &fota.Manifest{Compatible: "gw", Version: v, Format: fota.FormatVerity, Images: []fota.Image{{Slot: "rootfs", File: "r", Size: 4096}}}
	}
	m.effect = func(string) any { return nil }
	return m
}

// verb is what befalls every request to the installer.
func (m *machine) verb(ctx context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls[name]++
	if m.hangs[name] {
		m.mu.Unlock()
		<-ctx.Done()
		m.mu.Lock()
		return context.Cause(ctx)
	}
	if m.fails[name] > 0 {
		m.fails[name]--
		return errors.New("input/output error")
	}
	return nil
}

func (m *machine) Status(ctx context.Context) (fota.Status, error) {
	if err := m.verb(ctx, "status"); err != nil {
		return fota.Status{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	st := fota.Status{Compatible: "gw", Running: m.running, Slots: map[string]int64{"rootfs": 1 << 20}, Trial: m.trial, Other: m.other}
	if m.lies["status"] {
		st.Running = v3
	}
	return st, nil
}

func (m *machine) Install(ctx context.Context, bundle io.ReaderAt, size int64, progress func(done, total int64)) error {
	m.mu.Lock()
	trial := m.trial
	if !trial {
		m.other = fota.Other{}
	}
	m.mu.Unlock()
	if trial {
		return errors.New("what runs is on trial")
	}
	if err := m.verb(ctx, "install"); err != nil {
		return err
	}
	text := make([]byte, size)
	for off := int64(0); off < size; off += 10 {
		if _, err := bundle.ReadAt(text[off:min(off+10, size)], off); err != nil && err != io.EOF {
			return err
		}
		progress(off, size)
		m.cut("amid installer: install")
	}
	progress(size, size)
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.lies["install"] {
		m.other = fota.Other{Version: version(strings.TrimSpace(string(text))), Mark: fota.Staged}
	}
	return nil
}

func (m *machine) Arm(ctx context.Context, v fota.Version) error {
	if err := m.verb(ctx, "arm"); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.other.Version != v || m.other.Mark != fota.Staged && m.other.Mark != fota.Armed {
		return fmt.Errorf("%v is not staged, but %+v", v, m.other)
	}
	if !m.lies["arm"] {
		m.other = fota.Other{Version: v, Mark: fota.Armed, Tries: fullTries}
	}
	return nil
}

func (m *machine) Cancel(ctx context.Context) error {
	if err := m.verb(ctx, "cancel"); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.other.Mark != fota.Kept {
		m.other = fota.Other{}
	}
	return nil
}

func (m *machine) Bless(ctx context.Context) error {
	if err := m.verb(ctx, "bless"); err != nil {
		return err
	}
	if s := m.state(); s.Version == m.running && (s.Phase != update.Trial || s.Boot != m.bootID() || !s.Healthy || s.Leave) && s.Outcome != update.Installed {
		m.t.Errorf("blessed in state %+v, and not known to be healthy in start %s", s, m.bootID())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.lies["bless"] {
		m.trial, m.left = false, fullTries
	}
	return nil
}

const fullTries = 3

// start is what the boot loader does: it counts every start, and turns to the other
// release when the one that ran has none left.
func (m *machine) start() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		m.boot++
		m.since, m.trial = time.Now(), true
		switch {
		case m.other.Mark == fota.Armed:
			m.running, m.left, m.other = m.other.Version, m.other.Tries, fota.Other{Version: m.running, Mark: fota.Kept}
		case m.left == 0 && m.other.Mark == fota.Kept:
			m.running, m.left, m.other = m.other.Version, fullTries, fota.Other{Version: m.running, Mark: fota.Failed}
		}
		m.left = max(m.left-1, 0)
		if !m.panics[m.running] {
			return
		}
	}
}

func (m *machine) bootID() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return fmt.Sprint("boot-", m.boot)
}

// state is what is on the disk.
func (m *machine) state() update.State {
	d, _, err := store.Read[device](m.dir)
	if err != nil && !strings.Contains(err.Error(), "no such file") {
		m.t.Fatal(err)
	}
	return d.Update
}

type device struct {
	Update update.State `json:"update,omitzero"`
}

// cut lets the test see an effect, and asserts what holds at every moment.
func (m *machine) cut(where string) {
	s := m.state()
	m.mu.Lock()
	armed := m.other.Mark == fota.Armed
	what := m.other.Version
	effect := m.effect
	if n := len(m.phases); n == 0 || m.phases[n-1] != s.Phase {
		m.phases = append(m.phases, s.Phase)
	}
	m.mu.Unlock()
	if armed && (!s.Freezes() || s.Version != what) {
		m.t.Errorf("%s: %v is armed, and remembered is %+v", where, what, s)
	}
	if r := effect(where); r != nil {
		panic(r)
	}
}

// A bundle in memory.
type memory struct {
	*bytes.Reader
	m *machine
}

func (b memory) Close() error { return nil }
func (b memory) ReadAt(p []byte, off int64) (int, error) {
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	if b.m.away > 0 && off > 0 {
		b.m.away--
		return 0, &source.UnavailableError{RetryAfter: b.m.later, Err: errors.New("connection refused")}
	}
	return b.Reader.ReadAt(p, off)
}

func (m *machine) open(_ context.Context, from update.From) (*update.Release, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	manifest := m.bundles[from.Path]
	switch {
	case m.spoilt != nil:
		return nil, m.spoilt
	case manifest == nil:
		return nil, fota.Refuse(fota.StageCMS, "signature", "the signature is not right")
	}
	text := fmt.Sprintf("%-95s", manifest.Version)
	return &update.Release{Manifest: manifest, Source: memory{bytes.NewReader([]byte(text)), m}, From: from}, nil
}

// agent runs an Updater on the machine until ctx ends, or it is cut off.
func (m *machine) agent(ctx context.Context, use func(*update.Updater)) {
	st, err := store.Open[device](m.dir)
	if err != nil {
		m.t.Fatal(err)
	}
	defer st.Close()
	defer func() {
		r := recover()
		if _, ok := r.(cut); r != nil && !ok {
			panic(r)
		}
	}()
	st.Cut = func(where string) { m.cut(strings.Replace(where, "write", "store: write", 1)) }
	u := update.New(update.Host{
		Load: func() update.State { return st.Get().Update },
		Save: func(change func(*update.State) error) error {
			return st.Update(func(d *device) error { return change(&d.Update) })
		},
		Installer: m, Open: m.open,
		Running: func() (fota.Version, error) { m.mu.Lock(); defer m.mu.Unlock(); return m.running, nil },
		Boot: func() (string, time.Duration, error) {
			id := m.bootID()
			m.mu.Lock()
			defer m.mu.Unlock()
			return id, time.Since(m.since), nil
		},
		Restart: func(context.Context) error {
			select {
			case m.restart <- struct{}{}:
			default:
			}
			return nil
		},
		Ready: func() error {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.running == m.unready {
				return errors.New("the TPM does not answer")
			}
			return m.ready
		},
		Reached:  func() bool { m.mu.Lock(); defer m.mu.Unlock(); return m.network[m.running] },
		Lately:   func() bool { m.mu.Lock(); defer m.mu.Unlock(); return m.network[m.running] },
		Tell:     func(s update.State) { m.mu.Lock(); defer m.mu.Unlock(); m.told = append(m.told, s) },
		Record:   func(update.State) {},
		Progress: func(update.Progress) {},
		Do: func(effect string, f func() error) error {
			m.cut("before " + effect)
			err := f()
			m.cut("after " + effect)
			return err
		},
		Beat: func(time.Duration) {}, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	if use != nil {
		use(u)
	}
	u.Run(ctx)
}
