// Package fotatest is what every [fota.Installer] promises, as tests. An implementation
// shows a device of its kind, with its boot loader, and lets [Run] do with it what happens
// to devices.
package fotatest

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"testing"

	"birthmark/pkg/fota"
)

// A Device is one on which a release runs that came from the factory. What is not the
// installer's business happens to it here.
type Device interface {
	// Installer is what a new process would open.
	Installer() fota.Installer
	// Start starts the device again: its boot loader counts a try, if it does, and what it
	// chooses runs.
	Start()
	// Release makes a release for the device, with an image for each of its slots.
	Release(version string) Release
	// Running is all of what the release that runs is started from.
	Running() []byte
	// Holds reports whether the slots that do not run hold a release, all of it.
	Holds(r Release) bool
	// Spoil changes a byte of what is staged.
	Spoil()
}

// A Release is what is in a bundle.
type Release struct {
	*fota.Manifest
	Contents map[string][]byte // of its images, by class
}

// Image adds an image to a release.
func (r Release) Image(class string, b []byte) {
	r.Contents[class] = b
	r.Images = append(r.Images, fota.Image{Slot: class, File: class + ".img", Size: int64(len(b)), SHA256: sha256.Sum256(b)})
}

// NewRelease makes a release without images.
func NewRelease(t testing.TB, compatible, version string) Release {
	v, err := fota.ParseVersion(version)
	if err != nil {
		t.Fatal(err)
	}
	return Release{&fota.Manifest{Compatible: compatible, Version: v, Format: fota.FormatVerity}, map[string][]byte{}}
}

// clone shares nothing that a test changes.
func (r Release) clone() Release {
	m := *r.Manifest
	m.Images = append([]fota.Image(nil), m.Images...)
	return Release{&m, r.Contents}
}

func (r Release) size() (n int64) {
	for _, image := range r.Images {
		n += image.Size
	}
	return n
}

// chunk is how many bytes an image is written in.
const chunk = 1000

// copy is a [fota.CopyImage] as a bundle has one.
func (r Release) copy(ctx context.Context, w io.Writer, image fota.Image, progress func(done, total int64)) error {
	return r.copyAs(ctx, w, image, progress, r.Contents[image.Slot])
}

func (r Release) copyAs(ctx context.Context, w io.Writer, image fota.Image, progress func(done, total int64), b []byte) error {
	for done := 0; done < len(b); {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := w.Write(b[done:min(done+chunk, len(b))])
		if err != nil {
			return err
		}
		done += n
		progress(int64(done), image.Size)
	}
	return nil
}

// errCut is why a copy ends before its end.
var errCut = errors.New("the bundle is gone")

// cut is a copy that ends after so many bytes of a release.
func (r Release) cut(after int64) fota.CopyImage {
	return func(ctx context.Context, w io.Writer, image fota.Image, progress func(done, total int64)) error {
		b := r.Contents[image.Slot]
		if after >= int64(len(b)) {
			after -= int64(len(b))
			if err := r.copy(ctx, w, image, progress); err != nil || after > 0 {
				return err
			}
			return errCut // after the last byte
		}
		if err := r.copyAs(ctx, w, image, progress, b[:after]); err != nil {
			return err
		}
		return errCut
	}
}

// A suite is one test on one device.
type suite struct {
	*testing.T
	Device
}

func (s suite) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s suite) status() fota.Status {
	s.Helper()
	st, err := s.Installer().Status(s.Context())
	s.must(err)
	return st
}

// install installs a release, and holds that progress is made, and no more than there is.
func (s suite) install(r Release, copyImage fota.CopyImage) error {
	s.Helper()
	last := int64(0)
	err := s.Installer().Install(s.Context(), r.Manifest, copyImage, func(done, total int64) {
		if done < last || done > total || total != r.size() {
			s.Errorf("%d of %d bytes are done, after %d of %d", done, total, last, r.size())
		}
		last = done
	})
	if err == nil && last != r.size() {
		s.Errorf("installed, and %d of %d bytes are done", last, r.size())
	}
	return err
}

func (s suite) mustInstall(version string) Release {
	s.Helper()
	r := s.Release(version)
	s.must(s.install(r, r.copy))
	return r
}

func (s suite) mustArm(version string) Release {
	s.Helper()
	r := s.mustInstall(version)
	s.must(s.Installer().Arm(s.Context(), r.Manifest))
	return r
}

func (s suite) bless() {
	s.Helper()
	s.must(s.Installer().Bless(s.Context()))
}

func (s suite) cancel() {
	s.Helper()
	s.must(s.Installer().Cancel(s.Context()))
}

// runs holds which release runs.
func (s suite) runs(when, version string) {
	s.Helper()
	if got := s.status().Running.String(); got != version {
		s.Errorf("%s: %s runs, want %s", when, got, version)
	}
}

// other holds what will become of a release that does not run; "" is nothing.
func (s suite) other(when string, version string, mark fota.Mark) {
	s.Helper()
	got := s.status().Other
	if got.Mark != mark || mark != "" && got.Version.String() != version {
		s.Errorf("%s: the other release is %v, %q, want %s, %q", when, got.Version, got.Mark, version, mark)
	}
}

// notStartable holds that r neither is nor can be armed.
func (s suite) notStartable(when string, r Release) {
	s.Helper()
	if got := s.status().Other; got.Version == r.Version && (got.Mark == fota.Staged || got.Mark == fota.Armed) {
		s.Errorf("%s: %v is %s", when, got.Version, got.Mark)
	}
	s.refuses(when+", then arm", s.Installer().Arm(s.Context(), r.Manifest), fota.StageBoot, "staged")
}

// refuses holds that err is a refusal.
func (s suite) refuses(when string, err error, stage fota.Stage, code string) {
	s.Helper()
	var r *fota.Refusal
	if !errors.As(err, &r) || r.Stage != stage || r.Code != code {
		s.Errorf("%s: got %v, want a refusal at %s with the code %s", when, err, stage, code)
	}
}

// startedFrom holds that what runs is what it was.
func (s suite) startedFrom(when string, before []byte) {
	s.Helper()
	if string(s.Running()) != string(before) {
		s.Errorf("%s: what runs was written to", when)
	}
}
