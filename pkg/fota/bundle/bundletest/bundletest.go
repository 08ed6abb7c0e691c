// Package bundletest makes firmware bundles for tests: good ones with Debian's `rauc
// bundle` and `mksquashfs`, as a maker would, and bad ones part by part.
//
//	maker := bundletest.NewPKI(t, "P-256", "RSA-3072")
//	release := bundletest.NewRelease("acme-gw", "1.1.0+sv2")
//	good := release.Rauc(t, maker.Signer, "-comp zstd")
//
// A bad one begins as [Release.Parts], which are spoilt one by one, and put together
// again by [Parts.Bytes]; or its signature is a [Message] that is bent; or its payload
// is some other file system, given to [Build].
package bundletest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

const blockSize = 4096

// A Release is what a maker wants to ship.
type Release struct {
	Compatible, Version string
	Format              string            // "verity" or "plain"
	Files               map[string][]byte // in the payload, besides the manifest
	Slots               map[string]string // the file for each class of slots
	Update              string            // lines at the end of the manifest's first group
	More                string            // text at the end of the manifest
}

// NewRelease is a small one, of a root file system and an application.
func NewRelease(compatible, version string) Release {
	return Release{Compatible: compatible, Version: version, Format: "verity",
		Files: map[string][]byte{
			"rootfs.img": append(Noise(150<<10, version), Text(200<<10)...),
			"appfs.img":  append(Text(56<<10), Noise(8<<10, "app")...),
		},
		Slots: map[string]string{"rootfs": "rootfs.img", "appfs": "appfs.img"}}
}

// Input is the manifest that a maker writes.
func (r Release) Input() string {
	return r.manifest(func(string) string { return "" })
}

// Manifest is what `rauc bundle` makes of it, and puts into the payload.
func (r Release) Manifest() string {
	return r.manifest(func(file string) string {
		return fmt.Sprintf("sha256=%x\nsize=%d\n", sha256.Sum256(r.Files[file]), len(r.Files[file]))
	})
}

func (r Release) manifest(about func(file string) string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "[update]\ncompatible=%s\nversion=%s\n%s\n[bundle]\nformat=%s\n", r.Compatible, r.Version, r.Update, r.Format)
	for _, slot := range slices.Sorted(maps.Keys(r.Slots)) {
		fmt.Fprintf(&b, "\n[image.%s]\n%sfilename=%s\n", slot, about(r.Slots[slot]), r.Slots[slot])
	}
	return b.String() + r.More
}

// Rauc makes the bundle with Debian's tools; mksquashfs is given args, too.
func (r Release) Rauc(t testing.TB, by *Signer, mksquashfs string) []byte {
	t.Helper()
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out.raucb")
	write(t, in, r.Files)
	write(t, in, map[string][]byte{"manifest.raucm": []byte(r.Input())})
	key, cert, above := by.files(t, dir)
	args := []string{"bundle", "--cert=" + cert, "--key=" + key, "--mksquashfs-args=" + mksquashfs + " -processors 1 -no-progress"}
	for _, a := range above {
		args = append(args, "--intermediate="+a)
	}
	run(t, "rauc", append(args, in, out)...)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var payloads sync.Map // squashfs, by what is in it

// Squashfs makes a file system of files with mksquashfs, which is given args, too.
// It is made once a run.
func Squashfs(t testing.TB, files map[string][]byte, args ...string) []byte {
	t.Helper()
	key := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(key, "%q %x\n", name, sha256.Sum256(files[name]))
	}
	fmt.Fprintf(key, "%q\n", args)
	id := string(key.Sum(nil))
	if made, ok := payloads.Load(id); ok {
		return bytes.Clone(made.([]byte))
	}
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out.squashfs")
	write(t, in, files)
	b := Mksquashfs(t, in, out, args...)
	payloads.Store(id, b)
	return bytes.Clone(b)
}

// Mksquashfs makes a file system of a folder, as file out.
func Mksquashfs(t testing.TB, in, out string, args ...string) []byte {
	t.Helper()
	run(t, "mksquashfs", append([]string{in, out, "-all-root", "-noappend", "-no-progress", "-quiet", "-no-xattrs", "-processors", "1"}, args...)...)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Parts are the parts of a bundle.
type Parts struct {
	Data      []byte // squashfs
	Tree      []byte // of a verity bundle
	Signature []byte
}

// Parts makes a bundle without rauc.
func (r Release) Parts(t testing.TB, by *Signer) Parts {
	t.Helper()
	return r.With(t, Message{By: by})
}

// With is Parts with a message that may be bent. A manifest among the files is taken
// for the payload as it is; what is signed is r's in any case.
func (r Release) With(t testing.TB, m Message) Parts {
	t.Helper()
	files := maps.Clone(r.Files)
	if files["manifest.raucm"] == nil {
		files["manifest.raucm"] = []byte(r.Manifest())
	}
	return Build(t, Squashfs(t, files, "-comp", "gzip"), r.Manifest(), r.Format, m)
}

// Build puts a payload behind a signed manifest, or the signature behind the payload
// where the format is plain.
func Build(t testing.TB, data []byte, manifest, format string, m Message) Parts {
	t.Helper()
	p := Parts{Data: data}
	if format == "plain" {
		m.Content, m.Detached = data, true
		p.Signature = m.Sign(t)
		return p
	}
	var root []byte
	p.Tree, root = Tree(data, Salt)
	m.Content = []byte(Outer(manifest, root, Salt, len(p.Tree)))
	p.Signature = m.Sign(t)
	return p
}

// Salt is what [Build] puts before each block.
var Salt = bytes.Repeat([]byte{0x5a}, 32)

// Outer returns a manifest with the hash tree's keys in it.
func Outer(manifest string, root, salt []byte, size int) string {
	return strings.Replace(manifest, "format=verity\n",
		fmt.Sprintf("format=verity\nverity-hash=%x\nverity-salt=%x\nverity-size=%d\n", root, salt, size), 1)
}

// Bytes puts the parts together.
func (p Parts) Bytes() []byte {
	b := slices.Concat(p.Data, p.Tree, p.Signature)
	return binary.BigEndian.AppendUint64(b, uint64(len(p.Signature)))
}

// Tree is dm-verity's hash tree over whole blocks of data, and its root.
func Tree(data, salt []byte) (tree, root []byte) {
	for level := data; len(level) > blockSize; {
		var hashes []byte
		for block := range slices.Chunk(level, blockSize) {
			hashes = append(hashes, salted(block, salt)...)
		}
		hashes = append(hashes, make([]byte, (blockSize-len(hashes)%blockSize)%blockSize)...)
		tree = slices.Concat(hashes, tree)
		level = hashes
	}
	return tree, Root(tree, salt)
}

// Root is the root of a tree, as it is.
func Root(tree, salt []byte) []byte { return salted(tree[:blockSize], salt) }

func salted(block, salt []byte) []byte {
	h := sha256.New()
	h.Write(salt)
	h.Write(block)
	return h.Sum(nil)
}

// Noise is n bytes that look random, and are the same for the same seed.
func Noise(n int, seed string) []byte {
	b := make([]byte, 0, n+sha256.Size)
	for sum := sha256.Sum256([]byte(seed)); len(b) < n; sum = sha256.Sum256(sum[:]) {
		b = append(b, sum[:]...)
	}
	return b[:n]
}

// Text is n bytes that compress well.
func Text(n int) []byte {
	return bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog\n"), n/44+1)[:n]
}

func write(t testing.TB, dir string, files map[string][]byte) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}
