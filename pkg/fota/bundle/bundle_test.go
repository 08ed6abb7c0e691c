package bundle

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"birthmark/pkg/cms"
	"birthmark/pkg/fota"
	bt "birthmark/pkg/fota/bundle/bundletest"
)

// maker returns a device, and a release of both formats that it takes.
func maker(t *testing.T) (d *device, r bt.Release, by *bt.Signer) {
	t.Helper()
	pki := bt.NewPKI(t, "P-256", "P-256")
	d = deviceOf(t, pki)
	d.policy.AllowPlain = true
	r = bt.NewRelease("acme-gw", "1.1.0+sv2")
	r.Files["rootfs.img"] = bt.Noise(1<<20, "rootfs") // more than is kept of it
	return d, r, pki.Signer
}

func formats(t *testing.T, each func(t *testing.T, d *device, r bt.Release, parts bt.Parts)) {
	d, r, by := maker(t)
	for _, r.Format = range []string{"verity", "plain"} {
		t.Run(r.Format, func(t *testing.T) { each(t, d, r, r.Parts(t, by)) })
	}
}

func (d *device) open(r io.ReaderAt, size int64) (*Bundle, error) {
	return OpenPlain(context.Background(), r, size, &d.trust, nil)
}

// image returns the image for a slot.
func (b *Bundle) image(t *testing.T, slot string) fota.Image {
	t.Helper()
	for _, image := range b.Manifest.Images {
		if image.Slot == slot {
			return image
		}
	}
	t.Fatalf("no image for %s", slot)
	return fota.Image{}
}

// TestNothingBehindAWrongSignature: of a bundle that is not signed by the maker nothing
// is read but length and signature.
func TestNothingBehindAWrongSignature(t *testing.T) {
	formats(t, func(t *testing.T, d *device, r bt.Release, parts bt.Parts) {
		parts.Signature[len(parts.Signature)-1] ^= 1
		b := parts.Bytes()
		s := newSource(b)
		_, err := d.open(s, int64(len(b)))
		wantStage(t, err, fota.StageCMS)
		if want := int64(len(parts.Signature)) + trailerSize; s.read != want {
			t.Errorf("read %d bytes, want the %d of signature and length", s.read, want)
		}
	})
}

// TestEveryBitOfTheSignature: nothing in the message may be another, where everything
// in it is needed.
func TestEveryBitOfTheSignature(t *testing.T) {
	d, r, by := maker(t)
	alone := *by
	alone.Above = nil // the issuer is pinned, so the message need not bring it
	parts := r.Parts(t, &alone)
	whole := parts.Bytes()
	if _, err := d.open(bytes.NewReader(whole), int64(len(whole))); err != nil {
		t.Fatal(err)
	}
	first := len(whole) - trailerSize - len(parts.Signature)
	for at := first; at < len(whole); at++ {
		whole[at] ^= 1 << (at % 8)
		_, err := d.open(bytes.NewReader(whole), int64(len(whole)))
		var no *fota.Refusal
		if !errors.As(err, &no) {
			t.Errorf("byte %d of %d changed: got %v, want a refusal", at-first, len(whole)-first, err)
		} else if no.Stage != fota.StageContainer && no.Stage != fota.StageCMS && no.Stage != fota.StageChain {
			t.Errorf("byte %d of %d changed: refused at %s (%v), want no later than %s", at-first, len(whole)-first, no.Stage, err, fota.StageChain)
		}
		whole[at] ^= 1 << (at % 8)
	}
}

// TestOtherGoodSignatures: what other tools than rauc may make of a good bundle.
func TestOtherGoodSignatures(t *testing.T) {
	for name, change := range map[string]func(*bt.Message){
		"SHA-384": func(m *bt.Message) { m.Hash = crypto.SHA384 },
		"SHA-512": func(m *bt.Message) { m.Hash = crypto.SHA512 },
		"PSS":     func(m *bt.Message) { m.PSS = true },
		"without the issuer's certificate": func(m *bt.Message) {
			m.Certificates = [][]byte{m.By.Cert.Raw}
		},
		"with an attribute that nobody asked for": func(m *bt.Message) {
			m.Attributes = func(own [][]byte) [][]byte {
				now := bt.TLV(0x17, []byte("260101000000Z"))
				return [][]byte{own[0], bt.Attribute(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 5}, now), own[1]}
			}
		},
	} {
		for _, format := range []string{"verity", "plain"} {
			pki := bt.NewPKI(t, "P-256", "RSA-3072")
			d, r := deviceOf(t, pki), bt.NewRelease("acme-gw", "1.1.0+sv2")
			r.Format, d.policy.AllowPlain = format, true
			m := bt.Message{By: pki.Signer}
			change(&m)
			whole := r.With(t, m).Bytes()
			if _, err := d.judge(bytes.NewReader(whole), int64(len(whole))); err != nil {
				t.Errorf("%s, %s: %v", name, format, err)
			}
		}
	}
}

func TestNobodyIsTrustedByDefault(t *testing.T) {
	_, r, by := maker(t)
	b := r.Parts(t, by).Bytes()
	for _, trust := range []*cms.Trust{nil, {}} {
		_, err := Open(bytes.NewReader(b), int64(len(b)), trust)
		wantRefusal(t, "no trust", err, fota.StageChain, "anchors")
	}
}

func TestPlainHasToBeAllowed(t *testing.T) {
	d, r, by := maker(t)
	r.Format = "plain"
	b := r.Parts(t, by).Bytes()
	s := newSource(b)
	_, err := Open(s, int64(len(b)), &d.trust)
	wantRefusal(t, "plain", err, fota.StagePolicy, "plain")
	if s.lowest < int64(len(b))-signatureLimit {
		t.Errorf("read from %d on, want nothing of the payload", s.lowest)
	}
}

// TestLongPlain: CVE-2026-34155. The signature of a plain bundle of more than 2 GiB is
// one over its beginning.
func TestLongPlain(t *testing.T) {
	d, r, by := maker(t)
	r.Format = "plain"
	parts := r.Parts(t, by)
	end := bt.Parts{Signature: parts.Signature}.Bytes()
	for _, size := range []int64{plainLimit + 1, 1<<32 + int64(len(parts.Data))} {
		s := &sparse{head: parts.Data, tail: end, size: size + int64(len(end))}
		_, err := d.open(s, s.size)
		wantRefusal(t, fmt.Sprintf("a payload of %d bytes", size), err, fota.StageContainer, "plain")
	}
}

// A sparse source has a beginning, an end, and zeros between.
type sparse struct {
	head, tail []byte
	size       int64
}

func (s *sparse) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), s.size-off))
	clear(p[:n])
	if off < int64(len(s.head)) {
		copy(p[:n], s.head[off:])
	}
	if from := s.size - int64(len(s.tail)) - off; from < int64(n) {
		if from >= 0 {
			copy(p[from:n], s.tail)
		} else {
			copy(p[:n], s.tail[-from:])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

type failing struct {
	after int
	short bool
}

var errFull = errors.New("no space left on device")

func (f *failing) Write(p []byte) (int, error) {
	if f.after -= len(p); f.after >= 0 {
		return len(p), nil
	}
	if f.short {
		return len(p) - 1, nil
	}
	return 0, errFull
}

func TestWriterTrouble(t *testing.T) {
	formats(t, func(t *testing.T, d *device, r bt.Release, parts bt.Parts) {
		whole := parts.Bytes()
		b, err := d.open(bytes.NewReader(whole), int64(len(whole)))
		if err != nil {
			t.Fatal(err)
		}
		image := b.image(t, "rootfs")
		for _, after := range []int{0, 200 << 10, int(image.Size) - 1} {
			err := b.CopyImage(context.Background(), &failing{after: after}, image, nil)
			wantTrouble(t, "a full slot", err)
			if !errors.Is(err, errFull) {
				t.Errorf("got %v, want %v", err, errFull)
			}
			err = b.CopyImage(context.Background(), &failing{after: after, short: true}, image, nil)
			wantTrouble(t, "a slot that takes less", err)
			if !errors.Is(err, io.ErrShortWrite) {
				t.Errorf("got %v, want a short write", err)
			}
		}
		if err := b.CopyImage(context.Background(), &failing{after: int(image.Size)}, image, nil); err != nil {
			t.Errorf("a slot that is exactly filled: %v", err)
		}
		image.SHA256[0] ^= 1
		wantTrouble(t, "an image of nobody", b.CopyImage(context.Background(), io.Discard, image, nil))
	})
}

func TestCanceled(t *testing.T) {
	formats(t, func(t *testing.T, d *device, r bt.Release, parts bt.Parts) {
		whole := parts.Bytes()
		for _, work := range []struct {
			name string
			do   func(ctx context.Context, progress func(done, total int64)) error
		}{
			{"open", func(ctx context.Context, progress func(done, total int64)) error {
				if r.Format == "verity" {
					progress(1, 1) // reads nothing that takes long
					return ctx.Err()
				}
				_, err := OpenPlain(ctx, bytes.NewReader(whole), int64(len(whole)), &d.trust, progress)
				return err
			}},
			{"verify", func(ctx context.Context, progress func(done, total int64)) error {
				b, err := d.open(bytes.NewReader(whole), int64(len(whole)))
				if err != nil {
					return err
				}
				return b.Verify(ctx, progress)
			}},
			{"copy", func(ctx context.Context, progress func(done, total int64)) error {
				b, err := d.open(bytes.NewReader(whole), int64(len(whole)))
				if err != nil {
					return err
				}
				return b.CopyImage(ctx, io.Discard, b.image(t, "rootfs"), progress)
			}},
		} {
			ctx, cancel := context.WithCancel(context.Background())
			err := work.do(ctx, func(done, total int64) { cancel() })
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s: got %v, want context.Canceled", work.name, err)
			}
			wantTrouble(t, work.name, err)
		}
	})
}

func TestProgress(t *testing.T) {
	formats(t, func(t *testing.T, d *device, r bt.Release, parts bt.Parts) {
		whole := parts.Bytes()
		b, err := d.open(bytes.NewReader(whole), int64(len(whole)))
		if err != nil {
			t.Fatal(err)
		}
		images := int64(len(r.Files["rootfs.img"]) + len(r.Files["appfs.img"]))
		last, of := int64(0), int64(0)
		watch := func(done, total int64) {
			if done <= last || done > total || (of != 0 && total != of) {
				t.Errorf("%d of %d after %d of %d", done, total, last, of)
			}
			last, of = done, total
		}
		want := images
		if r.Format == "verity" { // of a plain one the payload is verified already
			want += int64(len(parts.Data))
		}
		if err := b.Verify(context.Background(), watch); err != nil || last != of || of != want {
			t.Errorf("verified: %d of %d, %v, want %d", last, of, err, want)
		}
		last, of = 0, 0
		image := b.image(t, "appfs")
		if err := b.CopyImage(context.Background(), io.Discard, image, watch); err != nil || last != of || of != image.Size {
			t.Errorf("copied: %d of %d, %v, want %d", last, of, err, image.Size)
		}
	})
}

// TestWhatNoImageHasIsVerified: a file that the manifest does not name is nobody's, and
// does not keep an image from being copied; but who looks at the bundle is told.
func TestWhatNoImageHasIsVerified(t *testing.T) {
	d, r, by := maker(t)
	extra := bt.Noise(1<<20, "extra")
	files := map[string][]byte{"rootfs.img": r.Files["rootfs.img"], "appfs.img": r.Files["appfs.img"], "extra": extra, manifestName: []byte(r.Manifest())}
	parts := bt.Build(t, bt.Squashfs(t, files), r.Manifest(), "verity", bt.Message{By: by})
	at := bytes.Index(parts.Data, extra[500<<10:500<<10+64])
	if at < 0 {
		t.Fatal("the file is not there as it is")
	}
	for _, tampered := range []bool{false, true} {
		if tampered {
			parts.Data[at] ^= 1
		}
		whole := parts.Bytes()
		b, err := d.open(bytes.NewReader(whole), int64(len(whole)))
		if err != nil {
			t.Fatal(err)
		}
		if err := b.CopyImage(t.Context(), io.Discard, b.image(t, "rootfs"), nil); err != nil {
			t.Errorf("copied, tampered %t: %v", tampered, err)
		}
		if err := b.Verify(t.Context(), nil); tampered {
			wantRefusal(t, "verified", err, fota.StagePayload, "block")
		} else if err != nil {
			t.Errorf("verified: %v", err)
		}
	}
}

// TestAllImagesBeforeAny: the first image is not written if the second is not there.
func TestAllImagesBeforeAny(t *testing.T) {
	d, r, by := maker(t)
	files := map[string][]byte{"rootfs.img": r.Files["rootfs.img"], manifestName: []byte(r.Manifest())}
	whole := bt.Build(t, bt.Squashfs(t, files), r.Manifest(), "verity", bt.Message{By: by}).Bytes()
	b, err := d.open(bytes.NewReader(whole), int64(len(whole)))
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	err = b.CopyImage(context.Background(), &got, b.image(t, "rootfs"), nil)
	wantRefusal(t, "half a release", err, fota.StageImage, "missing")
	if got.Len() != 0 {
		t.Errorf("%d bytes were written, want none", got.Len())
	}
}

func TestConcurrentUse(t *testing.T) {
	formats(t, func(t *testing.T, d *device, r bt.Release, parts bt.Parts) {
		whole := parts.Bytes()
		b, err := d.open(bytes.NewReader(whole), int64(len(whole)))
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for _, image := range b.Manifest.Images {
			for range 3 {
				all.Go(func() {
					h := sha256.New()
					if err := b.CopyImage(context.Background(), h, image, nil); err != nil || [32]byte(h.Sum(nil)) != image.SHA256 {
						t.Errorf("%s: %v, or another digest", image.File, err)
					}
				})
			}
		}
		all.Go(func() {
			if err := b.Verify(context.Background(), nil); err != nil {
				t.Error(err)
			}
		})
		all.Wait()
	})
}

// TestReadsOnce: a bundle may come over a network, where every byte and every request
// counts.
func TestReadsOnce(t *testing.T) {
	d, r, by := maker(t)
	r.Files["rootfs.img"] = bt.Noise(24<<20, "large")
	files := map[string][]byte{"rootfs.img": r.Files["rootfs.img"], "appfs.img": r.Files["appfs.img"], manifestName: []byte(r.Manifest())}
	whole := bt.Build(t, bt.Squashfs(t, files, "-noD"), r.Manifest(), "verity", bt.Message{By: by}).Bytes()
	s := newSource(whole)
	readings := 0
	s.before = func(int64, int) error { readings++; return nil }
	b, err := Open(s, int64(len(whole)), &d.trust)
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range b.Manifest.Images {
		if err := b.CopyImage(context.Background(), io.Discard, image, nil); err != nil {
			t.Fatal(err)
		}
	}
	if most := int64(len(whole)) * 105 / 100; s.read > most {
		t.Errorf("%d bytes were read of a bundle of %d, want %d at most", s.read, len(whole), most)
	}
	// Spans, blocks of the tree, and a few for the tables of squashfs.
	if most := len(whole)/spanSize + len(whole)/(blockSize*fanOut) + 32; readings > most {
		t.Errorf("%d readings of a bundle of %d bytes, want %d at most", readings, len(whole), most)
	}
	t.Logf("%d bytes, %d read in %d readings", len(whole), s.read, readings)
}
