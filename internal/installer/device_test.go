package installer

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"birthmark/pkg/clock"
	"birthmark/pkg/fota"
	"birthmark/pkg/fota/bundle"
	"birthmark/pkg/fota/bundle/bundletest"
)

// A fakeLoader is a boot loader and its slots, in memory.
type fakeLoader struct {
	t     *testing.T
	inUse atomic.Bool // by a call

	status  fota.Status
	slots   map[string][]byte
	blessed int
	err     error // of every change
	// during, if there is one, is called when an install has begun.
	during func(ctx context.Context)
}

func newLoader(t *testing.T) *fakeLoader {
	return &fakeLoader{t: t, status: fota.Status{Compatible: "acme-gw", Running: version(t, "1.0.0+sv1"), Floor: 1,
		Slots: map[string]int64{"rootfs": 1 << 20, "appfs": 1 << 20}}}
}

func version(t testing.TB, s string) fota.Version {
	t.Helper()
	v, err := fota.ParseVersion(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// take holds that there is one call at a time.
func (l *fakeLoader) take() (give func()) {
	if l.inUse.Swap(true) {
		l.t.Error("the boot loader was called twice at once")
	}
	return func() { l.inUse.Store(false) }
}

// set changes l between two calls.
func (l *fakeLoader) set(change func()) {
	defer l.take()()
	change()
}

// seen is what there is between two calls.
func (l *fakeLoader) seen() (other fota.Other, slots map[string][]byte, blessed int) {
	defer l.take()()
	return l.status.Other, l.slots, l.blessed
}

func (l *fakeLoader) Status(context.Context) (fota.Status, error) {
	defer l.take()()
	return l.status, nil
}

func (l *fakeLoader) Install(ctx context.Context, m *fota.Manifest, copyImage fota.CopyImage, progress func(done, total int64)) error {
	defer l.take()()
	l.status.Other, l.slots = fota.Other{}, map[string][]byte{}
	if l.err != nil {
		return l.err
	}
	for i, image := range m.Images {
		var b bytes.Buffer
		if l.during != nil {
			l.during(ctx)
		}
		if err := copyImage(ctx, &b, image, nil); err != nil {
			return fmt.Errorf("cannot write %s: %w", image.Slot, err)
		}
		l.slots[image.Slot] = b.Bytes()
		progress(int64(i)+1, int64(len(m.Images)))
	}
	l.status.Other = fota.Other{Version: m.Version, Mark: fota.Staged}
	return nil
}

func (l *fakeLoader) Arm(_ context.Context, m *fota.Manifest) error {
	defer l.take()()
	if l.status.Other.Version != m.Version || l.status.Other.Mark == "" {
		l.t.Errorf("%v is armed, and %+v is there", m.Version, l.status.Other)
	}
	l.status.Other.Mark, l.status.Other.Tries = fota.Armed, 3
	return l.err
}

func (l *fakeLoader) Cancel(context.Context) error {
	defer l.take()()
	l.status.Other = fota.Other{}
	return l.err
}

func (l *fakeLoader) Bless(context.Context) error {
	defer l.take()()
	l.blessed++
	return l.err
}

// A device has a server, its boot loader and files, and those who sign for it.
type device struct {
	*testing.T
	Client
	server *Server
	loader *fakeLoader
	pki    *bundletest.PKI
	etc    string // the first folder of trust
	usr    string // the second
	state  string
	grace  time.Duration
	idle   time.Duration
	clock  *clock.Clock // the host's, if it is nil
	hear   func(ctx context.Context, p *peer, size int64) *remote

	stop  func()
	ended <-chan error
}

func newDevice(t *testing.T) *device {
	d := &device{T: t, loader: newLoader(t), pki: bundletest.NewPKI(t, "P-256", "P-256"),
		etc: t.TempDir(), usr: t.TempDir(), state: filepath.Join(t.TempDir(), "state"), idle: time.Hour}
	d.makeTrust()
	d.start()
	return d
}

func (d *device) makeTrust() {
	d.trust(d.etc, bundle.AnchorsFile, bundletest.PEM(d.pki.Root.Cert))
	d.trust(d.etc, bundle.IssuersFile, bundletest.PEM(d.pki.Issuing.Cert))
	d.trust(d.etc, bundle.CRLsFile, d.crls(nil))
}

func (d *device) newServer() *Server {
	return &Server{Version: "1.2.3", Users: []uint32{uint32(os.Getuid())}, Idle: d.idle,
		Boot: d.loader, Clock: cmp.Or(d.clock, clock.Host()), Trust: []string{d.etc, d.usr}, Grace: d.grace, State: d.state, hear: d.hear}
}

// start starts the server, anew if there was one.
func (d *device) start() {
	d.Helper()
	d.stopped()
	ctx, stop := context.WithCancel(context.Background())
	d.server = d.newServer()
	var path string
	path, d.ended = serve(d.T, ctx, d.server)
	d.stop, d.Client = stop, Client{path}
	d.Cleanup(d.stopped)
}

// stopped stops the server, if there is one.
func (d *device) stopped() {
	d.Helper()
	if d.stop == nil {
		return
	}
	d.stop()
	if err := <-d.ended; err != nil {
		d.Errorf("the server ended with %v", err)
	}
	d.stop = nil
}

func (d *device) trust(folder, name string, text []byte) {
	d.Helper()
	d.put(filepath.Join(folder, name), text)
}

func (d *device) put(path string, text []byte) {
	d.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		d.Fatal(err)
	}
}

// impatient waits for a reply for a moment only.
func impatient(ctx context.Context, p *peer, size int64) *remote {
	r := hearing(ctx, p, size)
	r.patience = func(int64, time.Duration) time.Duration { return 20 * time.Millisecond }
	return r
}

// crls are CRLs of the CAs, later ones with higher numbers.
func (d *device) crls(change func(*x509.RevocationList), revoked ...*bundletest.Signer) (text []byte) {
	d.Helper()
	for _, ca := range []*bundletest.Signer{d.pki.Root, d.pki.Issuing} {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: bundletest.CRL(d, ca, change, revoked...)})...)
	}
	return text
}

// release is a good bundle of a version.
func (d *device) release(v string) []byte {
	d.Helper()
	return bundletest.NewRelease("acme-gw", v).Parts(d, d.pki.Signer).Bytes()
}

func (d *device) try(b []byte) (*Release, error) {
	return d.Install(d.Context(), bytes.NewReader(b), int64(len(b)), nil)
}

func (d *device) mustInstall(v string) *Release {
	d.Helper()
	r, err := d.try(d.release(v))
	if err != nil {
		d.Fatalf("a good bundle: %v", err)
	}
	return r
}

// file writes b to a file.
func (d *device) file(b []byte) string {
	d.Helper()
	path := filepath.Join(d.TempDir(), "bundle")
	d.put(path, b)
	return path
}

// wantNothing holds that v was not installed, and is not armed by anybody.
func (d *device) wantNothing(what, v string) {
	d.Helper()
	err := d.Arm(d.Context(), version(d, v))
	wantRefusal(d, what+", then arm", err, fota.StageBoot, "staged")
	if other, _, _ := d.loader.seen(); other != (fota.Other{}) {
		d.Errorf("%s: %+v could be started, want nothing", what, other)
	}
}

func wantRefusal(t testing.TB, what string, err error, stage fota.Stage, code string) {
	t.Helper()
	var r *fota.Refusal
	if !errors.As(err, &r) {
		t.Errorf("%s: got %v, want a refusal at %s, %s", what, err, stage, code)
	} else if r.Stage != stage || r.Code != code {
		t.Errorf("%s: refused at %s, %s (%v), want %s, %s", what, r.Stage, r.Code, err, stage, code)
	}
}

// A talker is a peer that says what it likes.
type talker struct {
	*testing.T
	*net.UnixConn
	in *bufio.Reader
}

func (d *device) dial() *talker {
	d.Helper()
	c, err := net.Dial("unix", d.Path)
	if err != nil {
		d.Fatal(err)
	}
	d.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(long)); err != nil {
		d.Fatal(err)
	}
	return &talker{d.T, c.(*net.UnixConn), bufio.NewReaderSize(c, answerLimit)}
}

// say sends bytes; who is not listened to may be hung up on.
func (c *talker) say(b []byte) { _, _ = c.Write(b) }

func (c *talker) next() answer {
	c.Helper()
	text, err := readLine(c.in)
	if err != nil {
		c.Fatalf("no answer came: %v", err)
	}
	a, err := parseAnswer(text)
	if err != nil {
		c.Fatalf("%q: %v", text, err)
	}
	return a
}

// offer offers a bundle of so many bytes, and replies to the nth ask with whatever reply
// says, until there is a last line. An empty reply is a closed connection, and nil is
// silence.
func (d *device) offer(size int, reply func(n int, a ask) []byte) (last answer, asks int) {
	d.Helper()
	c := d.dial()
	c.say(fmt.Appendf(nil, `{"verb":"install","size":%d}`+"\n", size))
	for {
		a := c.next()
		switch {
		case a.Read != nil:
			text := reply(asks, *a.Read)
			if text != nil && len(text) == 0 {
				c.Close()
				return answer{Error: "closed"}, asks
			}
			c.say(text)
			asks++
		case a.Progress == nil:
			return a, asks
		}
	}
}

// honest is a reply from b.
func honest(b []byte, a ask) []byte {
	return append(fmt.Appendf(nil, `{"length":%d}`+"\n", a.Length), b[a.Offset:a.Offset+int64(a.Length)]...)
}
