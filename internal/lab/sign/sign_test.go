package sign

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/bundle"
	bt "birthmark/pkg/fota/bundle/bundletest"
)

func quiet(string) {}

func mustLab(t *testing.T, dir string) Signer {
	t.Helper()
	s, err := Lab(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t *testing.T, path string, text []byte) string {
	t.Helper()
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// release is one of two images, in a folder of its own.
func release(t *testing.T) Release {
	t.Helper()
	dir := t.TempDir()
	return Release{
		Compatible: "acme-gw", Version: fota.Version{Major: 1, Minor: 1, Security: 2}, Compression: Gzip, Time: time.Unix(1700000000, 0),
		Images: []Image{
			{"rootfs", put(t, filepath.Join(dir, "rootfs.ext4"), bt.Noise(200<<10, "rootfs"))},
			{"appfs", put(t, filepath.Join(dir, "app.img"), bt.Text(100<<10))},
		},
	}
}

// open reads a bundle as a device does that was given by's files.
func open(t *testing.T, by Signer, path string) *bundle.Bundle {
	t.Helper()
	trust, err := by.trust()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := bundle.Open(bytes.NewReader(text), int64(len(text)), trust)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestADeviceFindsWhatWasOrdered(t *testing.T) {
	by := mustLab(t, t.TempDir())
	out := filepath.Join(t.TempDir(), "a.raucb")
	for _, compression := range []Compression{Zstd, Gzip, XZ} {
		r := release(t)
		r.Compression = compression
		r.Description, r.Build = "two lines,\nand C:\\new \"every\" ; # = é", "ci 77"
		record, err := Firmware(t.Context(), r, by, out, quiet)
		if err != nil {
			t.Errorf("%s: %v", compression, err)
			continue
		}
		b := open(t, by, out)
		if m := b.Manifest; m.Compatible != r.Compatible || m.Version != r.Version || m.Description != r.Description || m.Build != r.Build {
			t.Errorf("%s: got %+v, want what is in %+v", compression, m, r)
		}
		for i, image := range b.Manifest.Images {
			var got bytes.Buffer
			want, _ := os.ReadFile(r.Images[i].Path)
			if err := b.CopyImage(t.Context(), &got, image, nil); err != nil || image.Slot != r.Images[i].Slot || !bytes.Equal(got.Bytes(), want) {
				t.Errorf("%s: image %d: got %d bytes for slot %s, %v; want %d for %s", compression, i, got.Len(), image.Slot, err, len(want), r.Images[i].Slot)
			}
		}
		wantRecord(t, record, r, b, out)
	}
}

func wantRecord(t *testing.T, got *Record, r Release, b *bundle.Bundle, out string) {
	t.Helper()
	digest := func(text []byte) string { sum := sha256.Sum256(text); return hex.EncodeToString(sum[:]) }
	whole, _ := os.ReadFile(out)
	want := &Record{
		Schema: 1, Compatible: "acme-gw", Version: "1.1.0+sv2", Description: r.Description, Build: r.Build, Built: r.Time.UTC(),
		Bundle: BundleRecord{File: filepath.Base(out), Size: int64(len(whole)), SHA256: digest(whole)},
		Signer: CertRecord{Subject: "CN=release signer", NotAfter: b.Chain[0].NotAfter, SHA256: digest(b.Chain[0].Raw)},
	}
	for _, i := range r.Images {
		text, _ := os.ReadFile(i.Path)
		want.Images = append(want.Images, ImageRecord{i.Slot, filepath.Base(i.Path), int64(len(text)), digest(text)})
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got the record %+v, want %+v", got, want)
	}
	text, err := os.ReadFile(out + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var kept Record
	if err := json.Unmarshal(text, &kept); err != nil || !reflect.DeepEqual(&kept, want) {
		t.Errorf("beside the bundle is the record %s (%v), want %+v", text, err, want)
	}
}

// TestRAUCTakesIt holds a bundle against RAUC itself, which a device may have in place of
// our code: with the purpose that it has to be told, and not without.
func TestRAUCTakesIt(t *testing.T) {
	by := mustLab(t, t.TempDir())
	dir := t.TempDir()
	out := filepath.Join(dir, "a.raucb")
	if _, err := Firmware(t.Context(), release(t), by, out, quiet); err != nil {
		t.Fatal(err)
	}
	conf := put(t, filepath.Join(dir, "system.conf"), fmt.Appendf(nil,
		"[system]\ncompatible=acme-gw\nbootloader=noop\n[keyring]\npath=%s\ncheck-purpose=codesign\n", by.Anchors))
	text, err := exec.Command("rauc", "--conf="+conf, "info", out).CombinedOutput()
	if err != nil || !bytes.Contains(text, []byte("Verified inline signature by 'CN = release signer'")) || !bytes.Contains(text, []byte("1.1.0+sv2")) {
		t.Errorf("rauc info: %v\n%s", err, text)
	}
	text, err = exec.Command("rauc", "--keyring="+by.Anchors, "info", out).CombinedOutput()
	if err == nil || !bytes.Contains(text, []byte("unsuitable certificate purpose")) {
		t.Errorf("rauc info without check-purpose: %v, want what package sign says of it\n%s", err, text)
	}
}

// TestPayloadIsReproducible: of two bundles of one release the file systems are the same,
// and nothing else, as the package comment says.
func TestPayloadIsReproducible(t *testing.T) {
	by := mustLab(t, t.TempDir())
	dir := t.TempDir()
	var bundles, payloads [2][]byte
	for i := range bundles {
		r := release(t)
		moment := time.Unix(1600000000+int64(i), 0)
		if err := os.Chtimes(r.Images[0].Path, moment, moment); err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(dir, fmt.Sprint(i))
		if _, err := Firmware(t.Context(), r, by, out, quiet); err != nil {
			t.Fatal(err)
		}
		var err error
		if bundles[i], err = os.ReadFile(out); err != nil {
			t.Fatal(err)
		}
		payloads[i] = payload(t, bundles[i], open(t, by, out).Manifest.Verity.Size)
	}
	if !bytes.Equal(payloads[0], payloads[1]) {
		t.Error("two payloads of one release differ")
	}
	if bytes.Equal(bundles[0], bundles[1]) {
		t.Error("two bundles of one release are the same: the package comment says that they never are")
	}
}

// payload is what stands before a hash tree of that size.
func payload(t *testing.T, b []byte, tree int64) []byte {
	t.Helper()
	var size int64
	for _, octet := range b[len(b)-8:] {
		size = size<<8 | int64(octet)
	}
	return b[:int64(len(b))-8-size-tree]
}

// TestReleaseIsChecked: what cannot be meant is said before any work.
func TestReleaseIsChecked(t *testing.T) {
	by := mustLab(t, t.TempDir())
	for _, c := range []struct {
		name   string
		change func(r *Release)
		says   string
	}{
		{"for no device", func(r *Release) { r.Compatible = "" }, "compatible with nothing"},
		{"no version", func(r *Release) { r.Version = fota.Version{} }, "0.0.0+sv0 is no release"},
		{"no image", func(r *Release) { r.Images = nil }, "no image"},
		{"a compression that devices do not read", func(r *Release) { r.Compression = "lz4" }, "choose zstd, gzip or xz"},
		{"a line more in the manifest", func(r *Release) { r.Build = "1\n[hooks]" }, "control characters"},
		{"a space that GKeyFile drops", func(r *Release) { r.Compatible = " acme-gw" }, "spaces around"},
		{"no UTF-8", func(r *Release) { r.Description = "\xff" }, "want text"},
		{"a variant", func(r *Release) { r.Images[0].Slot = "rootfs.v1" }, "A-Z, a-z"},
		{"a group more in the manifest", func(r *Release) { r.Images[0].Slot = "a]\n[hooks" }, "A-Z, a-z"},
		{"two images for a slot", func(r *Release) { r.Images[1].Slot = "rootfs" }, "two images are for slot rootfs"},
		{"one file twice", func(r *Release) { r.Images[1].Path = r.Images[0].Path }, "rename one"},
		{"an image in place of the manifest", func(r *Release) { r.Images[1].Path = "in/manifest.raucm" }, "rename one"},
		{"an empty image", func(r *Release) { r.Images[0].Path = os.DevNull }, "no file with something in it"},
		{"a folder", func(r *Release) { r.Images[0].Path = t.TempDir() }, "no file with something in it"},
	} {
		r := release(t)
		c.change(&r)
		dir := t.TempDir()
		_, err := Firmware(t.Context(), r, by, filepath.Join(dir, "a.raucb"), quiet)
		var bad *ReleaseError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want a ReleaseError that says %q", c.name, err, c.says)
		}
		wantFiles(t, c.name, dir)
	}
	dir := t.TempDir()
	var bad *ReleaseError
	if _, err := Firmware(t.Context(), release(t), by, dir, quiet); !errors.As(err, &bad) {
		t.Errorf("a folder in place of the bundle: got %v, want a ReleaseError", err)
	}
}

// wantFiles holds that nothing is in a folder but these.
func wantFiles(t *testing.T, name, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: left %q, want %q", name, got, want)
	}
}

// TestWhatWasThereStays: whatever goes wrong, the bundle and the record that are there
// stay as they are, and nothing is left beside them.
func TestWhatWasThereStays(t *testing.T) {
	pki, others := bt.NewPKI(t, "P-256", "P-256"), bt.NewPKI(t, "P-384", "P-384")
	dir := t.TempDir()
	good := files(t, filepath.Join(dir, "good"), pki, pki.Signer)
	other := files(t, filepath.Join(dir, "other"), others, others.Signer)
	mail := files(t, filepath.Join(dir, "mail"), pki, bt.Issue(t, pki.Issuing, pki.Signer.Key, "Mail", forMail))
	sibling := files(t, filepath.Join(dir, "sibling"), pki, bt.Issue(t, bt.Issue(t, pki.Root, bt.Key(t, "P-256", "sibling"), "Sibling CA", bt.CA), pki.Signer.Key, "Sibling", nil))
	revoked := good
	revoked.CRLs = crls(t, filepath.Join(dir, "revoked.pem"), bt.CRL(t, pki.Root, nil), bt.CRL(t, pki.Issuing, nil, pki.Signer))
	half := good
	half.CRLs = crls(t, filepath.Join(dir, "half.pem"), bt.CRL(t, pki.Root, nil))
	for _, c := range []struct {
		name string
		by   Signer
		rauc string // a script in its place; $REAL is rauc
		code string // of the refusal, "" if it is none
		says string
	}{
		{"a signer for e-mail", mail, "", "eku", "a device would refuse the bundle: chain: "},
		{"a signer of a CA that is not pinned", sibling, "", "issuer", "a device would refuse"},
		{"a signer that is revoked", revoked, "", "revoked", "a device would refuse"},
		{"a CA that nobody has a CRL of", half, "", "crl", "a device would refuse"},
		{"anchors of others", with(good, func(s *Signer) { s.Anchors = other.Anchors }), "", "untrusted", "a device would refuse"},
		{"a key of others", with(good, func(s *Signer) { s.Key = other.Key }), "", "", "key values mismatch"},
		{"a certificate that is not there", with(good, func(s *Signer) { s.Certificate = "nix.pem" }), "", "", "failed to load cert file 'nix.pem'"},
		{"anchors that are not there", with(good, func(s *Signer) { s.Anchors = "nix.pem" }), "", "anchors", "nix.pem"},
		{"CRLs that are none", with(good, func(s *Signer) { s.CRLs = good.Anchors }), "", "crl", `it holds a "CERTIFICATE", want only "X509 CRL"`},
		{"no CRLs", with(good, func(s *Signer) { s.CRLs = os.DevNull }), "", "crl", "/dev/null is not a file"},
		{"a rauc that fails", good, "echo starting; echo no room >&2; exit 1", "", "rauc: no room"},
		{"a rauc that makes nothing", good, "exit 0", "", "no such file"},
		{"a rauc that makes another release", good, `for in; do [ -d "$in" ] && sed -i s/1.1.0/1.2.0/ "$in/manifest.raucm"; done; exec $REAL "$@"`, "", "another release"},
		{"a rauc that packs another image", good, `for in; do [ -d "$in" ] && echo >>"$in/app.img"; done; exec $REAL "$@"`, "", "another release"},
		{"a rauc that packs a damaged one", good, `$REAL "$@" && for out; do :; done && printf '\377\377\377' | dd of="$out" bs=1 seek=1000 conv=notrunc 2>&1`, "block", "a device would refuse"},
		{"a rauc that loses the end", good, `$REAL "$@" && for out; do :; done && truncate -s -1 "$out"`, "trailer", "a device would refuse"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.rauc != "" {
				standIn(t, c.rauc)
			}
			dir := t.TempDir()
			out := put(t, filepath.Join(dir, "a.raucb"), []byte("the one before"))
			put(t, out+".json", []byte("its record"))
			_, err := Firmware(t.Context(), release(t), c.by, out, quiet)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want an error that says %q", err, c.says)
			}
			var no *fota.Refusal
			if errors.As(err, &no) != (c.code != "") || no != nil && no.Code != c.code {
				t.Errorf("got %v, want the refusal %q", err, c.code)
			}
			wantFiles(t, c.name, dir, "a.raucb", "a.raucb.json")
			for name, want := range map[string]string{out: "the one before", out + ".json": "its record"} {
				if got, err := os.ReadFile(name); err != nil || string(got) != want {
					t.Errorf("%s: got %.40q, %v, want %q", filepath.Base(name), got, err, want)
				}
			}
		})
	}
}

func with(s Signer, change func(*Signer)) Signer {
	change(&s)
	return s
}

// standIn puts a script in place of rauc.
func standIn(t *testing.T, script string) {
	t.Helper()
	real, err := exec.LookPath("rauc")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	put(t, filepath.Join(dir, "rauc"), fmt.Appendf(nil, "#!/bin/sh\nREAL=%s\n%s\n", real, script))
	if err := os.Chmod(filepath.Join(dir, "rauc"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestCancelEndsCopying(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if _, _, err := copyFile(ctx, put(t, filepath.Join(dir, "a"), bt.Text(100)), filepath.Join(dir, "b")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

func TestMissingProgramsAreNamed(t *testing.T) {
	by, r := mustLab(t, t.TempDir()), release(t)
	t.Setenv("PATH", t.TempDir())
	_, err := Firmware(t.Context(), r, by, filepath.Join(t.TempDir(), "a.raucb"), quiet)
	var missing *MissingError
	if !errors.As(err, &missing) || *missing != (MissingError{"rauc", "rauc"}) {
		t.Errorf("got %v, want that rauc is missing", err)
	}
}

// TestCancelEndsRAUC holds that nothing runs on that was started, whatever that started
// itself.
func TestCancelEndsRAUC(t *testing.T) {
	by := mustLab(t, t.TempDir())
	fifo := filepath.Join(t.TempDir(), "fifo")
	if out, err := exec.Command("mkfifo", fifo).CombinedOutput(); err != nil {
		t.Fatalf("mkfifo: %v\n%s", err, out)
	}
	standIn(t, fmt.Sprintf("exec 3>%s; sleep 1000 & echo up >&3; wait", fifo))
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	ended := make(chan error)
	go func() {
		_, err := Firmware(ctx, release(t), by, filepath.Join(dir, "a.raucb"), quiet)
		ended <- err
	}()
	f, err := os.Open(fifo)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	// The end comes when nobody has it open for writing, neither the script nor sleep.
	if err := f.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("read %d bytes, %v, want %v: something runs on", n, err, io.EOF)
	}
	wantFiles(t, "canceled", dir)
}
