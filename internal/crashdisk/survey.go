package crashdisk

import (
	"fmt"
	"testing"
)

// A Survey cuts the power again and again, and holds what is left against what was
// promised. The zero Survey is ready to use.
type Survey struct {
	// One: one fault is enough. For a test that wants to see one.
	One bool

	Cuts   int      // images that were left
	Faults []string // what was found where something else was promised
	seen   map[string]bool
}

// Look cuts the power of d now, in every way there is, and lets check look at each
// image. promise is what check holds the image against, as text: the same image is not
// looked at twice for the same promise. check says what is wrong, "" for nothing.
func (s *Survey) Look(d *Disk, promise string, check func(Image) string) {
	if s.seen == nil {
		s.seen = map[string]bool{}
	}
	d.Cut(func(img Image) {
		s.Cuts++
		if s.One && len(s.Faults) > 0 {
			return
		}
		key := promise + "\n" + img.String()
		if s.seen[key] {
			return
		}
		s.seen[key] = true
		if fault := check(img); fault != "" {
			s.Faults = append(s.Faults, fmt.Sprintf("%s, after a power cut that left\n%s", fault, img))
		}
	})
}

// Report fails the test for the first few faults, and if fewer than least different
// images were looked at: then the disk has lost its imagination.
func (s *Survey) Report(tb testing.TB, least int) {
	tb.Helper()
	for _, fault := range s.Faults[:min(3, len(s.Faults))] {
		tb.Error(fault)
	}
	tb.Logf("%d cuts left %d different disks, %d faults", s.Cuts, len(s.seen), len(s.Faults))
	if len(s.seen) < least {
		tb.Errorf("only %d different disks were looked at, want %d", len(s.seen), least)
	}
}
