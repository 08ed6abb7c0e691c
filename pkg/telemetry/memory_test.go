package telemetry

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// listen lets devices of other processes come to the broker, and returns its address.
func (b *fakeBroker) listen(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go b.serve(tls.Server(c, &tls.Config{Certificates: []tls.Certificate{serverCert}}))
		}
	}()
	return "mqtts://" + l.Addr().String()
}

// peak is the most memory that a process ever had, in bytes, by the kernel's word.
func peak(t *testing.T, pid int) (n int64) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	if _, err := fmt.Sscanf(rest, "%d kB", &n); err != nil {
		t.Fatalf("VmHWM in %q: %v", status, err)
	}
	return n << 10
}

// A victim is a device in a process of its own.
type victim struct {
	peak int64
	log  string
	err  error // how it ended
}

// expose has a device, which holds to all rules but one, meet a broker; done is
// closed when the attack is over. A device that dies of it is waited for.
func expose(t *testing.T, b *fakeBroker, without rule, done <-chan struct{}) victim {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root.der")
	if err := os.WriteFile(root, rootCert.Raw, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := child("link", "BROKER="+b.listen(t), "ROOT="+root, "OUTBOX="+t.TempDir(), "WITHOUT="+string(without))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(2*patience, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	ended := make(chan error, 1)
	var v victim
	if done == nil {
		go func() { ended <- cmd.Wait() }()
	} else {
		soon(t, done, "the end of the attack")
		v.peak = peak(t, cmd.Process.Pid)
		stdin.Close()
		ended <- cmd.Wait()
	}
	v.err = <-ended
	stdin.Close()
	v.log = log.String()
	return v
}

func TestMemoryUnderAttack(t *testing.T) {
	const commands = 200_000
	afterBirth := func(raw []byte) (twist, <-chan struct{}) {
		done := make(chan struct{})
		over := sync.OnceFunc(func() { close(done) })
		return func(c net.Conn, p packets.ControlPacket, answer []byte) []byte {
			if _, ok := acknowledges(p, stateTopic); ok {
				go func() {
					defer over()
					_, _ = c.Write(raw) // the device may hang up, and is expected to
				}()
			}
			return answer
		}, done
	}
	flood := func(raw []byte) (twist, <-chan struct{}) {
		done := make(chan struct{})
		acknowledged := 0
		return func(_ net.Conn, p packets.ControlPacket, answer []byte) []byte {
			if _, ok := p.(*packets.PubackPacket); ok {
				if acknowledged++; acknowledged == commands {
					close(done)
				}
			}
			return says(raw...)(nil, p, answer)
		}, done
	}
	for _, tc := range []struct {
		name   string
		begins func([]byte) (twist, <-chan struct{})
		raw    []byte
		rule   rule
	}{
		{"64 MB of payload, three times", afterBirth, bytes.Repeat(commandPacket(0x30, 64<<20), 3), ruleSize},
		{"256 MB announced, and most of them sent", afterBirth, append([]byte{0x30, 0xff, 0xff, 0xff, 0x7f}, make([]byte, 200<<20)...), ruleSize},
		{"a flood of 200,000 commands", flood, bytes.Repeat(commandPacket(0x32, 100), commands), ""}, // the other half is among attacks
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := &fakeBroker{}
			var done <-chan struct{}
			b.twist, done = tc.begins(tc.raw)
			v := expose(t, b, "", done)
			lines := strings.Count(v.log, "\n")
			if v.peak > memoryLimit || v.err != nil || lines > 50 {
				t.Errorf("the device took %d MiB, wrote %d lines and ended with %v, want %d MiB and 50 lines at most, and nil", v.peak>>20, lines, v.err, memoryLimit>>20)
			}
			t.Logf("%d MiB, %d lines", v.peak>>20, lines)
			if tc.rule == "" {
				return
			}
			b = &fakeBroker{}
			b.twist, done = tc.begins(tc.raw)
			v = expose(t, b, tc.rule, done)
			if v.peak <= memoryLimit {
				t.Errorf("without the rule the device took %d MiB: the attack does nothing", v.peak>>20)
			}
		})
	}
}

// Bare paho dies of a SUBACK with more codes than there were filters.
func TestSubackCannotEndTheDevice(t *testing.T) {
	for _, without := range []rule{"", ruleFilters} {
		var done chan struct{}
		if without == "" {
			done = make(chan struct{})
		}
		subscribed := 0
		b := &fakeBroker{twist: func(_ net.Conn, p packets.ControlPacket, answer []byte) []byte {
			p, ok := p.(*packets.SubscribePacket)
			if !ok {
				return answer
			}
			if subscribed++; subscribed == 2 {
				close(done)
			}
			return slices.Concat([]byte{0x90, 5}, answer[2:4], []byte{1, 1, 1})
		}}
		v := expose(t, b, without, done)
		if died := strings.Contains(v.log, "index out of range"); died != (without == ruleFilters) || (v.err != nil) != died {
			t.Errorf("without %q: the device ended with %v and said\n%s", without, v.err, v.log)
		}
	}
}
