package rauc

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/fotatest"
)

// cut lets the power go at the nth change of what the boot loader knows, before or after it:
// that change, and all that would follow it, is not reported to be done.
func (d *testDevice) cut(n int, after bool) {
	d.Helper()
	d.write("loader/cut", fmt.Sprintf("%d %v\n", n, after))
}

// give is a copy of a release that goes well.
func give(r fotatest.Release) fota.CopyImage {
	return func(_ context.Context, w io.Writer, image fota.Image, progress func(done, total int64)) error {
		_, err := w.Write(r.Contents[image.Slot])
		return err
	}
}

func (d *testDevice) install(r fotatest.Release) error {
	return d.Installer().Install(d.Context(), r.Manifest, give(r), func(done, total int64) {})
}

// whole holds that what runs is a release, all of it.
func (d *testDevice) whole(when string, versions ...string) {
	d.Helper()
	_, v, err := fota.Identity(os.DirFS(d.root))
	d.must(err)
	ok := false
	for _, version := range versions {
		ok = ok || v.String() == version
	}
	r := d.Release(v.String())
	for i, path := range d.devices(true) {
		b, err := os.ReadFile(path)
		d.must(err)
		ok = ok && strings.HasPrefix(string(b), string(r.Contents[r.Images[i].Slot]))
	}
	if !ok {
		d.Errorf("%s: %v runs, or a part of it; want one of %v, whole", when, v, versions)
	}
}

// TestPowerCuts: at every change of the boot loader's, the power may go before it or after
// it. What is started then is whole, and doing it again ends what was begun.
func TestPowerCuts(t *testing.T) {
	const old, next, last = "1.0.0+sv1", "1.1.0+sv1", "1.2.0+sv1"
	arm := func(d *testDevice) {
		r := d.Release(next)
		d.must(d.install(r))
		d.must(d.Installer().Arm(t.Context(), r.Manifest))
	}
	for name, c := range map[string]struct {
		prepare func(d *testDevice)
		do      func(d *testDevice) error
		runs    []string // what may
		other   fota.Mark
	}{
		"install": {
			func(d *testDevice) {},
			func(d *testDevice) error { return d.install(d.Release(next)) },
			[]string{old}, fota.Staged,
		},
		"install over what is armed": {
			arm,
			func(d *testDevice) error { return d.install(d.Release(last)) },
			[]string{old, next}, fota.Staged,
		},
		"install over what was good": {
			func(d *testDevice) {
				d.must(d.Installer().Bless(t.Context()))
				arm(d)
				d.Start()
				d.must(d.Installer().Bless(t.Context()))
			},
			func(d *testDevice) error { return d.install(d.Release(last)) },
			[]string{next}, fota.Staged,
		},
		"arm": {
			func(d *testDevice) { d.must(d.install(d.Release(next))) },
			func(d *testDevice) error { return d.Installer().Arm(t.Context(), d.Release(next).Manifest) },
			[]string{old, next}, fota.Armed,
		},
		"cancel": {
			arm,
			func(d *testDevice) error { return d.Installer().Cancel(t.Context()) },
			[]string{old, next}, "",
		},
		"bless": {
			func(d *testDevice) {
				d.must(d.Installer().Bless(t.Context()))
				arm(d)
				d.Start()
			},
			func(d *testDevice) error { return d.Installer().Bless(t.Context()) },
			[]string{next}, fota.Kept,
		},
	} {
		t.Run(name, func(t *testing.T) {
			cuts := 0
			for n := 1; ; n++ {
				done := 0
				for _, after := range []bool{false, true} {
					d := newDevice(t)
					c.prepare(d)
					before := d.read("loader/started")
					d.cut(n, after)
					if c.do(d) == nil {
						done++
						continue
					}
					cuts++
					when := fmt.Sprintf("cut at change %d, after it: %v", n, after)
					d.must(os.Remove(d.path("loader/cut")))
					d.Start()
					d.whole(when, c.runs...)
					if d.read("loader/started") != before {
						continue // it is on trial now
					}
					if err := c.do(d); err != nil {
						t.Errorf("%s: done again: %v", when, err)
					}
					st, err := d.Installer().Status(t.Context())
					if err != nil || st.Other.Mark != c.other {
						t.Errorf("%s: done again, and the other release is %+v, %v; want %q", when, st.Other, err, c.other)
					}
					if left := d.read("loader/B"); c.other == "" && left != "0" {
						t.Errorf("%s: done again, and what was taken back has %s tries", when, left)
					}
				}
				if done == 2 {
					break
				}
			}
			if cuts == 0 {
				t.Error("nothing was cut: the boot loader was told nothing")
			}
		})
	}
}

// What was remembered may be lost, and what the boot loader knows changed by others.
func TestWhatIsRememberedIsNotEverything(t *testing.T) {
	status := func(d *testDevice) fota.Status {
		d.Helper()
		st, err := d.Installer().Status(t.Context())
		d.must(err)
		return st
	}
	const next = "1.1.0+sv1"
	t.Run("damaged", func(t *testing.T) {
		d := newDevice(t)
		d.must(d.Installer().Bless(t.Context()))
		d.must(d.install(d.Release(next)))
		d.write("var/state/state.json", "{")
		if st := status(d); st.Other.Mark != "" || !st.Trial || len(st.Notes) != 1 || !strings.Contains(st.Notes[0], "damaged") {
			t.Errorf("the status is %+v, want a trial, nothing besides, and a note", st)
		}
		if err := d.Installer().Arm(t.Context(), d.Release(next).Manifest); err == nil {
			t.Error("armed, and nobody knows what")
		}
		d.must(d.install(d.Release(next)))
	})
	t.Run("armed by somebody else", func(t *testing.T) {
		d := newDevice(t)
		d.write("loader/B", strconv.Itoa(loadTries)+"\n")
		d.write("loader/order", "B A\n")
		if st := status(d); len(st.Notes) != 1 || !strings.Contains(st.Notes[0], "rootfs.1 starts next") {
			t.Errorf("the status is %+v, want a note", st)
		}
		d.must(d.Installer().Bless(t.Context()))
		d.Start()
		d.whole("blessed", "1.0.0+sv1")
	})
	t.Run("a boot loader that does not obey", func(t *testing.T) {
		d := newDevice(t)
		r := d.Release(next)
		d.must(d.install(r))
		d.change("loader/program", "set-primary)", "set-primary) exit ;;\nset-nothing)")
		if err := d.Installer().Arm(t.Context(), r.Manifest); err == nil {
			t.Error("armed, and the boot loader will not start it")
		}
		if st := status(d); st.Other.Mark != fota.Staged {
			t.Errorf("the other release is %+v, want staged", st.Other)
		}
	})
	t.Run("called bad by somebody else", func(t *testing.T) {
		d := newDevice(t)
		r := d.Release(next)
		d.must(d.Installer().Bless(t.Context()))
		d.must(d.install(r))
		d.must(d.Installer().Arm(t.Context(), r.Manifest))
		d.Start()
		d.must(d.Installer().Bless(t.Context()))
		d.write("loader/A", "0\n")
		if st := status(d); st.Other.Mark != fota.Failed || st.Other.Version.String() != "1.0.0+sv1" {
			t.Errorf("the other release is %+v, want failed", st.Other)
		}
	})
	t.Run("another release than was written", func(t *testing.T) {
		d := newDevice(t)
		d.must(d.Installer().Bless(t.Context()))
		d.write("usr/lib/os-release", "IMAGE_ID=acme-gw\nIMAGE_VERSION=1.5.0+sv1\n")
		if st := status(d); len(st.Notes) != 1 || !strings.Contains(st.Notes[0], "1.5.0+sv1") {
			t.Errorf("the status is %+v, want a note", st)
		}
	})
	t.Run("a slot that cannot be had", func(t *testing.T) {
		d := newDevice(t)
		i := d.installer()
		d.must(os.Remove(d.path("dev/appfs-b")))
		d.must(os.Mkdir(d.path("dev/appfs-b"), 0o700))
		if st := status(d); len(st.Slots) != 0 || len(st.Notes) != 1 || !strings.Contains(st.Notes[0], "appfs-b") {
			t.Errorf("the status is %+v, want no slots, and a note", st)
		}
		if err := d.install(d.Release(next)); err == nil {
			t.Error("installed to a folder")
		}
		d.must(i.Bless(t.Context()))
	})
}

func TestHas(t *testing.T) {
	d := newDevice(t)
	if !Has(d.root) || Has(filepath.Join(d.root, "var")) {
		t.Error("want RAUC to be where its settings are, and nowhere else")
	}
}
