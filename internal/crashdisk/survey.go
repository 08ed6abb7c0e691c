package crashdisk

import (
	"fmt"
	"testing"
)

// enough faults are found: the survey ends. A fault may leave a disk on which nothing
// is ever synced, and of those there are more than can be looked at.
const enough = 3

// A Survey cuts the power again and again, and holds what is left against what was
// promised. The zero Survey is ready to use.
type Survey struct {
	Cuts   int      // images that were left
	Faults []string // what was found where something else was promised
	seen   map[string]bool
}

// Done reports whether enough faults were found: nothing more is looked at.
func (s *Survey) Done() bool { return len(s.Faults) >= enough }

// Look cuts the power of d now, in every way there is, and lets check look at each
// image. promise is what check holds the image against, as text: the same image is not
// looked at twice for the same promise. check says what is wrong, "" for nothing.
func (s *Survey) Look(d *Disk, promise string, check func(Image) string) {
	if s.seen == nil {
		s.seen = map[string]bool{}
	}
	if s.Done() {
		return
	}
	for img := range d.Cut() {
		s.Cuts++
		key := promise + "\n" + img.String()
		if s.seen[key] {
			continue
		}
		s.seen[key] = true
		if fault := check(img); fault != "" {
			s.Faults = append(s.Faults, fmt.Sprintf("%s, after a power cut that left\n%s", fault, img))
			if s.Done() {
				return
			}
		}
	}
}

// Report fails the test for each fault, and if fewer than least different images were
// looked at without one: then the disk has lost its imagination.
func (s *Survey) Report(tb testing.TB, least int) {
	tb.Helper()
	for _, fault := range s.Faults {
		tb.Error(fault)
	}
	tb.Logf("%d cuts left %d different disks, %d faults", s.Cuts, len(s.seen), len(s.Faults))
	if len(s.seen) < least && len(s.Faults) == 0 {
		tb.Errorf("only %d different disks were looked at, want %d", len(s.seen), least)
	}
}
