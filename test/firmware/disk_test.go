package firmware

import (
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"birthmark/internal/agent/update"
)

// TestDisks: whatever the disk does while a release is written, the device tries three
// times at most, says what was wrong, and is what it was.
func TestDisks(t *testing.T) {
	const chunk = 1 << 20 // bytes that a slot is written and read back in
	for _, c := range []struct {
		name string
		fault
		says string
		// slot: it was written to, or else it is what it was
		slot bool
	}{
		{"an EFI system partition without room", fault{Room: 1 << 20}, "not enough room on the EFI system partition", false},
		{"none for what starts the release", fault{Call: unix.SYS_WRITE, Fails: syscall.ENOSPC, Arg: 2, Value: 2 << 10, AtLeast: true}, "no space left on device", false},
		{"an EFI system partition that takes no file", fault{Call: unix.SYS_FSYNC, Fails: syscall.EIO, AtLeast: true}, "input/output error", false},
		{"a disk on which the installer can remember nothing", fault{Call: unix.SYS_RENAMEAT, Fails: syscall.EIO, AtLeast: true}, "input/output error", false},
		{"a slot that cannot be written at its beginning", fault{Call: unix.SYS_PWRITE64, Fails: syscall.EIO, Arg: 3, Value: 0}, "input/output error", false},
		{"a slot that cannot be written further on", fault{Call: unix.SYS_PWRITE64, Fails: syscall.EIO, Arg: 3, Value: chunk, AtLeast: true}, "input/output error", true},
		{"a slot without room", fault{Call: unix.SYS_PWRITE64, Fails: syscall.ENOSPC, Arg: 3, Value: chunk, AtLeast: true}, "no space left on device", true},
		{"a slot of which nothing becomes durable", fault{Call: unix.SYS_FDATASYNC, Fails: syscall.EIO, AtLeast: true}, "input/output error", true},
		{"a slot that cannot be read back", fault{Call: unix.SYS_PREAD64, Fails: syscall.EIO, Arg: 2, Value: chunk}, "input/output error", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDevice(t).serveWith(c.fault)
			slot := d.slot()
			path := d.file(d.bundles[next])
			d.inBubble(func(a *agent) {
				a.wantFailed(a.update(path), reason{says: c.says})
				if s := a.load(); s.Tries != 3 {
					t.Errorf("it was tried %d times, want 3: %s", s.Tries, a.why())
				}
				t.Log(a.why())
				if wrote := d.slot() != slot; wrote != c.slot {
					t.Errorf("the slot was written to: %v, want %v", wrote, c.slot)
				}
			})
			d.stop()
			d.serve()
			d.inBubble(func(a *agent) { a.wantTaken(path) })
		})
	}
}

// TestAMediumThatCannotBeRead: so does a stick that gives the agent only half of a bundle.
func TestAMediumThatCannotBeRead(t *testing.T) {
	d := newDevice(t).serve()
	d.inBubble(func(a *agent) {
		path := d.file(d.bundles[next])
		a.opened = func(n int, r *update.Release) {
			r.Source = &watched{Source: r.Source, fails: func(off int64) error {
				if off > 0 && off < r.Source.Size()/2 {
					return syscall.EIO
				}
				return nil
			}}
		}
		a.wantFailed(a.update(path), reason{says: "given up after 3 tries; the last: the installer did not do its work: input/output error"})
		a.wantTaken(path)
	})
}
