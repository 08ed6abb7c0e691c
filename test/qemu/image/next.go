package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Next makes the next release of a product in dir: its root file system is that of img but
// for the version and some programs more, by their paths; kernel, initrd and keys are the
// same. It is no disk, but what is installed on one, and takes a second.
func (img *Image) Next(ctx context.Context, dir, version string, programs map[string]string) (*Image, error) {
	next := &Image{Dir: dir, Version: version, Root: filepath.Join(dir, "root.img"), Keys: img.Keys, kernel: img.kernel, initrd: img.initrd}
	if err := next.change(ctx, img.Root, programs); err != nil {
		return nil, fmt.Errorf("cannot make %s of %s: %w", version, img.Version, err)
	}
	return next, nil
}

// change makes the root file system of another one.
func (img *Image) change(ctx context.Context, root string, programs map[string]string) error {
	if err := run(ctx, "cp", "--sparse=always", root, img.Root); err != nil {
		return err
	}
	const osReleasePath = "/usr/lib/os-release"
	files := map[string]string{osReleasePath: osRelease(img.Version)}
	for name, text := range programs {
		files[name] = text
	}
	for name, text := range files {
		mode := "0100755"
		if name == osReleasePath {
			mode = "0100644"
		}
		if err := img.put(ctx, name, text, mode); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(img.Root, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	img.Verity, err = addTree(f, fileSystem/blockSize, sha256.Sum256([]byte("birthmark "+img.Version)))
	return errors.Join(err, f.Close())
}

// put writes a file into the root file system, in place of what may be there. debugfs says
// whether that went well to people only.
func (img *Image) put(ctx context.Context, name, text, mode string) error {
	dir, err := os.MkdirTemp("", "bm-next")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	from, script := filepath.Join(dir, "file"), filepath.Join(dir, "script")
	folder, base := path.Split(name)
	steps := fmt.Sprintf("mkdir %s\ncd %s\nrm %s\nwrite %s %s\nset_inode_field %s mode %s\n", strings.TrimSuffix(folder, "/"), folder, base, from, base, base, mode)
	if err := errors.Join(os.WriteFile(from, []byte(text), 0o644), os.WriteFile(script, []byte(steps), 0o600)); err != nil {
		return err
	}
	said, err := output(ctx, "debugfs", "-w", "-f", script, img.Root)
	if err != nil {
		return err
	}
	to := filepath.Join(dir, "back")
	if err := run(ctx, "debugfs", "-R", "dump -p "+name+" "+to, img.Root); err != nil {
		return err
	}
	if got, err := os.ReadFile(to); err != nil || string(got) != text {
		return fmt.Errorf("%s is not what was written (%w): %s", name, err, said)
	}
	return nil
}
