package main

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"birthmark/internal/lab/sign"
	"birthmark/internal/swtpm/swtpmtest"
	"birthmark/pkg/fota"
	bt "birthmark/pkg/fota/bundle/bundletest"
)

// newMaker is a maker and a device that believes him, and nothing else of a world.
func newMaker(t *testing.T, slot int64) (*bt.PKI, *firmware) {
	t.Helper()
	agent, err := filepath.Abs(filepath.Join("..", "..", "bin", "birthmark"))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{dir: t.TempDir(), agent: agent, tpm: swtpmtest.Start(t)}
	pki := bt.NewPKI(t, "P-256", "P-256")
	key, err := x509.MarshalPKCS8PrivateKey(pki.Signer.Key)
	if err != nil {
		t.Fatal(err)
	}
	put := func(name, kind string, all ...[]byte) string {
		var text []byte
		for _, der := range all {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
		}
		if err := os.WriteFile(w.path(name), text, 0o600); err != nil {
			t.Fatal(err)
		}
		return w.path(name)
	}
	issuing := put("issuing.pem", "CERTIFICATE", pki.Issuing.Cert.Raw)
	f, err := w.newFirmware(sign.Signer{
		Certificate: put("signer.pem", "CERTIFICATE", pki.Signer.Cert.Raw), Key: put("key.pem", "PRIVATE KEY", key), Intermediates: []string{issuing},
		Anchors: put("anchors.pem", "CERTIFICATE", pki.Root.Cert.Raw), SigningCAs: issuing,
		CRLs: put("crls.pem", "X509 CRL", bt.CRL(t, pki.Root, nil), bt.CRL(t, pki.Issuing, nil)),
	}, installerUnit, slot)
	if err != nil {
		t.Fatal(err)
	}
	return pki, f
}

// wantMemory holds the most that an installer had against docs/numbers.md.
func (f *firmware) wantMemory(t *testing.T) {
	t.Helper()
	limits := numbers(t)
	i := slices.IndexFunc(limits, func(l limit) bool { return l.name == "installer-memory" })
	if f.memory <= 0 || limits[i].exceeded(f.memory) {
		t.Errorf("the installer had %.1f MiB, want %v", f.memory, limits[i])
	}
	t.Logf("%.1f MiB", f.memory)
}

// TestMemoryWithLargeImages installs an image that is almost all holes: $SPARSE MiB, half
// a gigabyte if that is not set. With 5 GiB, as in make soak, it takes a minute.
func TestMemoryWithLargeImages(t *testing.T) {
	mib := 512
	if text := os.Getenv("SPARSE"); text != "" {
		var err error
		if mib, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	size := int64(mib) << 20
	_, f := newMaker(t, size+verityBlock)
	if err := f.bundle(t.Context(), "sparse", compressions["zstd"], size, fillSparse); err != nil {
		t.Fatal(err)
	}
	if _, err := f.install(t.Context(), "sparse"); err != nil {
		t.Fatal(err)
	}
	f.wantMemory(t)
}

const megabyte = 1 << 20

// TestMemoryWithHostileBundles lets the installer have what was made to fill its memory,
// up to 64 MiB of it: by anybody, and by somebody with the maker's key.
func TestMemoryWithHostileBundles(t *testing.T) {
	pki, f := newMaker(t, 64*megabyte)
	largest := bt.Noise(64*megabyte, "largest")
	unsigned := func(signature []byte) []byte { return bt.Parts{Data: largest, Signature: signature}.Bytes() }
	signed := func(r bt.Release, data []byte) []byte {
		return bt.Build(t, data, r.Manifest(), r.Format, bt.Message{By: pki.Signer}).Bytes()
	}
	good := releaseOf(bt.Noise(2*megabyte, "good"))
	small := bt.Squashfs(t, good.Files, "-comp", "zstd")
	wordy := good
	for i := range 3000 {
		wordy.More += fmt.Sprintf("\n[meta.%d]\na=b\n", i)
	}
	type hostile struct {
		bundle []byte
		stage  fota.Stage // "" for one that is installed
	}
	cases := map[string]hostile{
		"random bytes":             {largest, fota.StageContainer},
		"zeros":                    {make([]byte, 64*megabyte), fota.StageContainer},
		"elements in each other":   {unsigned(bytes.Repeat([]byte{0x30, 0x80}, 32<<10)), fota.StageCMS},
		"elements without number":  {unsigned(bt.TLV(0x30, bytes.Repeat([]byte{0x05, 0x00}, 32_000))), fota.StageCMS},
		"another signer":           {unsigned(bt.Message{Content: []byte("x"), By: bt.NewPKI(t, "P-384", "P-384").Signer}.Sign(t)), fota.StageChain},
		"groups without number":    {signed(wordy, small), fota.StageManifest},
		"random bytes, signed":     {signed(good, largest), fota.StageSquashfs},
		"files without number":     {signed(good, crowd(t, 1023, good)), fota.StageSquashfs},
		"files as many as allowed": {signed(good, crowd(t, 1022, good)), ""},
	}
	for _, c := range []struct {
		compression string
		args        []string
	}{{"gzip", nil}, {"xz", []string{"-Xdict-size", "100%"}}, {"zstd", []string{"-Xcompression-level", "22"}}} {
		args := []string{"-comp", c.compression, "-b", "1M", "-noI", "-no-fragments"}
		large := releaseOf(append(bt.Noise(megabyte, c.compression), bt.Text(2*megabyte)...))
		cases["the largest blocks of "+c.compression] = hostile{signed(large, bt.Squashfs(t, large.Files, append(args, c.args...)...)), ""}
		mined := plant(t, bt.Squashfs(t, good.Files, args...), good, bomb(t, c.compression))
		cases["a bomb of "+c.compression] = hostile{signed(good, mined), fota.StageSquashfs}
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(f.file("hostile"), c.bundle, 0o600); err != nil {
				t.Fatal(err)
			}
			f.memory = 0
			_, err := f.install(context.Background(), "hostile")
			var refusal *fota.Refusal
			if errors.As(err, &refusal); c.stage == "" && err != nil || c.stage != "" && (refusal == nil || refusal.Stage != c.stage) {
				t.Errorf("got %v, want a refusal at %q", err, c.stage)
			}
			f.wantMemory(t)
		})
	}
}

// releaseOf is a release with that root file system.
func releaseOf(root []byte) bt.Release {
	return bt.Release{Compatible: product, Version: release, Format: "verity",
		Files: map[string][]byte{"rootfs.img": append(root, treeTop(release)...), "uki.efi": uki(release, int64(len(root)/verityBlock))},
		Slots: map[string]string{fota.RootSlot: "rootfs.img", fota.UKISlot: "uki.efi"}}
}

// crowd is a file system of so many files besides those of a release, with the longest
// names.
func crowd(t *testing.T, n int, r bt.Release) []byte {
	t.Helper()
	files := maps.Clone(r.Files)
	for i := range n {
		files[fmt.Sprintf("%0255d", i)] = nil
	}
	return bt.Squashfs(t, files, "-comp", "zstd")
}

// bomb is what a compressor makes of 64 MiB of zeros.
func bomb(t *testing.T, compression string) []byte {
	t.Helper()
	const size = 64 * megabyte
	var out bytes.Buffer
	command := map[string][]string{"xz": {"xz", "-1", "-T1", "--check=crc32"}, "zstd": {"zstd", "-q", "-1", "--single-thread"}}[compression]
	if command == nil { // zlib's format, for which there is no command
		w := zlib.NewWriter(&out)
		w.Write(make([]byte, size)) // to memory
		w.Close()
		return out.Bytes()
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout = bytes.NewReader(make([]byte, size)), &out
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// plant replaces the first block of the root file system, which is stored as it is, by
// another that is packed.
func plant(t *testing.T, data []byte, r bt.Release, packed []byte) []byte {
	t.Helper()
	const stored = 1<<24 | megabyte // in the list of blocks
	at := bytes.Index(data, r.Files["rootfs.img"][:4096])
	word := bytes.LastIndex(data, binary.LittleEndian.AppendUint32(nil, stored))
	if at < 0 || word < at+megabyte || len(packed) > megabyte {
		t.Fatalf("there is no place for %d bytes (at %d, %d)", len(packed), at, word)
	}
	// The list has a word for each block: this is the last of two.
	word -= bytes.Count(data[word-64:word], binary.LittleEndian.AppendUint32(nil, stored)) * 4
	copy(data[at:], packed)
	binary.LittleEndian.PutUint32(data[word:], uint32(len(packed)))
	return data
}
