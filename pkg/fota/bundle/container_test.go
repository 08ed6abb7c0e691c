package bundle

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"testing"

	"birthmark/pkg/fota"
)

func withTrailer(n int, length uint64) []byte {
	return binary.BigEndian.AppendUint64(bytes.Repeat([]byte{7}, n), length)
}

func TestContainer(t *testing.T) {
	s := newSource(withTrailer(5000, 1000))
	c, err := readContainer(s, int64(len(s.b)))
	if err != nil || c.payload != 4000 || len(c.signature) != 1000 {
		t.Fatalf("got %d and %d bytes, %v; want 4000 and 1000", c.payload, len(c.signature), err)
	}
	if s.read != 1008 || s.lowest != 4000 {
		t.Errorf("read %d bytes from %d on, want signature and trailer only", s.read, s.lowest)
	}
	for _, bad := range []struct {
		name, code string
		b          []byte
	}{
		{"empty", "trailer", nil},
		{"shorter than a trailer", "trailer", make([]byte, 7)},
		{"a trailer only", "unsigned", withTrailer(0, 0)},
		{"no signature", "unsigned", withTrailer(5000, 0)},
		{"a signature and no payload", "trailer", withTrailer(1000, 1000)},
		{"a signature longer than the file", "trailer", withTrailer(1000, 1001)},
		{"a signature at the limit, and too short a file", "trailer", withTrailer(1000, signatureLimit)},
		{"a signature above the limit", "trailer", withTrailer(signatureLimit+100, signatureLimit+1)},
		{"a negative length", "trailer", withTrailer(5000, math.MaxUint64)},
		{"the most negative length", "trailer", withTrailer(5000, 1<<63)},
		{"a length that is negative with the trailer", "trailer", withTrailer(5000, math.MaxUint64-7)},
		{"little endian", "trailer", withTrailer(5000, 1000<<48)},
	} {
		s := newSource(bad.b)
		_, err := readContainer(s, int64(len(bad.b)))
		wantRefusal(t, bad.name, err, fota.StageContainer, bad.code)
		if s.read > trailerSize {
			t.Errorf("%s: read %d bytes, want the trailer only", bad.name, s.read)
		}
	}
}

// TestTroubleIsNoRefusal: a file that cannot be read is not a bad one.
func TestTroubleIsNoRefusal(t *testing.T) {
	broken := errors.New("input/output error")
	for _, fails := range []int64{0, 4000, 5000} {
		s := newSource(withTrailer(5000, 1000))
		s.before = func(off int64, n int) error {
			if off >= fails {
				return broken
			}
			return nil
		}
		_, err := readContainer(s, int64(len(s.b)))
		wantTrouble(t, "a source that fails", err)
		if !errors.Is(err, broken) {
			t.Errorf("got %v, want what was wrong with the source", err)
		}
	}
	s := newSource(withTrailer(5000, 1000))
	_, err := readContainer(s, int64(len(s.b)+1))
	wantTrouble(t, "a source shorter than it was said to be", err)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v, want an unexpected EOF", err)
	}
}

func FuzzContainer(f *testing.F) {
	f.Add(withTrailer(5000, 1000))
	f.Add(withTrailer(5000, math.MaxUint64))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := readContainer(newSource(b), int64(len(b)))
		var r *fota.Refusal
		switch {
		case err != nil && !errors.As(err, &r):
			t.Errorf("the source is whole, and got %v", err)
		case err == nil && (c.payload <= 0 || len(c.signature) == 0 || c.payload+int64(len(c.signature))+trailerSize != int64(len(b))):
			t.Errorf("%d bytes, of them %d payload and %d signature", len(b), c.payload, len(c.signature))
		}
	})
}
