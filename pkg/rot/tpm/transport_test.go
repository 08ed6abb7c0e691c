package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/google/go-tpm/tpm2"

	"birthmark/pkg/rot"
)

// response is what a TPM sends: a code, and parameters if it is 0.
func response(code tpm2.TPMRC, params ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTNoSessions))
	b = binary.BigEndian.AppendUint32(b, uint32(headerSize+len(params)))
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, params...)
}

var getRandom = []byte{0x80, 1, 0, 0, 0, 12, 0, 0, 0x01, 0x7b, 0, 8}

// newTransport returns a transport and the TPM's end of its connection.
func newTransport(t *testing.T, deadline time.Duration) (*transport, net.Conn) {
	t.Helper()
	near, far := net.Pipe()
	t.Cleanup(func() { near.Close(); far.Close() })
	return &transport{link: near, ctx: t.Context(), deadline: deadline}, far
}

// answer reads commands from the TPM's end and answers each with the next of the
// given responses, then stays mute.
func answer(conn net.Conn, responses ...[]byte) {
	for _, r := range responses {
		if _, err := io.ReadFull(conn, make([]byte, len(getRandom))); err != nil {
			return
		}
		conn.Write(r)
	}
	io.Copy(io.Discard, conn)
}

func TestRetriesWhatTheTPMAsksFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr, far := newTransport(t, time.Minute)
		want := response(0, 0, 1, 42)
		go answer(far, response(tpm2.TPMRCRetry), response(tpm2.TPMRCYielded), response(tpm2.TPMRCTesting), response(tpm2.TPMRCNVRate), want)
		start := time.Now()
		got, err := tr.Send(getRandom)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("got %x, %v, want %x", got, err, want)
		}
		if n := tr.commands.Load(); n != 5 {
			t.Errorf("counted %d commands, want 5", n)
		}
		if took, want := time.Since(start), 150*time.Millisecond; took != want { // 10 + 20 + 40 + 80
			t.Errorf("took %v, want %v", took, want)
		}
	})
}

func TestGivesUpOnATPMThatIsAlwaysBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr, far := newTransport(t, 10*time.Second)
		go answer(far, slices.Repeat([][]byte{response(tpm2.TPMRCRetry)}, 1000)...)
		start := time.Now()
		_, err := tr.Send(getRandom)
		if !errors.Is(err, rot.ErrBusy) {
			t.Errorf("got %v, want rot.ErrBusy", err)
		}
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("gave up after %v, want 10s", took)
		}
		if tr.link == nil {
			t.Error("the connection was given up, though it is in order")
		}
	})
}

func TestDeadlineAndCancelEndAMuteTPM(t *testing.T) {
	for name, tt := range map[string]struct {
		cancelAfter time.Duration
		want        error
		text        string
		after       time.Duration
	}{
		"deadline": {time.Hour, rot.ErrUnavailable, "no answer within 7s", 7 * time.Second},
		"cancel":   {time.Second, context.Canceled, "context canceled", time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tr, far := newTransport(t, 7*time.Second)
				ctx, cancel := context.WithCancel(t.Context())
				tr.ctx = ctx
				defer time.AfterFunc(tt.cancelAfter, cancel).Stop()
				go answer(far)
				start := time.Now()
				_, err := tr.Send(getRandom)
				if !errors.Is(err, tt.want) || !errors.Is(err, rot.ErrUnavailable) || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("got %v, want %q", err, tt.text)
				}
				if took := time.Since(start); took != tt.after {
					t.Errorf("took %v, want %v", took, tt.after)
				}
				wantCut(t, tr)
			})
		})
	}
}

// wantCut fails the test unless the connection was given up: the next command
// would read the last one's answer.
func wantCut(t *testing.T, tr *transport) {
	t.Helper()
	if tr.link != nil {
		t.Error("the connection is kept")
	}
	before := tr.commands.Load()
	if _, err := tr.Send(getRandom); !errors.Is(err, rot.ErrUnavailable) {
		t.Errorf("the next command: got %v, want rot.ErrUnavailable", err)
	}
	if tr.commands.Load() != before {
		t.Error("the next command counts as sent")
	}
}

func TestABrokenAnswerEndsTheConnection(t *testing.T) {
	for name, broken := range map[string][]byte{
		"none":            nil,
		"half":            response(0, 1, 2, 3)[:11],
		"of another kind": []byte("HTTP/1.1 400 Bad Request"),
	} {
		tr, far := newTransport(t, time.Minute)
		go func() {
			io.ReadFull(far, make([]byte, len(getRandom)))
			far.Write(broken)
			far.Close()
		}()
		if got, err := tr.Send(getRandom); !errors.Is(err, rot.ErrUnavailable) {
			t.Errorf("%s: got %x, %v, want rot.ErrUnavailable", name, got, err)
		}
		wantCut(t, tr)
	}
}

func TestReadsResponsesInPieces(t *testing.T) {
	want := response(0, slices.Repeat([]byte{7}, 700)...)
	for name, r := range map[string]io.Reader{
		"whole":        bytes.NewReader(want),
		"byte by byte": iotest.OneByteReader(bytes.NewReader(want)),
		"in halves":    iotest.HalfReader(bytes.NewReader(want)),
	} {
		got, err := readResponse(r)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %d bytes, %v, want %d", name, len(got), err, len(want))
		}
	}
}

func TestRefusesBrokenResponses(t *testing.T) {
	good := response(0, 1, 2, 3)
	spoil := func(at int, b ...byte) []byte {
		s := bytes.Clone(good)
		copy(s[at:], b)
		return s
	}
	for name, tt := range map[string]struct {
		response []byte
		want     string
	}{
		"nothing":       {nil, "no response"},
		"half a header": {good[:7], "no response"},
		"cut short":     {good[:12], "half a response"},
		"too much":      {append(bytes.Clone(good), 0), "longer than it says"},
		"another tag":   {spoil(0, 0x12, 0x34), "tag 0x1234"},
		"size too low":  {spoil(2, 0, 0, 0, 9), "9 bytes"},
		"size too high": {spoil(2, 0, 0, 0x10, 1), "4097 bytes, at most 4096"},
		"size absurd":   {spoil(2, 0xff, 0xff, 0xff, 0xff), "4294967295 bytes"},
	} {
		_, err := readResponse(bytes.NewReader(tt.response))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want it to say %q", name, err, tt.want)
		}
	}
}

func FuzzReadResponse(f *testing.F) {
	f.Add(response(0, 1, 2, 3), byte(0))
	f.Add(response(tpm2.TPMRCRetry), byte(1))
	f.Add([]byte{0, 0xc4, 0, 0, 0, 10, 0, 0, 0, 30}, byte(2))
	f.Fuzz(func(t *testing.T, sent []byte, pieces byte) {
		var r io.Reader = bytes.NewReader(sent)
		switch pieces % 3 {
		case 1:
			r = iotest.OneByteReader(r)
		case 2:
			r = iotest.DataErrReader(iotest.HalfReader(r))
		}
		got, err := readResponse(r)
		if err == nil && (len(got) < headerSize || len(got) > responseLimit || !bytes.HasPrefix(sent, got)) {
			t.Errorf("took %x as a response to be %x", sent, got)
		}
		if err == nil {
			wantsRetry(got)
		}
	})
}
