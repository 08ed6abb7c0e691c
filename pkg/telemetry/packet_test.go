package telemetry

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// Packets of our own that the table's brokers answer.
var (
	connectSent   = []byte{0x10, 0}
	publishSent   = []byte{0x32, 5, 0, 1, 'a', 0, 7}
	subscribeSent = []byte{0x82, 6, 0, 8, 0, 1, 'a', 1}
	connack       = []byte{0x20, 2, 0, 0}
)

func TestHostileBroker(t *testing.T) {
	for _, tc := range []struct {
		name   string
		sent   []byte // by us, after CONNECT
		answer []byte // after CONNACK, unless it is one
	}{
		{"nothing", nil, nil},
		{"256 MB announced in 5 bytes", nil, []byte{0x30, 0xff, 0xff, 0xff, 0x7f}},
		{"one byte over the limit", nil, []byte{0x30, 0x81, 0x80, 0x10}},
		{"a length of five bytes", nil, []byte{0x30, 0xff, 0xff, 0xff, 0xff, 0x01}},
		{"the end in a header", nil, []byte{0x30}},
		{"the end in a body", nil, []byte{0x30, 9, 0, 1, 'a'}},
		{"type 0", nil, []byte{0x00, 0}},
		{"type 15", nil, []byte{0xf0, 0}},
		{"CONNECT", nil, []byte{0x10, 0}},
		{"SUBSCRIBE", nil, subscribeSent},
		{"PINGREQ", nil, []byte{0xc0, 0}},
		{"DISCONNECT", nil, []byte{0xe0, 0}},
		{"PUBREC", publishSent, []byte{0x50, 2, 0, 7}},
		{"PUBREL", nil, []byte{0x62, 2, 0, 7}},
		{"PUBCOMP", publishSent, []byte{0x70, 2, 0, 7}},
		{"a second CONNACK", nil, connack},
		{"a message before CONNACK", nil, nil}, // see below
		{"CONNACK with reserved flags", nil, []byte{0x20, 2, 2, 0}},
		{"CONNACK with code 6", nil, []byte{0x20, 2, 0, 6}},
		{"CONNACK of 3 bytes", nil, []byte{0x20, 3, 0, 0, 0}},
		{"PINGRESP with a body", nil, []byte{0xd0, 1, 0}},
		{"PINGRESP with flags", nil, []byte{0xd1, 0}},
		{"PUBACK for nothing", nil, []byte{0x40, 2, 0, 7}},
		{"PUBACK twice", publishSent, []byte{0x40, 2, 0, 7, 0x40, 2, 0, 7}},
		{"PUBACK for another message", publishSent, []byte{0x40, 2, 0, 6}},
		{"PUBACK for a SUBSCRIBE", subscribeSent, []byte{0x40, 2, 0, 8}},
		{"PUBACK with flags", publishSent, []byte{0x42, 2, 0, 7}},
		{"PUBACK of 3 bytes", publishSent, []byte{0x40, 3, 0, 7, 0}},
		{"SUBACK for nothing", nil, []byte{0x90, 3, 0, 8, 1}},
		{"SUBACK for a message", publishSent, []byte{0x90, 3, 0, 7, 1}},
		{"SUBACK with too many codes", subscribeSent, []byte{0x90, 4, 0, 8, 1, 1}},
		{"SUBACK without a code", subscribeSent, []byte{0x90, 2, 0, 8}},
		{"SUBACK with code 3", subscribeSent, []byte{0x90, 3, 0, 8, 3}},
		{"UNSUBACK for nothing", nil, []byte{0xb0, 2, 0, 8}},
		{"QoS 2", nil, []byte{0x34, 5, 0, 1, 'a', 0, 1}},
		{"QoS 3", nil, []byte{0x36, 5, 0, 1, 'a', 0, 1}},
		{"QoS 0 and DUP", nil, []byte{0x38, 3, 0, 1, 'a'}},
		{"no topic", nil, []byte{0x30, 3, 0, 0, 'x'}},
		{"a topic longer than the packet", nil, []byte{0x30, 3, 0, 9, 'a'}},
		{"a topic with a wildcard", nil, []byte{0x30, 3, 0, 1, '#'}},
		{"a topic with a zero", nil, []byte{0x30, 3, 0, 1, 0}},
		{"a topic that is not UTF-8", nil, []byte{0x30, 3, 0, 1, 0xff}},
		{"QoS 1 without an identifier", nil, []byte{0x32, 3, 0, 1, 'a'}},
		{"QoS 1 with identifier 0", nil, []byte{0x32, 5, 0, 1, 'a', 0, 0}},
	} {
		synctest.Test(t, func(t *testing.T) {
			greeting := connack
			switch {
			case tc.name == "a message before CONNACK":
				greeting = []byte{0x30, 3, 0, 1, 'a'}
			case len(tc.answer) > 2 && tc.answer[0] == 0x20 && tc.name != "a second CONNACK":
				greeting = nil
			}
			read, err := converse(t, tc.sent, slices.Concat(greeting, tc.answer))
			if err == nil || err == io.EOF {
				t.Errorf("%s: paho would get %x and %v, want an error that says what the broker did", tc.name, read, err)
			}
			if len(read) > len(connack)+4 {
				t.Errorf("%s: %x was let through", tc.name, read)
			}
		})
	}
}

// converse has a conn write CONNECT and sent, and read what a broker says before it
// hangs up.
func converse(t *testing.T, sent, said []byte) (read []byte, err error) {
	t.Helper()
	device, broker := net.Pipe()
	go io.Copy(io.Discard, broker)
	c := newConn(device, device, time.Minute, "")
	defer c.Close()
	for _, packet := range [][]byte{connectSent, sent} {
		if packet == nil {
			continue
		}
		if _, err := c.Write(packet); err != nil {
			t.Fatal(err)
		}
	}
	go func() {
		defer broker.Close()
		// The device hangs up when it has heard enough.
		_, _ = broker.Write(said)
	}()
	read, err = io.ReadAll(c)
	if err == nil {
		err = io.EOF
	}
	return read, err
}

func TestGoodBrokerIsLetThrough(t *testing.T) {
	for name, tc := range map[string]struct{ sent, answer []byte }{
		"PUBACK":              {publishSent, []byte{0x40, 2, 0, 7}},
		"SUBACK":              {subscribeSent, []byte{0x90, 3, 0, 8, 0x80}},
		"UNSUBACK":            {[]byte{0xa2, 5, 0, 9, 0, 1, 'a'}, []byte{0xb0, 2, 0, 9}},
		"PINGRESP":            {[]byte{0xc0, 0}, []byte{0xd0, 0}},
		"a message":           {nil, []byte{0x31, 4, 0, 1, 'a', 'x'}},
		"a message with QoS1": {nil, []byte{0x3b, 5, 0, 1, 'a', 0, 1}},
		"the largest message": {nil, slices.Concat([]byte{0x30, 0x80, 0x80, 0x10, 0, 1, 'a'}, make([]byte, packetLimit-3))},
	} {
		synctest.Test(t, func(t *testing.T) {
			want := slices.Concat(connack, tc.answer)
			if read, _ := converse(t, tc.sent, want); !bytes.Equal(read, want) {
				t.Errorf("%s: paho would get %.20x, want %.20x", name, read, want)
			}
		})
	}
}

func TestHeaderAloneTakesNoMemory(t *testing.T) {
	hostile := []byte{0x30, 0xff, 0xff, 0xff, 0x7f}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 100 {
		if _, err := readPacket(bufio.NewReader(bytes.NewReader(hostile)), ""); err == nil {
			t.Fatal("268,435,455 bytes were accepted")
		}
	}
	runtime.ReadMemStats(&after)
	if taken := after.TotalAlloc - before.TotalAlloc; taken > 100*16<<10 {
		t.Errorf("100 headers took %d bytes of memory", taken)
	}
}

// A broker that answers before it can have read the question is not let through
// before the question is written.
func TestAnswerWaitsForItsQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		device, broker := net.Pipe()
		c := newConn(device, device, time.Minute, "")
		defer c.Close()
		go broker.Write(slices.Concat(connack, []byte{0x40, 2, 0, 7}))
		if _, err := io.ReadFull(c, make([]byte, len(connack))); err != nil {
			t.Fatal(err)
		}
		go c.Write(publishSent) // which nobody reads yet
		synctest.Wait()
		answered := false
		go func() {
			io.ReadFull(c, make([]byte, 4))
			answered = true
		}()
		synctest.Wait()
		if answered {
			t.Error("the answer came before the question was written")
		}
		go io.Copy(io.Discard, broker)
		synctest.Wait()
		if !answered {
			t.Error("the answer did not come after the question was written")
		}
	})
}

func TestReasonIsTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		device, broker := net.Pipe()
		c := newConn(device, device, time.Minute, "")
		go broker.Write([]byte{0xf0, 0})
		_, first := c.Read(make([]byte, 1))
		c.Close()
		if _, err := c.Write(connectSent); err == nil {
			t.Error("a closed connection could be written to")
		}
		<-c.gone
		if c.err != first || !strings.Contains(first.Error(), "type 15") {
			t.Errorf("the reason is %v, want the first, about type 15: %v", c.err, first)
		}
		broker.Close()
	})
}

func FuzzPacket(f *testing.F) {
	for _, seed := range [][]byte{
		connack, {0x40, 2, 0, 7}, {0x90, 3, 0, 8, 1}, {0xb0, 2, 0, 9}, {0xd0, 0}, {0x31, 4, 0, 1, 'a', 'x'},
		{0x32, 5, 0, 1, 'a', 0, 1}, {0x30, 0xff, 0xff, 0xff, 0x7f}, {0x30, 0x83, 0x00, 0, 1, 'a'}, connectSent, subscribeSent,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		in := bufio.NewReader(bytes.NewReader(raw))
		p, err := readPacket(in, "")
		if err == nil {
			if !bytes.HasPrefix(raw, p.raw) || len(p.body) > packetLimit {
				t.Fatalf("%x was read from %x", p.raw, raw)
			}
			// What was judged to be fit for paho is read by paho, and to its end.
			rest := bytes.NewReader(p.raw)
			if _, err := packets.ReadPacket(rest); err != nil || rest.Len() > 0 {
				t.Errorf("paho cannot read %x: %v, %d bytes left", p.raw, err, rest.Len())
			}
			p.question()
		} else if errors.Is(err, io.EOF) && len(raw) > 0 {
			t.Errorf("%x ends between two packets", raw)
		}
		// Our own packets come from paho, but are taken apart by the same rules.
		if _, q, filters, err := parseSent(raw); err == nil && q.answer == typeSuback && filters > len(raw) {
			t.Errorf("%d filters in %x", filters, raw)
		}
	})
}
