package firmware

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"birthmark/internal/agent/update"
	"birthmark/internal/installer"
	"birthmark/pkg/fota"
	"birthmark/pkg/fota/source"
)

// When somebody changes a bundle.
const (
	ordered  = "after the order was taken"     // and before it is opened to be written
	believed = "after the agent believed it"   // and before the installer reads it
	read     = "while the installer copies it" // with the first image on the disk
)

// TestAFileThatIsChanged: whoever may write to the folder, or to the file itself, while it
// is verified and installed, gets nothing armed that was not signed and ordered.
func TestAFileThatIsChanged(t *testing.T) {
	m, err := theMaker()
	if err != nil {
		t.Fatal(err)
	}
	rename := func(b []byte) func(string) error {
		return func(path string) error {
			if err := os.WriteFile(path+".new", b, 0o600); err != nil {
				return err
			}
			return os.Rename(path+".new", path)
		}
	}
	write := func(at func(size int64) int64, b []byte) func(string) error {
		return func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			info, err := f.Stat()
			if err != nil {
				return err
			}
			_, err = f.WriteAt(b, at(info.Size()))
			return err
		}
	}
	// A bundle is found by its end.
	over := func(b []byte) func(string) error {
		return func(path string) error {
			size := len(m.bundles[next])
			return write(func(int64) int64 { return int64(max(0, size-len(b))) }, b[max(0, len(b)-size):])(path)
		}
	}
	middle := func(size int64) int64 { return size / 2 }
	for _, c := range []struct {
		name   string
		when   string
		change func(path string) error
		want   reason
		// takes: the device installs what it has opened, which is what was ordered
		takes bool
	}{
		{"replaced by somebody else's", ordered, rename(m.foreign), reason{"chain", "issuer", ""}, false},
		{"replaced by somebody else's", believed, rename(m.foreign), reason{}, true},
		{"replaced by somebody else's", read, rename(m.foreign), reason{}, true},
		{"replaced by the maker's next one", ordered, rename(m.bundles[later]), reason{says: later + ", and " + next + " was ordered"}, false},
		{"replaced by the maker's next one", believed, rename(m.bundles[later]), reason{}, true},
		{"replaced by half of it", ordered, rename(m.bundles[next][:1<<20]), reason{"container", "trailer", ""}, false},
		{"replaced by a link", ordered, func(path string) error {
			if err := os.Rename(path, path+".real"); err != nil {
				return err
			}
			return os.Symlink(path+".real", path)
		}, reason{says: "symbolic link"}, false},
		{"removed", ordered, os.Remove, reason{says: "no such file"}, false},
		{"removed", believed, os.Remove, reason{}, true},
		{"written to as somebody else's", believed, over(m.foreign), reason{stage: "chain", code: "issuer"}, false},
		{"written to as the maker's next one", believed, over(m.bundles[later]), reason{says: later + ", and " + next + " was ordered"}, false},
		{"written to in the images", believed, write(middle, []byte("evil")), reason{"payload", "block", ""}, false},
		{"written to in the images", read, write(middle, []byte("evil")), reason{"payload", "block", ""}, false},
		{"written to at the end", believed, write(func(size int64) int64 { return size - 30 }, []byte("evil")), reason{"cms", "signature", ""}, false},
		{"truncated", believed, func(path string) error { return os.Truncate(path, 0) }, reason{says: "not the one that was opened"}, false},
		{"truncated", read, func(path string) error { return os.Truncate(path, 1<<20) }, reason{says: "not the one that was opened"}, false},
	} {
		t.Run(c.name+", "+c.when, func(t *testing.T) {
			d := newDevice(t).serve()
			d.inBubble(func(a *agent) {
				path := d.file(m.bundles[next])
				changed := false
				change := func() {
					if !changed {
						changed = true
						d.must(c.change(path))
					}
				}
				a.opened = func(n int, r *update.Release) {
					switch {
					case c.when == ordered && n == 1, c.when == believed && n == 2:
						change()
					case c.when == read && n == 2:
						r.Source = &watched{Source: r.Source, fails: func(int64) error {
							if draft, _ := filepath.Glob(d.path(entries + "/.*")); len(draft) > 0 {
								change()
							}
							return nil
						}}
					}
				}
				err := a.update(path)
				if !changed {
					t.Error("nothing was changed")
				}
				if c.takes {
					if d.wantArmed(next); err != nil {
						t.Error(err)
					}
					return
				}
				a.wantFailed(err, c.want)
				a.wantTaken(d.file(m.bundles[next]))
			})
		})
	}
}

// A watched source asks before every read, which may fail, and may bend what was read.
type watched struct {
	source.Source
	fails func(off int64) error
	bend  func(p []byte)
}

func (w *watched) ReadAt(p []byte, off int64) (int, error) {
	if w.fails != nil {
		if err := w.fails(off); err != nil {
			return 0, err
		}
	}
	n, err := w.Source.ReadAt(p, off)
	if w.bend != nil {
		w.bend(p[:n])
	}
	return n, err
}

// TestOtherBytesAtAnyReading bends what the installer is given at his nth reading, for
// every n.
func TestOtherBytesAtAnyReading(t *testing.T) {
	d := newDevice(t).serve()
	d.inBubble(func(a *agent) {
		path := d.file(d.bundles[next])
		refused := 0
		for lie := 1; ; lie++ {
			a.opens = 0
			readings := 0
			a.opened = func(n int, r *update.Release) {
				if n == 2 {
					r.Source = &watched{Source: r.Source, bend: func(p []byte) {
						if readings++; readings == lie {
							p[len(p)-1] ^= 0x40
						}
					}}
				}
			}
			if err := a.update(path); err != nil {
				t.Fatalf("a lie at reading %d: %v", lie, err)
			}
			if a.load().Phase == update.Armed {
				d.wantArmed(next)
				if readings >= lie {
					t.Fatalf("a lie at reading %d of %d: it was armed", lie, readings)
				}
				break
			}
			refused++
			a.wantRefused(nil, "container cms chain payload", "")
		}
		if refused < 5 {
			t.Errorf("there were %d readings to lie at", refused)
		}
	})
}

// A liar reads out one bundle, and from the nth reading on another of the same length.
type liar struct {
	first, then []byte
	from, n     int
}

func (l *liar) ReadAt(p []byte, off int64) (int, error) {
	b := l.first
	if l.n++; l.n >= l.from {
		b = l.then
	}
	return bytes.NewReader(b).ReadAt(p, off)
}

// TestAnAgentThatLies speaks to the installer in the agent's place. Whatever it says and
// gives, nothing is armed but what was signed and is on the disk.
func TestAnAgentThatLies(t *testing.T) {
	m, err := theMaker()
	if err != nil {
		t.Fatal(err)
	}
	one, other := m.bundles[next], m.bundles[later]
	bent := bytes.Clone(m.bundles[next])
	bent[len(bent)/2] ^= 1
	d := newDevice(t).serve()
	c := installer.Client{Path: d.socket}
	install := func(r io.ReaderAt, size int) error {
		_, err := c.Install(t.Context(), r, int64(size), nil)
		return err
	}
	whole := func(b []byte) error { return install(bytes.NewReader(b), len(b)) }
	wantStaged := func(what string, err error) {
		t.Helper()
		wantRefusal(t, what, err, fota.StageBoot, "staged")
	}

	wantStaged("arm before anything was installed", c.Arm(t.Context(), version(next)))
	wantRefusal(t, "somebody else's bundle", whole(m.foreign), fota.StageChain, "issuer")
	wantStaged("arm somebody else's bundle", c.Arm(t.Context(), version(next)))
	d.wantUntouched()

	wantRefusal(t, "a bundle that is bent", whole(bent), fota.StagePayload, "block")
	wantStaged("arm a bundle that is bent", c.Arm(t.Context(), version(next)))
	d.wantUntouched()

	d.must(whole(m.bundles[next]))
	wantStaged("arm another release than was installed", c.Arm(t.Context(), version(later)))
	wantRefusal(t, "a bent bundle over a good one", whole(bent), fota.StagePayload, "block")
	wantStaged("arm the good one", c.Arm(t.Context(), version(next)))
	d.wantUntouched()

	d.must(whole(m.bundles[next]))
	d.put(labels+"/root-b", append(rootOf(later), make([]byte, slotSize-rootSize-blockSize)...))
	d.put(entries+"/."+product+"_"+next+".new", programOf(next))
	wantStaged("arm what was replaced on the disk", c.Arm(t.Context(), version(next)))
	d.must(c.Cancel(t.Context()))
	d.wantUntouched()

	// A file, through whose other descriptor somebody writes all the time.
	f, err := os.OpenFile(d.file(m.bundles[next]), os.O_RDWR, 0)
	d.must(err)
	defer f.Close()
	for range 5 {
		over := make(chan struct{})
		var writing sync.WaitGroup
		writing.Go(func() {
			for n := len(bent) / 2; ; {
				select {
				case <-over:
					return
				default:
					d.write(f, bent[n:n+1], n)
					d.write(f, m.bundles[next][n:n+1], n)
				}
			}
		})
		_, err := c.InstallFile(t.Context(), f, nil)
		close(over)
		writing.Wait()
		if err == nil {
			d.must(c.Arm(t.Context(), version(next)))
			d.wantArmed(next)
			d.must(c.Cancel(t.Context()))
		} else {
			wantRefusal(t, "a file that somebody writes to", err, fota.StagePayload, "block")
			wantStaged("arm it", c.Arm(t.Context(), version(next)))
		}
		d.wantUntouched()
	}

	// Half of one release, and half of the other, both signed by the maker.
	taken := 0
	for n := 1; ; n++ {
		l := &liar{first: one, then: other, from: n}
		err := install(l, len(one))
		if err == nil {
			// All of it was one release: the other from the first reading on, or the first.
			taken++
			d.must(c.Cancel(t.Context()))
		} else {
			wantStaged(fmt.Sprintf("arm what was another from reading %d on", n), c.Arm(t.Context(), version(next)))
			wantStaged(fmt.Sprintf("arm what was another from reading %d on", n), c.Arm(t.Context(), version(later)))
		}
		d.wantUntouched()
		if l.n < n || t.Failed() {
			break
		}
	}
	if taken > 3 {
		t.Errorf("%d of the mixtures were taken, want the two that are none", taken)
	}
}

func (d *device) write(f *os.File, b []byte, at int) {
	if _, err := f.WriteAt(b, int64(at)); err != nil {
		d.Error(err)
	}
}

func wantRefusal(t *testing.T, what string, err error, stage fota.Stage, code string) {
	t.Helper()
	var no *fota.Refusal
	if !asRefusal(err, &no) || no.Stage != stage || no.Code != code {
		t.Errorf("%s: got %v, want a refusal at %s, %s", what, err, stage, code)
	}
}
