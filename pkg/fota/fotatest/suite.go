package fotatest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"birthmark/pkg/fota"
)

// What is tried, in this order; the factory's release is older than all.
const (
	factory = "1.0.0+sv1"
	first   = "1.1.0+sv1"
	second  = "1.2.0+sv2"
)

// startsLimit is within how many starts a boot loader has to give up a release.
const startsLimit = 10

// wellStarts are more than any boot loader has tries.
const wellStarts = 4

// Run tries all promises, each on a device that open makes, on which 1.0.0+sv1 runs.
func Run(t *testing.T, open func(t *testing.T) Device) {
	for _, promise := range []struct {
		name string
		hold func(suite)
	}{
		{"StatusTellsWhatIs", statusTellsWhatIs},
		{"InstallWritesWhatDoesNotRun", installWritesWhatDoesNotRun},
		{"InstallSurvivesCuts", installSurvivesCuts},
		{"InstallEndsWithItsContext", installEndsWithItsContext},
		{"NothingButAWholeImageIsStaged", nothingElseIsStaged},
		{"WhatDoesNotFitIsRefusedBeforeItIsWritten", whatDoesNotFitIsRefused},
		{"ArmArmsWhatIsStaged", armArmsWhatIsStaged},
		{"ArmRefusesWhatIsNot", armRefusesWhatIsNot},
		{"CancelTakesBack", cancelTakesBack},
		{"BlessKeepsWhatRuns", blessKeepsWhatRuns},
		{"WhatIsNotBlessedIsLeft", whatIsNotBlessedIsLeft},
		{"OneReleaseFollowsTheOther", oneReleaseFollowsTheOther},
	} {
		t.Run(promise.name, func(t *testing.T) { promise.hold(suite{t, open(t)}) })
	}
}

func statusTellsWhatIs(s suite) {
	r := s.Release(first)
	for range 2 {
		st := s.status()
		if st.Compatible != r.Compatible || st.Running.String() != factory || st.Floor != st.Running.Security || st.Other.Mark != "" {
			s.Errorf("from the factory the status is %+v", st)
		}
		if len(st.Slots) != len(r.Images) {
			s.Errorf("there are slots for %v, want one for each of %d images", st.Slots, len(r.Images))
		}
		s.must(st.Policy().Check(r.Manifest))
	}
}

func installWritesWhatDoesNotRun(s suite) {
	before := s.Running()
	for _, version := range []string{first, first, second} { // again, and another one over it
		r := s.mustInstall(version)
		s.startedFrom("installed "+version, before)
		if !s.Holds(r) {
			s.Errorf("installed, and no slots hold %s", version)
		}
		s.other("installed", version, fota.Staged)
		s.runs("installed", factory)
	}
	s.Start()
	s.runs("installed, and started again", factory)
	s.other("installed, and started again", second, fota.Staged)
	s.startedFrom("started again", before)
}

func installSurvivesCuts(s suite) {
	before := s.Running()
	next := s.Release(second)
	size := next.size()
	for _, c := range []struct {
		after int64
		armed bool // before it
	}{{0, false}, {size / 2, false}, {size, false}, {0, true}, {size / 2, true}} {
		when := fmt.Sprintf("cut after %d of %d bytes, armed before: %v", c.after, size, c.armed)
		if c.armed {
			s.mustArm(first)
		}
		if err := s.install(next, next.cut(c.after)); !errors.Is(err, errCut) {
			s.Errorf("%s: got %v, want %v", when, err, errCut)
		}
		s.other(when, "", "")
		s.refuses(when+", then arm", s.Installer().Arm(s.Context(), next.Manifest), fota.StageBoot, "staged")
		s.startedFrom(when, before)
	}
	s.Start()
	s.runs("cut, and started again", factory)
	s.must(s.install(next, next.copy))
	s.other("at last", second, fota.Staged)
}

func installEndsWithItsContext(s suite) {
	before := s.Running()
	r := s.Release(first)
	ctx, cancel := context.WithCancelCause(s.Context())
	err := s.Installer().Install(ctx, r.Manifest, r.copy, func(done, total int64) {
		if done > total/2 {
			cancel(errCut)
		}
	})
	if err == nil {
		s.Error("installed, though its context was over")
	}
	s.notStartable("canceled", r)
	s.startedFrom("canceled", before)
}

// nothingElseIsStaged: a copy may say that all is well, and yet have written more or less.
// What it wrote has the digest of the manifest, or it would say so.
func nothingElseIsStaged(s suite) {
	before := s.Running()
	r := s.Release(first)
	for _, image := range r.Images {
		for name, change := range map[string]func(b []byte) []byte{
			"a byte less": func(b []byte) []byte { return b[:len(b)-1] },
			"a byte more": func(b []byte) []byte { return append(b[:len(b):len(b)], 0) },
			"nothing":     func([]byte) []byte { return nil },
		} {
			when := name + " for " + image.Slot
			err := s.Installer().Install(s.Context(), r.Manifest, func(ctx context.Context, w io.Writer, i fota.Image, progress func(done, total int64)) error {
				b := r.Contents[i.Slot]
				if i.Slot == image.Slot {
					b = change(b)
				}
				return r.copyAs(ctx, w, i, progress, b)
			}, func(done, total int64) {})
			if err == nil {
				s.Errorf("%s: it was installed", when)
			}
			s.notStartable(when, r)
			s.startedFrom(when, before)
		}
	}
}

func whatDoesNotFitIsRefused(s suite) {
	before, st := s.Running(), s.status()
	staged := s.mustInstall(first)
	none := func(context.Context, io.Writer, fota.Image, func(done, total int64)) error {
		s.Error("an image is asked for")
		return errCut
	}
	for name, c := range map[string]struct {
		spoil func(m *fota.Manifest)
		code  string
	}{
		"larger than its slot":        {func(m *fota.Manifest) { m.Images[0].Size = st.Slots[m.Images[0].Slot] + 1 }, "size"},
		"no image":                    {func(m *fota.Manifest) { m.Images = nil }, "images"},
		"an image too few":            {func(m *fota.Manifest) { m.Images = m.Images[1:] }, "images"},
		"two images for a slot":       {func(m *fota.Manifest) { m.Images = append(m.Images, m.Images[0]) }, "images"},
		"an image for no slot":        {func(m *fota.Manifest) { m.Images[0].Slot = "nvram" }, "images"},
		"an image for no slot, added": {func(m *fota.Manifest) { m.Images = append(m.Images, fota.Image{Slot: "nvram", Size: 1}) }, "images"},
	} {
		r := s.Release(second).clone()
		c.spoil(r.Manifest)
		s.refuses(name, s.install(r, none), fota.StageSlot, c.code)
	}
	s.startedFrom("refused", before)
	s.other("refused", first, fota.Staged)
	if !s.Holds(staged) {
		s.Error("what was staged was written to for what was refused")
	}
}

func armArmsWhatIsStaged(s suite) {
	s.bless()
	before := s.Running()
	r := s.mustInstall(first)
	for range 2 {
		s.must(s.Installer().Arm(s.Context(), r.Manifest))
		s.other("armed", first, fota.Armed)
		s.runs("armed", factory)
	}
	s.startedFrom("armed", before)
	s.Start()
	s.runs("armed, and started again", first)
	if !s.status().Trial {
		s.Error("what was armed is not on trial")
	}
	s.other("in the trial", factory, fota.Kept)
}

func armRefusesWhatIsNot(s suite) {
	s.notStartable("nothing installed", s.Release(first))
	r := s.mustInstall(first)
	s.notStartable("another release installed", s.Release(second))
	other := r.clone()
	for i := range other.Images {
		other.Images[i].SHA256[0]++
	}
	s.refuses("other images", s.Installer().Arm(s.Context(), other.Manifest), fota.StageBoot, "staged")
	less := r.clone()
	less.Images = less.Images[:1]
	if err := s.Installer().Arm(s.Context(), less.Manifest); err == nil {
		s.Error("armed by a manifest with less than what is staged")
	}
	s.other("refused to arm", first, fota.Staged)
	s.Spoil()
	s.refuses("spoilt", s.Installer().Arm(s.Context(), r.Manifest), fota.StageBoot, "staged")
	s.Start()
	s.runs("refused, and started again", factory)
}

func cancelTakesBack(s suite) {
	before := s.Running()
	s.cancel() // nothing
	for _, prepare := range []func(string) Release{s.mustInstall, s.mustArm} {
		r := prepare(first)
		for range 2 {
			s.cancel()
			s.notStartable("taken back", r)
			s.other("taken back", "", "")
		}
		s.Start()
		s.runs("taken back, and started again", factory)
		s.startedFrom("taken back", before)
	}
	s.mustArm(first)
}

func blessKeepsWhatRuns(s suite) {
	before := s.Running()
	for range 2 {
		s.bless()
		if s.status().Trial {
			s.Error("blessed, and on trial")
		}
	}
	s.startedFrom("blessed", before)
	s.mustArm(first)
	s.Start()
	s.runs("armed, and started again", first)
	for range wellStarts {
		s.bless()
		if s.status().Trial {
			s.Error("blessed, and on trial")
		}
		s.other("blessed", factory, fota.Kept)
		s.Start()
		s.runs("blessed, and started again", first)
	}
	s.cancel()
	s.other("nothing to take back", factory, fota.Kept)
}

func whatIsNotBlessedIsLeft(s suite) {
	s.bless()
	before := s.Running()
	r := s.mustArm(first)
	for n := 0; ; n++ {
		s.Start()
		st := s.status()
		if st.Running.String() == factory && n > 0 {
			break
		}
		if st.Running != r.Version || !st.Trial || n == startsLimit {
			s.Fatalf("after %d starts of what is not blessed the status is %+v", n+1, st)
		}
	}
	s.startedFrom("fallen back", before)
	s.other("fallen back", first, fota.Failed)
	s.notStartable("fallen back", r)
	s.bless()
	s.Start()
	s.runs("fallen back, blessed, and started again", factory)
	s.must(s.install(r, r.copy)) // whoever asks for it again
	s.must(s.Installer().Arm(s.Context(), r.Manifest))
	s.Start()
	s.runs("armed again", first)
}

func oneReleaseFollowsTheOther(s suite) {
	s.bless()
	running := factory
	for _, version := range []string{first, second, "1.3.0+sv2", "2.0.0+sv3"} {
		before := s.Running()
		r := s.mustInstall(version)
		s.startedFrom("installed "+version, before)
		s.must(s.Installer().Arm(s.Context(), r.Manifest))
		s.Start()
		s.bless()
		s.runs("armed, and started again", version)
		s.other("blessed", running, fota.Kept)
		if st := s.status(); st.Floor != r.Version.Security {
			s.Errorf("%s runs, and the floor is %d", version, st.Floor)
		}
		running = version
	}
}
