package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"birthmark/internal/lab"
	"birthmark/internal/swtpm/swtpmtest"
)

// A victim is a device whose agent meets hostile peers, each time in a process of its
// own, which is measured from outside.
type victim struct {
	testing.TB
	lab    *lab.Lab // without its broker: the tests have their own
	binary string
	env    []string
	dir    string
}

func newVictim(tb testing.TB, changes map[string][2]string) *victim {
	tb.Helper()
	l, err := lab.Up(tb.Context(), lab.Options{Dir: tb.TempDir(), NoBroker: true})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	dir, err := os.MkdirTemp("", "bm") // short enough for the path of a socket
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return &victim{TB: tb, lab: l, binary: build(tb, changes), dir: dir, env: append(os.Environ(),
		"BIRTHMARK_DEVICE__ID=victim",
		"BIRTHMARK_DEVICE__STATE="+filepath.Join(dir, "state"),
		"BIRTHMARK_DOORS__FOLDER="+filepath.Join(dir, "run"),
		"BIRTHMARK_TPM__ADDRESS="+swtpmtest.Start(tb).Address(),
		"BIRTHMARK_TELEMETRY__INTERVAL=1s",
	)}
}

// meets starts the agent, waits until the attack is over, and returns the most memory
// that the agent ever had resident, in KiB. It must be alive then, and end well.
func (v *victim) meets(over <-chan struct{}, env ...string) (most int) {
	v.Helper()
	cmd := exec.Command(v.binary, "run", "--config", filepath.Join(v.lab.Dir(), "device", "birthmark.toml"))
	cmd.Env = append(v.env, env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		v.Fatal(err)
	}
	killed := time.AfterFunc(2*patience, func() { _ = cmd.Process.Kill() })
	defer killed.Stop()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-over:
	case err := <-ended:
		v.Fatalf("the agent ended before the attack did: %v\n%s", err, tail(stderr.String()))
	}
	most = peak(cmd.Process.Pid)
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := <-ended; err != nil {
		v.Errorf("the agent ended with %v, want nil\n%s", err, tail(stderr.String()))
	}
	if lines := strings.Count(stderr.String(), "\n"); lines > 200 {
		v.Errorf("it wrote %d lines, want 200 at most\n%s", lines, tail(stderr.String()))
	}
	return most
}

func tail(log string) string { return log[max(0, len(log)-3000):] }

// A hostileBroker does what a broker must, up to the birth of a device; then it attacks.
type hostileBroker struct {
	net.Listener
	before func(net.Conn) error // instead of TLS; may be nil
	after  func(io.Writer) error

	over func()     // is called when the device has had it
	mu   sync.Mutex // of what is written to a connection
}

// lastID is of the message with which an attack ends: who acknowledges it has read all
// that was before it.
const lastID = 0xbeef

// attackBroker lets agents meet such a broker, where the lab's configuration says that
// the broker is, until the attack was made. Without one, it is over with the birth.
func (v *victim) attackBroker(before func(net.Conn) error, after func(io.Writer) error) (most int) {
	v.Helper()
	cert, err := v.lab.OwnerCA().Server("broker")
	if err != nil {
		v.Fatal(err)
	}
	l, err := net.Listen("tcp", strings.TrimPrefix(v.lab.BrokerURL(), "mqtts://"))
	if err != nil {
		v.Fatal(err)
	}
	defer l.Close()
	over := make(chan struct{})
	b := &hostileBroker{Listener: l, before: before, after: after, over: sync.OnceFunc(func() { close(over) })}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go b.serve(c, &tls.Config{Certificates: []tls.Certificate{*cert}})
		}
	}()
	return v.meets(over)
}

func (b *hostileBroker) serve(raw net.Conn, config *tls.Config) {
	defer raw.Close()
	if b.before != nil {
		_ = b.before(raw)               // the device may hang up, and is expected to
		_, _ = io.Copy(io.Discard, raw) // until it has
		b.over()
		return
	}
	c := tls.Server(raw, config)
	in := bufio.NewReader(c)
	for began := false; ; {
		kind, body, err := readPacket(in)
		if err != nil {
			if began {
				b.over()
			}
			return
		}
		answer, birth, last := respond(kind, body)
		if last {
			b.over()
		}
		if birth && b.after == nil {
			b.over()
		}
		b.mu.Lock()
		_, _ = c.Write(answer) // reading will fail, too
		b.mu.Unlock()
		if birth && b.after != nil && !began {
			began = true
			go func() {
				b.mu.Lock()
				defer b.mu.Unlock()
				_ = b.after(c)
				_, _ = c.Write(publish(1, lastID, 2))
			}()
		}
	}
}

// respond is what a broker says to a packet of a device (MQTT 3.1.1, 3): whether it was
// the birth, and whether it acknowledged the last message of an attack.
func respond(kind byte, body []byte) (answer []byte, birth, last bool) {
	switch kind >> 4 {
	case 1: // CONNECT
		return []byte{0x20, 2, 0, 0}, false, false
	case 8: // SUBSCRIBE
		return []byte{0x90, 3, body[0], body[1], 1}, false, false
	case 3: // PUBLISH
		topic, rest := body[2:2+binary.BigEndian.Uint16(body)], body[2+binary.BigEndian.Uint16(body):]
		if kind>>1&3 == 0 {
			return nil, false, false
		}
		return []byte{0x40, 2, rest[0], rest[1]}, bytes.HasSuffix(topic, []byte("/state")), false
	case 4: // PUBACK
		return nil, false, binary.BigEndian.Uint16(body) == lastID
	case 12: // PINGREQ
		return []byte{0xd0, 0}, false, false
	}
	return nil, false, false
}

// readPacket reads a packet of a device, which is no attacker.
func readPacket(r *bufio.Reader) (kind byte, body []byte, err error) {
	if kind, err = r.ReadByte(); err != nil {
		return 0, nil, err
	}
	size, err := binary.ReadUvarint(r) // 2.2.3: the same code
	if err != nil || size > megabyte {
		return 0, nil, errors.Join(err, io.ErrUnexpectedEOF)
	}
	body = make([]byte, size)
	_, err = io.ReadFull(r, body)
	return kind, body, err
}

// publish is a command to the device, of so many bytes.
func publish(qos byte, id uint16, size int) []byte {
	const topic = "birthmark/v1/d/victim/cmd/ping/1"
	body := binary.BigEndian.AppendUint16(nil, uint16(len(topic)))
	body = append(body, topic...)
	if qos > 0 {
		body = binary.BigEndian.AppendUint16(body, id)
	}
	body = append(body, bytes.Repeat([]byte("{}"), size/2)...)
	return append(binary.AppendUvarint([]byte{0x30 | qos<<1}, uint64(len(body))), body...)
}

// live takes a blank device into service, where nobody attacks it.
func (v *victim) live() (most int) {
	v.Helper()
	password, err := v.lab.NewPassword(lab.Maker, "victim")
	if err != nil {
		v.Fatal(err)
	}
	file := filepath.Join(v.dir, "password")
	if err := os.WriteFile(file, []byte(password), 0o600); err != nil {
		v.Fatal(err)
	}
	v.env = append(v.env, "BIRTHMARK_BIRTH__PASSWORD_FILE="+file)
	return v.attackBroker(nil, nil)
}

// repeated writes the same n times over.
func repeated(n int, raw []byte) func(io.Writer) error {
	block := bytes.Repeat(raw, max(1, 64<<10/len(raw)))
	return func(w io.Writer) (err error) {
		for ; n > 0 && err == nil; n -= len(block) / len(raw) {
			_, err = w.Write(block)
		}
		return err
	}
}

// attacks are what a broker may do after the birth.
func brokerAttacks() []hostile {
	return []hostile{
		{"64 MB of payload, three times", repeated(3, publish(1, 7, 64<<20))},
		{"256 MB announced, and most of them sent", func(w io.Writer) error {
			return without("\x30\xff\xff\xff\x7f", "x")(&limited{w, 200 << 20})
		}},
		{"100,000 commands to be acknowledged", repeated(100_000, publish(1, 7, 100))},
		{"200,000 commands not to be acknowledged", repeated(200_000, publish(0, 0, 100))},
		{"5,000 commands of 60 kB", repeated(5_000, publish(1, 7, 60_000))},
		{"200,000 acknowledgements of nothing", repeated(200_000, []byte{0x40, 2, 0x77, 0x77})},
		{"200,000 pongs", repeated(200_000, []byte{0xd0, 0})},
		{"a subscription acknowledged a thousand times over", repeated(1, append([]byte{0x90, 0xea, 7, 0, 1}, make([]byte, 1000)...))},
		{"a length without end", repeated(1, bytes.Repeat([]byte{0xff}, 1000))},
		{"packets of no type", repeated(100_000, []byte{0x00, 0})},
	}
}

// limited takes so many bytes.
type limited struct {
	io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, io.ErrShortWrite
	}
	return l.Writer.Write(p)
}

// handshakeAttacks are what a broker may do instead of TLS (RFC 8446, 5.1).
func handshakeAttacks() []hostile {
	record := func(kind byte, payload string) string {
		return fmt.Sprintf("%c\x03\x03%s%s", kind, binary.BigEndian.AppendUint16(nil, uint16(len(payload))), payload)
	}
	return []hostile{
		{"a handshake message without end", without(record(22, "\x02\xff\xff\xff\x03\x03"), record(22, strings.Repeat("x", 16<<10)))},
		{"records of nothing without end", without("", record(22, ""))},
		{"warnings without end", without("", record(21, "\x01\x00"))},
		{"a web page without end", without("HTTP/1.1 200 OK\r\n\r\n", "TLS? ")},
	}
}

// attackDoors comes to both local doors of an agent in service, all at once, with more
// than they take.
func (v *victim) attackDoors() (most int) {
	v.Helper()
	over := make(chan struct{})
	go func() {
		defer close(over)
		var all sync.WaitGroup
		for _, door := range []string{"control.sock", "telemetry.sock"} {
			for _, h := range doorAttacks() {
				for range 8 {
					all.Go(func() { v.knock(door, h) })
				}
			}
		}
		all.Wait()
	}()
	return v.meets(over)
}

func doorAttacks() []hostile {
	const post = "POST /v1/tele/x HTTP/1.1\r\nHost: x\r\n"
	return []hostile{
		{"a header without end", without("GET /v1/status HTTP/1.1\r\nX: ", "xxxx")},
		{"header lines without end", without("GET /v1/status HTTP/1.1\r\n", "X: x\r\n")},
		{"a body without end", without(post+"Transfer-Encoding: chunked\r\n\r\n", "4\r\nAAAA\r\n")},
		{"a body of a terabyte", without(post+"Content-Length: 1099511627776\r\n\r\n", "AAAA")},
		{"lists in lists", text(post + "Content-Length: 60000\r\n\r\n" + strings.Repeat("[", 60000))},
		{"requests without end", without("", post+"Content-Length: 2\r\n\r\n{}")},
		{"half a request", text("POST /v1/te")},
	}
}

// knock waits for a door to be there, and then does there what h does.
func (v *victim) knock(door string, h hostile) {
	var c net.Conn
	var err error
	late := time.After(patience)
	for {
		if c, err = net.Dial("unix", filepath.Join(v.dir, "run", door)); err == nil {
			break
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-late:
			v.Error(err)
			return
		}
	}
	defer c.Close()
	_ = h.answer(c)               // the agent may hang up, and is expected to
	_, _ = io.Copy(io.Discard, c) // until it has
}

// attackEST lets a blank device ask an EST server that attacks in its answer to op.
// It knows the server's CA, or, to be told of it by op cacerts, only its fingerprint.
func (v *victim) attackEST(op string, h hostile) (most int) {
	v.Helper()
	over, asked := make(chan struct{}), false
	once := sync.OnceFunc(func() { close(over) })
	ctx, stop := context.WithTimeout(v.Context(), childPatience) // some are slow on purpose
	defer stop()
	defer context.AfterFunc(ctx, once)()
	s := startHostile(v, v.lab, op, hostile{h.name, func(w io.Writer) error {
		asked = true
		err := h.answer(w)
		w.(interface{ CloseWrite() error }).CloseWrite()
		_, _ = io.Copy(io.Discard, w.(io.Reader)) // until the device has had enough
		once()
		return err
	}})
	dir, err := os.MkdirTemp(v.dir, "blank")
	if err != nil {
		v.Fatal(err)
	}
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("word"), 0o600); err != nil {
		v.Fatal(err)
	}
	env := []string{"BIRTHMARK_DEVICE__STATE=" + filepath.Join(dir, "state"), "BIRTHMARK_BIRTH__URL=" + s.URL, "BIRTHMARK_BIRTH__PASSWORD_FILE=" + password}
	if op == "cacerts" {
		env = append(env, "BIRTHMARK_BIRTH__ANCHORS=", fmt.Sprintf("BIRTHMARK_BIRTH__ANCHOR_SHA256=%x", sha256.Sum256(v.lab.OwnerCA().Root().Raw)))
	} else {
		env = append(env, "BIRTHMARK_BIRTH__ANCHORS="+filepath.Join(v.lab.Dir(), "device", "owner-root.pem"))
	}
	most = v.meets(over, env...)
	s.CloseClientConnections()
	s.Close()
	if !asked {
		v.Errorf("%s, %s: nobody asked", op, h.name)
	}
	return most
}

// underAttack has the agent meet everybody, and tells of every case.
func underAttack(tb testing.TB, found func(name string, most int)) {
	v := newVictim(tb, nil)
	for _, op := range []struct{ name, mediaType string }{{"cacerts", certsType}, {"simpleenroll", certsType}} {
		for _, h := range hostiles(op.mediaType) {
			found("EST, "+op.name+", "+h.name, v.attackEST(op.name, h))
		}
	}
	found("nobody attacks", v.live())
	for _, h := range handshakeAttacks() {
		found("broker, "+h.name, v.attackBroker(func(c net.Conn) error { return h.answer(c) }, nil))
	}
	for _, h := range brokerAttacks() {
		found("broker, "+h.name, v.attackBroker(nil, h.answer))
	}
	found("doors", v.attackDoors())
}

// TestMemoryOfTheAgentUnderAttack lets the real binary, as a daemon, meet EST servers,
// brokers and local programs that want to fill its memory, and measures it from outside.
func TestMemoryOfTheAgentUnderAttack(t *testing.T) {
	cases, worst, where := 0, 0, ""
	underAttack(t, func(name string, most int) {
		if most == 0 || most > memoryLimit {
			t.Errorf("%s: %d KiB at most, want some, and %d as the limit", name, most, memoryLimit)
		}
		if cases++; most > worst {
			worst, where = most, name
		}
	})
	t.Logf("%d cases: %.1f MiB at most (%s)", cases, float64(worst)/1024, where)

	// The same binary without one limit: what is measured would be seen.
	twin := newVictim(t, map[string][2]string{"pkg/telemetry/packet.go": {"packetLimit = 256 << 10", "packetLimit = 256 << 20"}})
	twin.live()
	if most := twin.attackBroker(nil, brokerAttacks()[0].answer); most <= memoryLimit {
		t.Errorf("without the limit on packets: %d KiB, want more than %d", most, memoryLimit)
	}
}

// BenchmarkAgentUnderAttack reports the worst of them to make bench.
func BenchmarkAgentUnderAttack(b *testing.B) {
	worst := 0
	for b.Loop() {
		underAttack(b, func(_ string, most int) { worst = max(worst, most) })
	}
	b.ReportMetric(float64(worst)/1024, "agent-memory-attacked")
}
