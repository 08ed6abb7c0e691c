package board

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/sdboot/pe/petest"
)

// A Release is what goes into a root file system, and what starts it.
type Release struct {
	Name    string // of the product: IMAGE_ID
	Version fota.Version
	Agent   string // the device binary, a file of this machine; only a link to it is in the image
	Files   map[string]File
	Load    int  // bytes that nothing compresses, besides
	Panics  bool // there is no init: its kernel panics
}

// A File is one in a root file system, by its path there, without a slash before it.
type File struct {
	Text []byte
	Mode fs.FileMode // permissions
}

// An Image is a release in two files, which can go into a bundle.
type Image struct {
	Release
	Root string // the root file system and its hash tree
	UKI  string // signed for Secure Boot
}

// Build builds a release into two new files in the folder dir, which starts where key's
// signature counts.
func (r Release) Build(ctx context.Context, dir string, key *Key) (*Image, error) {
	i := &Image{r, filepath.Join(dir, "rootfs-"+r.Version.String()), filepath.Join(dir, "uki-"+r.Version.String())}
	if err := i.build(ctx, key); err != nil {
		return nil, fmt.Errorf("cannot build %v: %w", r.Version, err)
	}
	return i, nil
}

func (i *Image) build(ctx context.Context, key *Key) error {
	data, err := i.archive()
	if err != nil {
		return err
	}
	var salt [32]byte
	_, _ = rand.Read(salt[:]) // it never fails
	tree, root := hashTree(data, salt)
	if err := os.WriteFile(i.Root, append(data, tree...), 0o600); err != nil {
		return err
	}
	line := fmt.Sprintf("init=/%s panic=1 verity.blocks=%d verity.salt=%x verity.hash=%x", initPath, len(data)/blockSize, salt, root)
	uki := petest.Program(
		petest.Section{Name: ".osrel", Text: i.osRelease()},
		petest.Section{Name: ".cmdline", Text: line},
		petest.Section{Name: ".linux", Text: "the kernel of " + i.Version.String()},
	)
	if err := os.WriteFile(i.UKI, uki, 0o600); err != nil {
		return err
	}
	return key.sign(ctx, i.UKI)
}

func (i *Image) osRelease() string {
	return fmt.Sprintf("ID=%s\nIMAGE_ID=%s\nIMAGE_VERSION=%v\n", i.Name, i.Name, i.Version)
}

const (
	releasePath = "usr/lib/os-release"
	initPath    = "sbin/init"

	loadLeast = 64 << 10 // bytes: rauc makes no bundle of next to nothing
)

// archive is the root file system, a tar archive in whole blocks.
func (i *Image) archive() ([]byte, error) {
	agent, err := filepath.Abs(i.Agent)
	if err != nil {
		return nil, err
	}
	load := make([]byte, max(i.Load, loadLeast))
	_, _ = rand.Read(load) // it never fails
	files := map[string]File{
		"usr/share/load": {load, 0o644},
		releasePath:      {[]byte(i.osRelease()), 0o644},
		agentPath:        {[]byte(agent), fs.ModeSymlink},
		initPath:         {[]byte("the board"), 0o755},
	}
	maps.Copy(files, i.Files)
	if i.Panics {
		delete(files, initPath)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f := files[name]
		h := &tar.Header{Name: name, Mode: int64(f.Mode.Perm()), Size: int64(len(f.Text))}
		if f.Mode.Type() == fs.ModeSymlink {
			h.Typeflag, h.Linkname, h.Size, f.Text = tar.TypeSymlink, string(f.Text), 0, nil
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.Text); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return pad(b.Bytes()), nil
}

// unpack unpacks an archive into a folder.
func unpack(archive []byte, folder string) error {
	root, err := os.OpenRoot(folder)
	if err != nil {
		return err
	}
	defer root.Close()
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		text, err := io.ReadAll(r)
		if err == nil {
			err = root.MkdirAll(filepath.Dir(h.Name), 0o755)
		}
		switch {
		case err != nil:
		case h.Typeflag == tar.TypeSymlink:
			err = root.Symlink(h.Linkname, h.Name)
		default:
			err = root.WriteFile(h.Name, text, fs.FileMode(h.Mode).Perm())
		}
		if err != nil {
			return err
		}
	}
}
