package bundle

import (
	"bytes"
	"encoding/binary"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"birthmark/pkg/fota"
	bt "birthmark/pkg/fota/bundle/bundletest"
)

// signed is a bundle with this text as its signed manifest, and a payload that does not
// matter.
func (w *workshop) signed(text []byte) []byte {
	p := w.r.Parts(w.t, w.pki.Signer)
	p.Signature = bt.Message{By: w.pki.Signer, Content: text}.Sign(w.t)
	return p.Bytes()
}

// shipped is a bundle of w's manifest, and of a payload with these files changed; nil
// takes one away.
func (w *workshop) shipped(changed map[string][]byte, args ...string) []byte {
	files := maps.Clone(w.r.Files)
	files[manifestName] = []byte(w.r.Manifest())
	maps.Copy(files, changed)
	maps.DeleteFunc(files, func(_ string, b []byte) bool { return b == nil })
	return w.holding(bt.Squashfs(w.t, files, args...))
}

// holding is a bundle of w's manifest, and of any payload, signed as it is.
func (w *workshop) holding(data []byte) []byte {
	return bt.Build(w.t, data, w.r.Manifest(), w.r.Format, bt.Message{By: w.pki.Signer}).Bytes()
}

// plain is a workshop for plain bundles, on a device that takes them.
func (w *workshop) plain() *workshop {
	d := *w.device
	d.policy.AllowPlain = true
	p := *w
	p.device, p.made, p.r.Format = &d, nil, "plain"
	return &p
}

func (w *workshop) manifests() {
	for _, b := range badManifests {
		w.add(fota.StageManifest, b.code, "manifest: "+b.name, w.signed(broken(w.t, b.name, b.old, b.new)), nil)
	}
	w.add(fota.StageManifest, "format", "manifest: one of a plain bundle", w.signed([]byte(innerManifest)), nil)
	w.add(fota.StageManifest, "size", "manifest: nothing", w.signed([]byte{}), nil)
	w.add(fota.StageManifest, "text", "manifest: a squashfs", w.signed(w.r.Parts(w.t, w.pki.Signer).Data[:4096]), nil)

	// CVE-2025-67903 and its like: what one reader verifies, another one parses.
	inner := w.r.Manifest()
	for _, c := range []struct{ name, code, old, new string }{
		{"another version", "inner", "1.1.0", "1.2.0"},
		{"another security version", "inner", "+sv2", "+sv3"},
		{"other devices", "inner", "acme-gw", "acme-gx"},
		{"another digest", "inner", "sha256=", "sha256=" + strings.Repeat("0", 64) + "\n#"},
		{"another size", "inner", "size=65536", "size=65537"},
		{"another file", "inner", "filename=appfs.img", "filename=rootfs.img"},
		{"another slot", "inner", "[image.appfs]", "[image.kernel]"},
		{"a description", "inner", "[bundle]", "description=New\n[bundle]"},
		{"another format", "inner", "format=verity", "format=plain"},
		{"a hash tree", "verity", "format=verity", "format=verity\nverity-size=4096"},
		{"a version twice", "duplicate", "[bundle]", "version=9.9.9+sv9\n[bundle]"},
		{"hooks", "hooks", "[bundle]", "[hooks]\nfilename=x\n[bundle]"},
		{"NUL", "text", "acme", "ac\x00me"},
	} {
		text := strings.Replace(inner, c.old, c.new, 1)
		if text == inner {
			w.t.Fatalf("%s: no %q in the manifest", c.name, c.old)
		}
		w.addInside(c.code, "inner manifest: "+c.name, w.shipped(map[string][]byte{manifestName: []byte(text)}))
	}
	w.addInside("size", "inner manifest: nothing in it", w.shipped(map[string][]byte{manifestName: {}}))
	w.addInside("size", "inner manifest: a large one", w.shipped(map[string][]byte{manifestName: bt.Text(manifestLimit + 1)}))

	p := w.plain()
	p.addInside("missing", "plain: no manifest", p.shipped(map[string][]byte{manifestName: nil}))
	p.addInside("format", "plain: a manifest of a verity bundle", p.shipped(map[string][]byte{manifestName: []byte(inner)}))
	p.addInside("verity", "plain: a manifest with a hash tree", p.shipped(map[string][]byte{manifestName: []byte(signedManifest)}))
	p.addInside("crypt", "plain: a manifest of an encrypted bundle", p.shipped(map[string][]byte{manifestName: []byte(strings.Replace(inner, "=verity", "=crypt", 1))}))
	w.made = append(w.made, p.made...)
}

// addInside is add, of a manifest for which the payload has to be read.
func (w *workshop) addInside(code, name string, b []byte) {
	w.add(fota.StageManifest, code, name, b, nil)
	w.made[len(w.made)-1].inside = true
}

func (w *workshop) policies() {
	good := w.by(w.pki.Signer)
	for _, c := range []struct {
		name, code string
		change     func(*fota.Policy)
	}{
		{"for other devices", "compatible", func(p *fota.Policy) { p.Compatible = "acme-gw2" }},
		{"for devices of a longer name", "compatible", func(p *fota.Policy) { p.Compatible = "acme" }},
		{"what runs", "same", func(p *fota.Policy) { p.Running = fota.Version{Major: 1, Minor: 1, Security: 2} }},
		{"older than what runs", "downgrade", func(p *fota.Policy) { p.Running = fota.Version{Major: 1, Minor: 1, Patch: 1, Security: 2} }},
		{"much older than what runs", "downgrade", func(p *fota.Policy) { p.Running = fota.Version{Major: 10, Security: 2} }},
		{"of an older security version", "downgrade", func(p *fota.Policy) { p.Running.Security = 3 }},
		{"below the floor", "floor", func(p *fota.Policy) { p.Floor = 3 }},
		{"below the floor, with permission", "floor", func(p *fota.Policy) { p.Floor, p.Permit = 3, fota.Version{Major: 1, Minor: 1, Security: 2} }},
		{"for a slot that is not there", "slot", func(p *fota.Policy) { p.Slots = map[string]int64{"rootfs": 8 << 20} }},
		{"on a device without slots", "slot", func(p *fota.Policy) { p.Slots = nil }},
		{"larger than a slot", "size", func(p *fota.Policy) { p.Slots = map[string]int64{"rootfs": 350<<10 - 1, "appfs": 1 << 20} }},
		{"larger than a small slot", "size", func(p *fota.Policy) { p.Slots = map[string]int64{"rootfs": 8 << 20, "appfs": 4096} }},
	} {
		w.add(fota.StagePolicy, c.code, c.name, good, func(d *device) { c.change(&d.policy) })
	}
	p := w.plain()
	w.add(fota.StagePolicy, "plain", "plain, where only verity is allowed", p.by(p.pki.Signer), nil)
	w.add(fota.StagePolicy, "plain", "a manifest beside its signature", w.bent(func(m *bt.Message) { m.Detached = true }), nil)
}

func (w *workshop) payloads() {
	good := w.r.Parts(w.t, w.pki.Signer)
	other := bt.NewRelease("acme-gw", "1.0.9+sv1").Parts(w.t, w.pki.Signer)
	changed := func(change func(p *bt.Parts)) []byte {
		p := bt.Parts{Data: bytes.Clone(good.Data), Tree: bytes.Clone(good.Tree), Signature: good.Signature}
		change(&p)
		return p.Bytes()
	}
	size := len(good.Data)
	for _, c := range []struct {
		name, code string
		change     func(*bt.Parts)
	}{
		{"the first bit", "block", func(p *bt.Parts) { p.Data[0] ^= 0x80 }},
		{"a bit of the superblock", "block", func(p *bt.Parts) { p.Data[40] ^= 1 }},
		{"a bit in the middle", "block", func(p *bt.Parts) { p.Data[size/2] ^= 1 }},
		{"the last bit of the data", "block", func(p *bt.Parts) { p.Data[size-1] ^= 1 }},
		{"a block of zeros", "block", func(p *bt.Parts) { clear(p.Data[8*blockSize : 9*blockSize]) }},
		{"two blocks in each other's place", "block", func(p *bt.Parts) {
			a, b := p.Data[4*blockSize:5*blockSize], p.Data[5*blockSize:6*blockSize]
			for i := range a {
				a[i], b[i] = b[i], a[i]
			}
		}},
		{"the first bit of the hash tree", "tree", func(p *bt.Parts) { p.Tree[0] ^= 0x80 }},
		{"the last bit of the hash tree", "tree", func(p *bt.Parts) { p.Tree[len(p.Tree)-1] ^= 1 }},
		{"data and tree of another salt", "tree", func(p *bt.Parts) { p.Tree, _ = bt.Tree(p.Data, make([]byte, 32)) }},
		{"other data, and their tree", "tree", func(p *bt.Parts) {
			p.Data[9*blockSize] ^= 1
			p.Tree, _ = bt.Tree(p.Data, bt.Salt)
		}},
		{"a block less", "padding", func(p *bt.Parts) { p.Data = p.Data[blockSize:] }},
		{"the last byte of the payload less", "geometry", func(p *bt.Parts) { p.Tree = p.Tree[:len(p.Tree)-1] }},
		{"no hash tree", "geometry", func(p *bt.Parts) { p.Tree, p.Data = nil, p.Data[:blockSize] }},
		{"a payload of one block", "geometry", func(p *bt.Parts) { p.Data, p.Tree = nil, p.Tree[:blockSize] }},
		{"a byte between payload and signature", "geometry", func(p *bt.Parts) { p.Tree = append(p.Tree, 0) }},
		{"a hundred blocks between data and tree", "geometry", func(p *bt.Parts) { p.Data = append(p.Data, make([]byte, 100*blockSize)...) }},
		{"the payload of another release", "tree", func(p *bt.Parts) { p.Data, p.Tree = other.Data, other.Tree }},
	} {
		w.add(fota.StagePayload, c.code, "payload: "+c.name, changed(c.change), nil)
	}
	// Signed numbers that are not those of the payload.
	manifest := w.r.Manifest()
	_, root := bt.Tree(good.Data, bt.Salt)
	number := func(name string, size int) {
		w.add(fota.StagePayload, "geometry", name, changed(func(p *bt.Parts) {
			p.Signature = bt.Message{By: w.pki.Signer, Content: []byte(bt.Outer(manifest, root, bt.Salt, size))}.Sign(w.t)
		}), nil)
	}
	number("payload: a tree that is signed as larger", len(good.Tree)+blockSize)
	number("payload: a tree that is signed as larger than everything", numberLimit)
	number("payload: a tree that is signed as of the size of the payload", len(good.Tree)+len(good.Data))

	// A tree that is signed, and has something behind its hashes.
	stuffed := bt.Parts{Data: good.Data, Tree: bytes.Clone(good.Tree)}
	stuffed.Tree[len(stuffed.Tree)-1] = 1
	stuffed.Signature = bt.Message{By: w.pki.Signer, Content: []byte(bt.Outer(manifest, bt.Root(stuffed.Tree, bt.Salt), bt.Salt, len(stuffed.Tree)))}.Sign(w.t)
	w.add(fota.StagePayload, "padding", "payload: something behind the last hash", stuffed.Bytes(), nil)

	p := w.plain()
	goodPlain := p.r.Parts(p.t, p.pki.Signer)
	for _, c := range []struct {
		name   string
		change func([]byte) []byte
	}{
		{"the first bit", func(b []byte) []byte { b[0] ^= 0x80; return b }},
		{"a bit in the middle", func(b []byte) []byte { b[len(b)/2] ^= 1; return b }},
		{"the last bit", func(b []byte) []byte { b[len(b)-1] ^= 1; return b }},
		{"a byte less", func(b []byte) []byte { return b[:len(b)-1] }},
		{"a byte more", func(b []byte) []byte { return append(b, 0) }},
		{"something before it", func(b []byte) []byte { return slices.Concat(good.Data, b) }},
		{"something behind it", func(b []byte) []byte { return slices.Concat(b, good.Data) }},
		{"another payload", func(b []byte) []byte { return other.Data }},
	} {
		b := bt.Parts{Data: c.change(bytes.Clone(goodPlain.Data)), Signature: goodPlain.Signature}.Bytes()
		p.add(fota.StagePayload, "digest", "plain: "+c.name, b, nil)
	}
	// CVE-2020-25860: what was believed is not what is used.
	noise := bt.Noise(size, "other")
	at := size / 2 / blockSize * blockSize
	w.then("payload: another one, once its signature was believed", "tree", good, other)
	w.then("payload: another block, once its signature was believed", "block", good, bt.Parts{Data: slices.Concat(good.Data[:at], noise[at:])})
	p.then("plain: another payload, once its signature was believed", "changed", goodPlain, bt.Parts{Data: noise})

	detached := w.bent(func(m *bt.Message) { m.Detached = true })
	p.add(fota.StagePayload, "digest", "a manifest beside its signature, where plain is allowed", detached, nil)
	w.made = append(w.made, p.made...)
}

// then adds a bundle in whose place another one lies once its signature was believed.
func (w *workshop) then(name, code string, good, other bt.Parts) {
	w.add(fota.StagePayload, code, name, good.Bytes(), nil)
	w.made[len(w.made)-1].then = slices.Concat(other.Data, other.Tree)
}

func (w *workshop) fileSystems() {
	good := w.r.Parts(w.t, w.pki.Signer).Data
	changed := func(change func(b []byte)) []byte {
		b := bytes.Clone(good)
		change(b)
		return w.holding(b)
	}
	le := binary.LittleEndian
	for _, c := range []struct {
		name, code string
		change     func(b []byte)
	}{
		{"no magic", "magic", func(b []byte) { b[0] = 'x' }},
		{"big endian", "magic", func(b []byte) { copy(b, "sqsh") }},
		{"zeros", "magic", func(b []byte) { clear(b) }},
		{"noise", "magic", func(b []byte) { copy(b, bt.Noise(len(b), "squashfs")) }},
		{"version 3", "version", func(b []byte) { le.PutUint16(b[28:], 3) }},
		{"blocks of one byte", "superblock", func(b []byte) { le.PutUint32(b[12:], 1) }},
		{"larger than the payload", "superblock", func(b []byte) { le.PutUint64(b[40:], uint64(len(b))+1) }},
		{"a size below zero", "superblock", func(b []byte) { le.PutUint64(b[40:], 1<<63) }},
		{"inodes behind the end", "superblock", func(b []byte) { le.PutUint64(b[64:], 1<<40) }},
		{"more inodes than are read", "limit", func(b []byte) { le.PutUint32(b[4:], 1<<31) }},
		{"a compressor that is none", "compressor", func(b []byte) { le.PutUint16(b[20:], 99) }},
	} {
		w.add(fota.StageSquashfs, c.code, "squashfs: "+c.name, changed(c.change), nil)
	}
	for _, compression := range []string{"lzo", "lz4"} {
		w.add(fota.StageSquashfs, "compressor", "squashfs: packed by "+compression, w.shipped(nil, "-comp", compression), nil)
	}

	// An image that is something else: RAUC 1.8 writes to a slot what a link points to.
	dir := w.t.TempDir()
	special := func(name string, change func(path string) error) {
		in := filepath.Join(dir, name)
		if err := os.Mkdir(in, 0o700); err != nil {
			w.t.Fatal(err)
		}
		for file, b := range map[string][]byte{manifestName: []byte(w.r.Manifest()), "appfs.img": bt.Noise(64<<10, "appfs")} {
			if err := os.WriteFile(filepath.Join(in, file), b, 0o600); err != nil {
				w.t.Fatal(err)
			}
		}
		if err := change(filepath.Join(in, "rootfs.img")); err != nil {
			w.t.Fatal(err)
		}
		b := bt.Mksquashfs(w.t, in, in+".squashfs")
		w.add(fota.StageSquashfs, "kind", "squashfs: an image that is "+name, w.holding(b), nil)
	}
	special("a link", func(path string) error { return os.Symlink("/etc/hostname", path) })
	special("a link upwards", func(path string) error { return os.Symlink("../../../../etc/hostname", path) })
	special("a folder", func(path string) error { return os.Mkdir(path, 0o700) })
	special("a pipe", func(path string) error { return exec.Command("mkfifo", path).Run() })
}

func (w *workshop) images() {
	root, app := w.r.Files["rootfs.img"], w.r.Files["appfs.img"]
	flipped := bytes.Clone(root)
	flipped[len(flipped)/2] ^= 1
	zeroed := append(bytes.Clone(root[:len(root)-1]), 0)
	for _, c := range []struct {
		name, code string
		files      map[string][]byte
	}{
		{"none", "missing", map[string][]byte{"rootfs.img": nil}},
		{"one of two", "missing", map[string][]byte{"appfs.img": nil}},
		{"with a capital letter", "missing", map[string][]byte{"rootfs.img": nil, "Rootfs.img": root}},
		{"a byte short", "size", map[string][]byte{"rootfs.img": root[:len(root)-1]}},
		{"a byte long", "size", map[string][]byte{"rootfs.img": append(bytes.Clone(root), 0)}},
		{"empty", "size", map[string][]byte{"appfs.img": {}}},
		{"two in each other's place", "size", map[string][]byte{"rootfs.img": app, "appfs.img": root}},
		{"another bit", "digest", map[string][]byte{"rootfs.img": flipped}},
		{"another last byte", "digest", map[string][]byte{"rootfs.img": zeroed}},
		{"the second one of zeros", "digest", map[string][]byte{"appfs.img": make([]byte, len(app))}},
	} {
		w.add(fota.StageImage, c.code, "image: "+c.name, w.shipped(c.files), nil)
		p := w.plain()
		if c.code == "digest" {
			p.r.Format = "plain"
			inner := map[string][]byte{manifestName: []byte(p.r.Manifest())}
			maps.Copy(inner, c.files)
			p.add(fota.StageImage, c.code, "plain, image: "+c.name, p.shipped(inner), nil)
			w.made = append(w.made, p.made...)
		}
	}
}
