package firmware

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"birthmark/internal/lab/sign"
	"birthmark/pkg/fota"
	bt "birthmark/pkg/fota/bundle/bundletest"
	"birthmark/pkg/fota/sdboot/pe/petest"
)

const (
	runs, next, later = "1.0.0+sv1", "1.1.0+sv2", "1.2.0+sv2"

	product   = "acme-gw"
	blockSize = 4096
	rootSize  = 384 * blockSize // of the file system before its hash tree
	slotSize  = 512 * blockSize
)

// works is the folder of what all tests share.
var works string

// A maker has the releases that devices are offered.
type maker struct {
	sign.Signer
	bundles map[string][]byte // by version
	foreign []byte            // next, signed by somebody else
}

// theMaker makes all bundles, once.
var theMaker = sync.OnceValues(func() (m maker, err error) {
	if works, err = os.MkdirTemp("", "firmware-"); err != nil {
		return m, err
	}
	m.bundles = map[string][]byte{}
	if m.Signer, err = sign.Lab(filepath.Join(works, "maker")); err != nil {
		return m, err
	}
	stranger, err := sign.Lab(filepath.Join(works, "stranger"))
	if err != nil {
		return m, err
	}
	if m.bundles[next], err = bundleOf(next, m.Signer); err != nil {
		return m, err
	}
	// As long as the other, which one can take the place of: an ECDSA signature varies by
	// a few bytes.
	for range 50 {
		if m.bundles[later], err = bundleOf(later, m.Signer); err != nil {
			return m, err
		}
		if len(m.bundles[later]) == len(m.bundles[next]) {
			break
		}
	}
	if len(m.bundles[later]) != len(m.bundles[next]) {
		return m, errors.New("no two bundles have the same length")
	}
	m.foreign, err = bundleOf(next, stranger)
	return m, err
})

func version(s string) fota.Version {
	v, err := fota.ParseVersion(s)
	if err != nil {
		panic(err)
	}
	return v
}

// bundleOf makes a release, signs what starts it for Secure Boot, and bundles both.
func bundleOf(v string, by sign.Signer) ([]byte, error) {
	folder, err := os.MkdirTemp(works, "release-")
	if err != nil {
		return nil, err
	}
	root, uki, out := filepath.Join(folder, "rootfs.img"), filepath.Join(folder, "uki.efi"), filepath.Join(folder, "bundle")
	if err := os.WriteFile(root, rootOf(v), 0o600); err != nil {
		return nil, err
	}
	if err := os.WriteFile(uki, programOf(v), 0o600); err != nil {
		return nil, err
	}
	key, cert := filepath.Join(works, "db.key"), filepath.Join(works, "db.pem")
	if _, err := os.Stat(key); err != nil {
		if err := tool("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=db", "-keyout", key, "-out", cert); err != nil {
			return nil, err
		}
	}
	if err := tool("sbsign", "--key", key, "--cert", cert, "--output", uki, uki); err != nil {
		return nil, err
	}
	release := sign.Release{Compatible: product, Version: version(v), Compression: sign.Zstd, Time: time.Unix(1700000000, 0),
		Images: []sign.Image{{Slot: fota.RootSlot, Path: root}, {Slot: fota.UKISlot, Path: uki}}}
	if _, err := sign.Firmware(context.Background(), release, by, out, func(string) {}); err != nil {
		return nil, err
	}
	return os.ReadFile(out)
}

func tool(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %q: %w\n%s", name, args, err, out)
	}
	return nil
}

// treeTop is the first block of the hash tree behind a release's root file system. It is
// all of it that a device looks at before it starts it.
func treeTop(v string) []byte { return bytes.Repeat([]byte(v), blockSize)[:blockSize] }

func rootOf(v string) []byte { return append(bt.Noise(rootSize, v), treeTop(v)...) }

// commandLine is the kernel's, of a release.
func commandLine(v string) string {
	salt := sha256.Sum256([]byte("salt"))
	root := sha256.Sum256(append(salt[:], treeTop(v)...))
	return fmt.Sprintf("quiet init=/sbin/init verity.hash=%x verity.salt=%x verity.blocks=%d\n", root, salt, rootSize/blockSize)
}

// programOf is the UKI of a release, not signed yet.
func programOf(v string) []byte {
	return petest.Program(petest.Section{Name: ".osrel", Text: "IMAGE_ID=" + product + "\nIMAGE_VERSION=" + v + "\n"},
		petest.Section{Name: ".cmdline", Text: commandLine(v)},
		petest.Section{Name: ".linux", Text: "the kernel of " + v})
}
