package bundle

import (
	"reflect"
	"strings"
	"testing"

	"birthmark/pkg/fota"
)

const (
	hex64 = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

	signedManifest = `[update]
compatible=acme-gw
version=2.1.0+sv6

[bundle]
format=verity
verity-hash=` + hex64 + `
verity-salt=` + hex64 + `
verity-size=8192

[image.rootfs]
sha256=` + hex64 + `
size=1048576
filename=rootfs.img
`
	innerManifest = `[update]
compatible=acme-gw
version=2.1.0+sv6

[image.rootfs]
sha256=` + hex64 + `
size=1048576
filename=rootfs.img
`
)

func TestManifest(t *testing.T) {
	var hash [32]byte
	if !readHash(hash[:], hex64) {
		t.Fatal("no hash")
	}
	want := fota.Manifest{
		Compatible: "acme-gw",
		Version:    fota.Version{Major: 2, Minor: 1, Security: 6},
		Format:     fota.FormatVerity,
		Verity:     fota.Verity{Root: hash, Salt: hash, Size: 8192},
		Images:     []fota.Image{{Slot: "rootfs", File: "rootfs.img", Size: 1048576, SHA256: hash}},
	}
	m, err := readManifest([]byte(signedManifest), outside)
	if err != nil || !reflect.DeepEqual(*m, want) {
		t.Errorf("signed: got %+v, %v, want %+v", m, err, want)
	}
	want.Format, want.Verity = fota.FormatPlain, fota.Verity{}
	m, err = readManifest([]byte(innerManifest), inside)
	if err != nil || !reflect.DeepEqual(*m, want) {
		t.Errorf("inner: got %+v, %v, want %+v", m, err, want)
	}
}

// TestManifestAccepts: what makers write, and older and newer tools of theirs.
func TestManifestAccepts(t *testing.T) {
	for _, good := range []struct{ name, old, new string }{
		{"no empty lines", "\n\n", "\n"},
		{"a comment", "[update]", "# made by hand\n[update]"},
		{"metadata of others", "[image.rootfs]", "[meta.acme]\nticket=1234\nbuild.host=a b;c\n\n[image.rootfs]"},
		{"both security versions, which agree", "[image.rootfs]", "[meta.fota]\nsecurity-version=6\n\n[image.rootfs]"},
		{"no newline at the end", "filename=rootfs.img\n", "filename=rootfs.img"},
		{"text for people", "version=", "description=\\sFixes\\nall\\\\mo\tst \xc3\xa4\nbuild=20261125\nversion="},
		{"a second slot of the same file", "[image.rootfs]", "[image.rescue]\nfilename=rootfs.img\nsize=1048576\nsha256=" + hex64 + "\n[image.rootfs]"},
	} {
		if _, err := readManifest([]byte(strings.Replace(signedManifest, good.old, good.new, 1)), outside); err != nil {
			t.Errorf("%s: %v", good.name, err)
		}
	}
	m, err := readManifest([]byte(strings.Replace(signedManifest, "+sv6\n", "\n[meta.fota]\nsecurity-version=6\n", 1)), outside)
	if err != nil || m.Version.Security != 6 {
		t.Errorf("a security version in meta.fota only: got %+v, %v, want 6", m, err)
	}
	m, err = readManifest([]byte(strings.Replace(signedManifest, "version=", "description=\\sa\\tb\\n\\\\c\nversion=", 1)), outside)
	if want := " a\tb\n\\c"; err != nil || m.Description != want {
		t.Errorf("escapes: got %+v, %v, want %q", m, err, want)
	}
}

var badManifests = []struct{ name, old, new, code string }{
	{"NUL", "acme", "ac\x00me", "text"},
	{"not UTF-8", "acme", "ac\xffme", "text"},
	{"a carriage return", "acme-gw\n", "acme-gw\r\n", "text"},
	{"a tab before a key", "version", "\tversion", "syntax"},
	{"a tab before a value", "acme-gw", "\tacme-gw", "syntax"},
	{"a tab in what has no tabs", "acme-gw", "acme\tgw", "value"},
	{"a vertical tab", "acme-gw", "acme\vgw", "text"},
	{"a byte order mark", "[update]", "\ufeff[update]", "syntax"},
	{"spaces around the sign", "version=", "version =", "syntax"},
	{"space after the sign", "version=", "version= ", "syntax"},
	{"space at the end of a value", "acme-gw\n", "acme-gw \n", "syntax"},
	{"space before a key", "version=", " version=", "syntax"},
	{"space after a group", "[update]", "[update] ", "syntax"},
	{"a group without an end", "[update]", "[update", "syntax"},
	{"a group without a name", "[update]", "[]\n[update]", "syntax"},
	{"brackets in a group", "[update]", "[upd[ate]", "syntax"},
	{"a key before any group", "[update]", "version=1\n[update]", "syntax"},
	{"a line that is neither", "[bundle]", "nonsense\n[bundle]", "syntax"},
	{"a key for a language", "version=", "description[de]=Neu\nversion=", "syntax"},
	{"an escape that is none", "acme-gw", `acme\x41gw`, "syntax"},
	{"an escape without an end", "acme-gw", `acme-gw\`, "syntax"},
	{"a group twice", "[bundle]", "[update]\ncompatible=other\n[bundle]", "duplicate"},
	{"a key twice", "version=", "compatible=other\nversion=", "duplicate"},
	{"an image twice", "[image.rootfs]", "[image.rootfs]\nfilename=a\n[image.rootfs]", "duplicate"},
	{"an unknown group", "[bundle]", "[system]\nx=1\n[bundle]", "unknown"},
	{"metadata of nobody", "[bundle]", "[meta.]\nx=1\n[bundle]", "unknown"},
	{"metadata alone", "[bundle]", "[meta]\nx=1\n[bundle]", "unknown"},
	{"an unknown key of update", "version=", "author=me\nversion=", "unknown"},
	{"an unknown key of bundle", "format=", "exclusive=1\nformat=", "unknown"},
	{"an unknown key of an image", "size=", "convert=tar-extract\nsize=", "unknown"},
	{"an unknown key of ours", "[bundle]", "[meta.fota]\nsecurity-versoin=6\n[bundle]", "unknown"},
	{"nothing about compatibility", "compatible=acme-gw\n", "", "missing"},
	{"an empty compatible", "=acme-gw", "=", "missing"},
	{"no image", signedManifest[strings.Index(signedManifest, "[image"):], "", "missing"},
	{"compatible with a line in it", "acme-gw", `acme\ngw`, "value"},
	{"a compatible without end", "acme-gw", strings.Repeat("a", 2000), "size"},
	{"no version", "version=2.1.0+sv6\n", "", "version"},
	{"no security version", "+sv6", "", "version"},
	{"two security versions", "[bundle]", "[meta.fota]\nsecurity-version=7\n[bundle]", "version"},
	{"a security version with a zero before it", "[bundle]", "[meta.fota]\nsecurity-version=06\n[bundle]", "version"},
	{"a security version beside another word", "+sv6", "+git1\n[meta.fota]\nsecurity-version=6", "version"},
	{"the zero version", "2.1.0+sv6", "0.0.0+sv0", "version"},
	{"a pre-release", "2.1.0+sv6", "2.1.0-rc1+sv6", "version"},
	{"a version of words", "2.1.0+sv6", "latest", "version"},
	{"a format that is none", "format=verity", "format=casync", "format"},
	{"an empty format", "format=verity", "format=", "format"},
	{"an encrypted bundle", "format=verity", "format=crypt", "crypt"},
	{"a key of encryption", "format=verity", "format=verity\ncrypt-key=" + hex64, "crypt"},
	{"signed as plain, with a hash tree", "format=verity", "format=plain", "verity"},
	{"signed without a format", "format=verity\n", "", "verity"},
	{"no root", "verity-hash=" + hex64 + "\n", "", "verity"},
	{"no salt", "verity-salt=" + hex64 + "\n", "", "verity"},
	{"a short salt", "verity-salt=00", "verity-salt=", "verity"},
	{"a long root", "verity-hash=", "verity-hash=00", "verity"},
	{"a root in upper case", "verity-hash=00112233445566778899aabb", "verity-hash=00112233445566778899AABB", "verity"},
	{"no size of the tree", "verity-size=8192\n", "", "verity"},
	{"a tree of no size", "verity-size=8192", "verity-size=0", "verity"},
	{"a tree of negative size", "verity-size=8192", "verity-size=-8192", "verity"},
	{"a tree that is no blocks", "verity-size=8192", "verity-size=8191", "verity"},
	{"a tree with a sign", "verity-size=8192", "verity-size=+8192", "verity"},
	{"a tree in hexadecimal", "verity-size=8192", "verity-size=0x2000", "verity"},
	{"a tree beyond the limit", "verity-size=8192", "verity-size=9223372036854771712", "verity"},
	{"a tree beyond 64 bits", "verity-size=8192", "verity-size=18446744073709555712", "verity"},
	{"hooks", "[bundle]", "[hooks]\nfilename=hook.sh\nhooks=install-check\n[bundle]", "hooks"},
	{"hooks of an image", "size=", "hooks=pre-install\nsize=", "hooks"},
	{"a handler", "[bundle]", "[handler]\nfilename=install.sh\n[bundle]", "handler"},
	{"an adaptive image", "size=", "adaptive=block-hash-index\nsize=", "adaptive"},
	{"an image for a variant", "[image.rootfs]", "[image.rootfs.v2]", "variant"},
	{"an image for no slot", "[image.rootfs]", "[image.]", "value"},
	{"an image for nothing", "[image.rootfs]", "[image]", "value"},
	{"an image for a slot of many letters", "[image.rootfs]", "[image." + strings.Repeat("a", 33) + "]", "value"},
	{"no file", "filename=rootfs.img\n", "", "filename"},
	{"a file above", "filename=rootfs.img", "filename=../rootfs.img", "filename"},
	{"a file from the root", "filename=rootfs.img", "filename=/etc/passwd", "filename"},
	{"a file in a folder", "filename=rootfs.img", "filename=a/rootfs.img", "filename"},
	{"the folder", "filename=rootfs.img", "filename=.", "filename"},
	{"the folder above", "filename=rootfs.img", "filename=..", "filename"},
	{"a backslash in a file", "filename=rootfs.img", `filename=a\\b`, "filename"},
	{"a newline in a file", "filename=rootfs.img", `filename=a\nb`, "filename"},
	{"a file with a long name", "filename=rootfs.img", "filename=" + strings.Repeat("a", 256), "filename"},
	{"the manifest as an image", "filename=rootfs.img", "filename=manifest.raucm", "filename"},
	{"no size", "size=1048576\n", "", "value"},
	{"size zero", "size=1048576", "size=0", "value"},
	{"a negative size", "size=1048576", "size=-1", "value"},
	{"a size with a zero before it", "size=1048576", "size=01048576", "value"},
	{"a size that no sum can hold", "size=1048576", "size=9223372036854775807", "value"},
	{"a size beyond the limit", "size=1048576", "size=281474976710657", "value"},
	{"a size beyond 64 bits", "size=1048576", "size=9223372036854775808", "value"},
	{"no digest", "sha256=" + hex64 + "\n", "", "value"},
	{"a short digest", "sha256=00", "sha256=", "value"},
	{"a digest of other letters", "sha256=00", "sha256=zz", "value"},
}

// broken returns the signed manifest with one thing wrong.
func broken(t *testing.T, name, old, new string) []byte {
	t.Helper()
	// The last one is the image's, if there are several.
	i := strings.LastIndex(signedManifest, "\n"+old)
	if i++; i == 0 {
		if i = strings.Index(signedManifest, old); i < 0 {
			t.Fatalf("%s: no %q in the manifest", name, old)
		}
	}
	return []byte(signedManifest[:i] + new + signedManifest[i+len(old):])
}

func TestManifestRefuses(t *testing.T) {
	for _, bad := range badManifests {
		_, err := readManifest(broken(t, bad.name, bad.old, bad.new), outside)
		wantRefusal(t, bad.name, err, fota.StageManifest, bad.code)
	}
	for name, text := range map[string]string{"nothing": "", "too many groups": groups(65), "too many images": images(17),
		"too long": strings.Repeat("# comment\n", 7000) + signedManifest} {
		_, err := readManifest([]byte(text), outside)
		wantRefusal(t, name, err, fota.StageManifest, "size")
	}
	_, err := readManifest([]byte(innerManifest), outside)
	wantRefusal(t, "signed without a hash tree", err, fota.StageManifest, "format")
	_, err = readManifest([]byte(signedManifest), inside)
	wantRefusal(t, "a hash tree named in what it covers", err, fota.StageManifest, "verity")
}

func groups(n int) string {
	text := ""
	for i := range n {
		text += "[meta.g" + string(rune('A'+i/26)) + string(rune('a'+i%26)) + "]\n"
	}
	return text
}

func images(n int) string {
	head, image, _ := strings.Cut(signedManifest, "[image.rootfs]")
	for i := range n {
		head += "[image.s" + string(rune('a'+i)) + "]" + image
	}
	return head
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(signedManifest), true)
	f.Add([]byte(innerManifest), false)
	f.Add([]byte("[update]\ncompatible=a\\sb\nversion=1.0.0+sv1\n[meta.fota]\nsecurity-version=1\n"), true)
	f.Fuzz(func(t *testing.T, text []byte, signed bool) {
		at := inside
		if signed {
			at = outside
		}
		m, err := readManifest(text, at)
		if err != nil {
			wantStage(t, err, fota.StageManifest)
			return
		}
		if m.Compatible == "" || m.Version == (fota.Version{}) || len(m.Images) == 0 || len(m.Images) > imageLimit {
			t.Errorf("taken: %+v", m)
		}
		if signed != (m.Format == fota.FormatVerity) && signed {
			t.Errorf("signed, and of format %s", m.Format)
		}
		for _, image := range m.Images {
			if image.Size <= 0 || !isFile(image.File) || image.Slot == "" {
				t.Errorf("taken: %+v", image)
			}
		}
	})
}
