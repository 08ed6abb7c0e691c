package bundle

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"birthmark/pkg/cms"
	"birthmark/pkg/fota"
	bt "birthmark/pkg/fota/bundle/bundletest"
)

// A device is what a bundle is held against.
type device struct {
	trust  cms.Trust
	policy fota.Policy
}

// deviceOf is one that believes a maker, and runs the release before 1.1.0+sv2.
func deviceOf(t testing.TB, pki *bt.PKI) *device {
	d := &device{
		trust: cms.Trust{
			Anchors: []*x509.Certificate{pki.Root.Cert},
			Issuers: []*x509.Certificate{pki.Issuing.Cert},
			CRLs:    []*x509.RevocationList{readCRL(t, bt.CRL(t, pki.Root, nil)), readCRL(t, bt.CRL(t, pki.Issuing, nil))},
			Now:     time.Now(),
			Build:   build,
		},
		policy: fota.Policy{
			Compatible: "acme-gw", Running: fota.Version{Major: 1, Security: 1}, Floor: 1,
			Slots: sizes,
		},
	}
	return d
}

// sizes are those of a device's slots, by class.
var sizes = map[string]int64{"rootfs": 2 << 20, "appfs": 1 << 20, "kernel": 1 << 20}

func readCRL(t testing.TB, der []byte) *x509.RevocationList {
	t.Helper()
	crl, err := cms.ReadCRL(der)
	if err != nil {
		t.Fatal(err)
	}
	return crl
}

func build(leaf *x509.Certificate, intermediates, roots []*x509.Certificate, usage ...x509.ExtKeyUsage) ([]*x509.Certificate, error) {
	o := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), KeyUsages: usage}
	for _, c := range roots {
		o.Roots.AddCert(c)
	}
	for _, c := range intermediates {
		o.Intermediates.AddCert(c)
	}
	chains, err := leaf.Verify(o)
	if err != nil {
		return nil, err
	}
	return chains[0], nil
}

// wants takes a bundle through the stages before its payload.
func (d *device) wants(r io.ReaderAt, size int64) (*Bundle, error) {
	open := func() (*Bundle, error) { return Open(r, size, &d.trust) }
	if d.policy.AllowPlain {
		open = func() (*Bundle, error) { return OpenPlain(context.Background(), r, size, &d.trust, nil) }
	}
	b, err := open()
	if err != nil {
		return nil, err
	}
	return b, d.policy.Check(b.Manifest)
}

// judge takes a bundle through all stages, as far as it comes.
func (d *device) judge(r io.ReaderAt, size int64) (*Bundle, error) {
	b, err := d.wants(r, size)
	if err != nil {
		return b, err
	}
	return b, b.Verify(context.Background(), nil)
}

// good are bundles by Debian's tools that every device must take.
func good(t *testing.T, each func(name string, d *device, r bt.Release, b []byte)) {
	ship := func(name string, pki *bt.PKI, r bt.Release, args string) {
		d := deviceOf(t, pki)
		d.policy.AllowPlain = r.Format == "plain"
		each(name, d, r, r.Rauc(t, pki.Signer, args))
	}
	small := bt.NewRelease("acme-gw", "1.1.0+sv2")
	for _, format := range []string{"verity", "plain"} {
		small.Format = format
		for _, kind := range []string{"RSA-3072", "RSA-4096", "P-256", "P-384", "P-521"} {
			ca := kind
			if kind == "RSA-4096" {
				ca = "RSA-3072"
			}
			pki := bt.NewPKI(t, ca, kind)
			for _, compression := range []string{"gzip", "xz", "zstd"} {
				ship(fmt.Sprintf("%s %s %s", kind, format, compression), pki, small, "-comp "+compression)
			}
		}
		pki := bt.NewPKI(t, "P-256", "P-256")
		direct := &bt.PKI{Root: pki.Root, Issuing: pki.Root, Signer: bt.Issue(t, pki.Root, pki.Signer.Key, "Releases", nil)}
		ship(format+", signer below the root", direct, small, "-comp zstd")

		middle := bt.Issue(t, pki.Root, bt.Key(t, "P-256", "middle"), "Policy CA", bt.CA)
		deep := &bt.PKI{Root: pki.Root, Issuing: bt.Issue(t, middle, pki.Issuing.Key, "Code Signing CA", bt.CA)}
		deep.Signer = bt.Issue(t, deep.Issuing, pki.Signer.Key, "Releases", nil)
		d := deviceOf(t, deep)
		d.trust.CRLs = append(d.trust.CRLs, readCRL(t, bt.CRL(t, middle, nil)))
		d.policy.AllowPlain = format == "plain"
		each(format+", two CAs between", d, small, small.Rauc(t, deep.Signer, "-comp zstd"))

		for _, args := range []string{"-b 4096", "-b 1M", "-no-fragments", "-noI -noD -noF -noX", "-always-use-fragments"} {
			ship(format+" "+args, pki, small, "-comp zstd "+args)
		}
		one := bt.Release{Compatible: "acme-gw", Version: "1.1.0+sv2", Format: format,
			Files: map[string][]byte{"a": {1}, "empty space.img": make([]byte, 1<<20), "README": bt.Noise(9000, "readme")},
			Slots: map[string]string{"rootfs": "empty space.img", "kernel": "a"}}
		ship(format+", a file of zeros, one of a byte, one that is no image", pki, one, "-comp xz")
		one.More = "\n[meta.acme]\nticket=77\n"
		ship(format+", with metadata", pki, one, "-comp gzip")
	}
}

// bad is a bundle that no device may take.
type bad struct {
	name  string
	stage fota.Stage
	code  string
	bytes []byte
	on    *device
	// inside: the payload has to be read to find out
	inside bool
	// then, if there is one, is what lies there once the signature was believed
	then []byte
	// zeros are so many that nobody holds in memory, between payload and signature
	zeros int64
}

func (b bad) size() int64 { return int64(len(b.bytes)) + b.zeros }

// least says how many bad bundles there are for each stage, at least.
var least = map[fota.Stage]int{
	fota.StageContainer: 15, fota.StageCMS: 60, fota.StageChain: 30, fota.StageManifest: 100, fota.StagePolicy: 14,
	fota.StagePayload: 30, fota.StageSquashfs: 15, fota.StageImage: 12,
}

// TestGoodAndBad: in one run, every good bundle is taken, and every bad one is refused
// at the stage that it is bad at, with no more read than that takes. A device's slots
// hold what the good one brought, or are what they were.
func TestGoodAndBad(t *testing.T) {
	taken, refused, spoilt := 0, map[fota.Stage]int{}, 0
	var names []string
	t.Run("good", func(t *testing.T) {
		slots := newSlots(t)
		good(t, func(name string, d *device, r bt.Release, b []byte) {
			taken++
			wantTaken(t, name, slots, d, r, b)
		})
	})
	for _, group := range []struct {
		name string
		make func(*workshop)
	}{
		{"container", (*workshop).containers},
		{"cms", (*workshop).messages},
		{"chain", (*workshop).signers},
		{"manifest", (*workshop).manifests},
		{"policy", (*workshop).policies},
		{"payload", (*workshop).payloads},
		{"squashfs", (*workshop).fileSystems},
		{"image", (*workshop).images},
	} {
		t.Run(group.name, func(t *testing.T) {
			w := newWorkshop(t)
			group.make(w)
			slots := newSlots(t)
			for _, b := range w.made {
				if slices.Contains(names, b.name) {
					t.Errorf("two of them are named %q", b.name)
				}
				names = append(names, b.name)
				refused[b.stage]++
				wantNotTaken(t, b)
				slots.wantUntouched(t, b)
			}
			spoilt += slots.spoilt
		})
	}
	if taken == 0 || len(refused) < len(least) {
		return // what was asked for is a part
	}
	total := 0
	for stage, n := range least {
		if total += refused[stage]; refused[stage] < n {
			t.Errorf("%d bad bundles at %s, want %d at least", refused[stage], stage, n)
		}
	}
	if taken < 40 || total < 150 {
		t.Errorf("%d good and %d bad bundles, want 40 and 150 at least", taken, total)
	}
	wantFlaws(t, names)
	if spoilt == 0 || spoilt > 15 {
		t.Errorf("%d bad bundles were refused while they were written, want some, and few", spoilt)
	}
	t.Logf("%d good bundles taken, %d bad ones refused, %d of them while they were written: %v", taken, total, spoilt, refused)
}

func wantTaken(t *testing.T, name string, slots *slots, d *device, r bt.Release, b []byte) {
	t.Helper()
	bundle, err := d.judge(bytes.NewReader(b), int64(len(b)))
	if err == nil {
		err = slots.install(d, bytes.NewReader(b), int64(len(b)))
	}
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	for _, image := range bundle.Manifest.Images {
		got, err := os.ReadFile(slots.path(image.Slot))
		if want := r.Files[image.File]; err != nil || !bytes.HasPrefix(got, want) {
			t.Errorf("%s: slot %s has another %s than was shipped (%v)", name, image.Slot, image.File, err)
		}
	}
}

func wantNotTaken(t *testing.T, b bad) {
	t.Helper()
	s := b.source()
	_, err := b.on.judge(s, b.size())
	wantRefusal(t, b.name, err, b.stage, b.code)
	switch b.stage {
	case fota.StageContainer, fota.StageCMS, fota.StageChain, fota.StageManifest, fota.StagePolicy:
		if first := endOf(b.bytes) + b.zeros; !b.inside && s.lowest < first {
			t.Errorf("%s: refused at %s after reading from %d on, want nothing before %d", b.name, b.stage, s.lowest, first)
		}
	}
}

// endOf is where the end of a bundle begins: signature and length, or the length alone
// where it cannot be one.
func endOf(b []byte) int64 {
	end := int64(len(b)) - trailerSize
	if end < 0 {
		return 0
	}
	if n := binary.BigEndian.Uint64(b[end:]); n < uint64(end) && n <= signatureLimit {
		return end - int64(n)
	}
	return end
}
