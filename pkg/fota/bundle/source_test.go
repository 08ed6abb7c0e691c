package bundle

import (
	"errors"
	"io"
	"testing"

	"birthmark/pkg/fota"
)

// A source counts what is read of a bundle.
type source struct {
	b      []byte
	read   int64 // bytes
	lowest int64 // offset that was read
	// zeros are so many that stand in b at an offset, and take no memory.
	zeros, at int64
	// before, if there is one, is asked before every read, and may change b or fail.
	before func(off int64, n int) error
	// after, if there is one, may change what was read.
	after func(p []byte, off int64)
}

func newSource(b []byte) *source { return &source{b: b, lowest: int64(len(b))} }

func (s *source) ReadAt(p []byte, off int64) (int, error) {
	if s.before != nil {
		if err := s.before(off, len(p)); err != nil {
			return 0, err
		}
	}
	whole := &sparse{head: s.b[:s.at], tail: s.b[s.at:], size: int64(len(s.b)) + s.zeros}
	if off >= whole.size {
		return 0, io.EOF
	}
	n, _ := whole.ReadAt(p, off)
	s.read += int64(n)
	s.lowest = min(s.lowest, off)
	if s.after != nil {
		s.after(p[:n], off)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// wantRefusal holds an error against the stage and code that are wanted.
func wantRefusal(t *testing.T, what string, err error, stage fota.Stage, code string) {
	t.Helper()
	var r *fota.Refusal
	if !errors.As(err, &r) {
		t.Errorf("%s: got %v, want a refusal at %s, %s", what, err, stage, code)
	} else if r.Stage != stage || r.Code != code {
		t.Errorf("%s: refused at %s, %s (%v), want %s, %s", what, r.Stage, r.Code, err, stage, code)
	}
}

// wantTrouble wants an error that says nothing about the bundle.
func wantTrouble(t *testing.T, what string, err error) {
	t.Helper()
	var r *fota.Refusal
	if err == nil || errors.As(err, &r) {
		t.Errorf("%s: got %v, want an error that is no refusal", what, err)
	}
}

// wantStage wants a refusal at a stage.
func wantStage(t *testing.T, err error, stage fota.Stage) {
	t.Helper()
	var r *fota.Refusal
	if !errors.As(err, &r) || r.Stage != stage {
		t.Errorf("got %v, want a refusal at %s", err, stage)
	}
}
