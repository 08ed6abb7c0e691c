// Package sign is a maker's release desk: it has `rauc bundle` make a firmware bundle,
// and lets none out that a device would refuse.
//
//	by, err := sign.Lab(dir)
//	record, err := sign.Firmware(ctx, release, by, "acme-gw-1.1.0.raucb", tell)
//
// # What is in a bundle
//
// A release is images, each for a class of slots ([fota.Image]): "rootfs" and whatever
// else the device has two of. What starts it, a unified kernel image (UKI), travels in
// the same bundle, under the same signature, as the image for the class "uki"
// ([fota.UKISlot]). It is not written to a partition as it is: a device puts it on its EFI
// system partition, under a name that is the device's business, for the boot loader
// counts tries in it.
//
// So a UKI is signed twice: for Secure Boot, by whoever owns that key, before it comes
// here, and with the release, here. The first says what the firmware may start, the
// second which root file system belongs to it; a dm-verity root hash in its command
// line, which is in the [Record], joins the two. A UKI is taken only if it is signed,
// names the version of the release in its os-release, by which the boot loader chooses,
// and says in its command line which init to start. By which key it was signed is a
// matter between it and each device's firmware.
//
// Bundles are of the format verity. Their payload depends on nothing but the release and
// SOURCE_DATE_EPOCH, if it is set; the salt of the hash tree, the time in the signature
// and an ECDSA signature are different each time, so two bundles of one release are
// never the same file.
//
// # Who signs
//
// A [Signer] is files: what `rauc bundle` signs with, and what a device is given to
// know it by. [Lab] makes those of the CA in a lab's folder:
//
//	firmware/anchors.pem      the root: where every chain ends
//	firmware/signing-cas.pem  the issuing CA, which devices pin
//	firmware/crls.pem         what both of them say is revoked; good for a year, made
//	                          anew when half of that is over
//	firmware/signer.pem       certificate, issuing CA and key of the signer
//	firmware/…                the CA, see package ca
//
// The signer's certificate is for code signing and nothing else. Without
// check-purpose=codesign RAUC takes none of these bundles, since by default it asks
// for a certificate for e-mail; for that reason `rauc bundle` is given no keyring
// either. What was made is held against the same code that a device verifies with.
//
// # What is promised
//
// The file is replaced only by a bundle that is whole, on disk, signed by a signer that
// a device with these anchors, CAs and CRLs lets sign, and in which the device finds
// exactly what was ordered. Then its record, see [Record], is written beside it. If the
// power fails between the two, the record is the one of the bundle before, and says so
// by its digest. Who is killed leaves a folder .birthmark-sign-… beside the bundle.
package sign

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"birthmark/pkg/cms"
	"birthmark/pkg/fota"
	"birthmark/pkg/fota/bundle"
	"birthmark/pkg/store"
)

// A Release is what a maker ships.
type Release struct {
	Compatible  string // the devices that it is for
	Version     fota.Version
	Description string // for people; may be empty
	Build       string // may be empty
	Images      []Image
	Compression Compression
	Time        time.Time // of everything in it, and when the record says that it was built
}

// An Image is a file, and the class of slots that it is for. In the bundle it has the
// same name, but no folder.
type Image struct {
	Slot, Path string
}

// A ReleaseError: the release cannot be meant like that. Nothing was made.
type ReleaseError struct{ Reason string }

func (e *ReleaseError) Error() string { return e.Reason }

// slotName is what RAUC and devices both take for a class of slots.
var slotName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,32}$`)

// check finds early what `rauc bundle` or a device would find late, after all images
// were compressed. What it overlooks they will find.
func (r Release) check() error {
	bad := func(format string, args ...any) error { return &ReleaseError{fmt.Sprintf(format, args...)} }
	switch {
	case r.Compatible == "":
		return bad("the release is compatible with nothing: name the devices that it is for")
	case r.Version == fota.Version{}:
		return bad("%v is no release", r.Version)
	case len(r.Images) == 0:
		return bad("the release has no image")
	case r.Compression.arguments() == "":
		return bad("compression %q: choose zstd, gzip or xz", r.Compression)
	}
	for _, text := range []struct{ name, value string }{
		{"compatible", r.Compatible}, {"build", r.Build}, {"description", r.Description},
	} {
		control := strings.IndexFunc(text.value, unicode.IsControl) >= 0 && text.name != "description"
		if control || !utf8.ValidString(text.value) || strings.TrimSpace(text.value) != text.value {
			return bad("%s is %q: want text without spaces around it, and without control characters", text.name, text.value)
		}
	}
	slots, files := map[string]bool{}, map[string]bool{}
	for _, i := range r.Images {
		switch file := filepath.Base(i.Path); {
		case !slotName.MatchString(i.Slot):
			return bad("image %s is for slot %q: want 1 to 32 of A-Z, a-z, 0-9, _ and -", i.Path, i.Slot)
		case slots[i.Slot]:
			return bad("two images are for slot %s", i.Slot)
		case file == manifestName || files[file]:
			return bad("image %s cannot be named %s in the bundle, which something else is: rename one", i.Path, file)
		}
		slots[i.Slot], files[filepath.Base(i.Path)] = true, true
	}
	return nil
}

// Firmware makes the bundle out of a release, replaces what was there, and writes its
// record beside it. Tell is told what is done, for a person who waits. The cause of the
// error may be a *[ReleaseError], a *[MissingError], or a *[fota.Refusal]: a device
// would refuse the bundle.
func Firmware(ctx context.Context, r Release, by Signer, out string, tell func(string)) (*Record, error) {
	record, err := firmware(ctx, r, by, out, tell)
	if err != nil {
		return nil, fmt.Errorf("cannot make %s: %w", out, err)
	}
	return record, nil
}

func firmware(ctx context.Context, r Release, by Signer, out string, tell func(string)) (_ *Record, err error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	if info, err := os.Stat(out); err == nil && !info.Mode().IsRegular() {
		return nil, &ReleaseError{fmt.Sprintf("%s is there, and is no file", out)}
	}
	trust, err := by.trust()
	if err != nil {
		return nil, err
	}
	if err := installed(); err != nil {
		return nil, err
	}
	// Beside the bundle, since it is renamed in the end, and images are as large as it.
	dir, err := os.MkdirTemp(filepath.Dir(out), ".birthmark-sign-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	want, err := lay(ctx, r, filepath.Join(dir, "in"), tell)
	if err != nil {
		return nil, err
	}
	uki, err := r.uki(filepath.Join(dir, "in"))
	if err != nil {
		return nil, err
	}
	draft := filepath.Join(dir, "bundle")
	tell(fmt.Sprintf("rauc packs and signs with %s, which takes a minute for every 512 MiB or so", r.Compression))
	if err := pack(ctx, r, by, filepath.Join(dir, "in"), draft); err != nil {
		return nil, err
	}
	tell("verifying it as a device does")
	record, err := r.judge(ctx, draft, want, trust)
	if err != nil {
		return nil, err
	}
	record.Bundle.File, record.UKI = filepath.Base(out), uki
	if err := os.Rename(draft, out); err != nil {
		return nil, err
	}
	if err := store.SyncFolder(filepath.Dir(out)); err != nil {
		return nil, err
	}
	return record, record.write(out + ".json")
}

// judge reads the bundle at path as a device does, which has to find what is wanted, and
// makes it durable.
func (r Release) judge(ctx context.Context, path string, want fota.Manifest, trust *cms.Trust) (*Record, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b, err := bundle.Open(f, info.Size(), trust)
	if err == nil {
		err = b.Verify(ctx, nil)
	}
	if err != nil {
		return nil, refused(err)
	}
	got := *b.Manifest
	got.Verity = fota.Verity{}
	if !reflect.DeepEqual(got, want) {
		return nil, fmt.Errorf("a device would find another release in the bundle than was ordered: %+v, not %+v", got, want)
	}
	record, err := r.record(f, b)
	if err != nil {
		return nil, err
	}
	return record, f.Sync()
}

// refused says who refuses what.
func refused(err error) error {
	var no *fota.Refusal
	if errors.As(err, &no) {
		return fmt.Errorf("a device would refuse the bundle: %w", err)
	}
	return err
}
