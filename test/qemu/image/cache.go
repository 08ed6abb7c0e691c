package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// CacheDir is where things are kept that take long to make and depend on Debian
// only: $BIRTHMARK_CACHE, or out/cache in the repository that holds the current
// folder.
func CacheDir() (string, error) {
	if dir := os.Getenv("BIRTHMARK_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	top, err := Top()
	if err != nil {
		return "", err
	}
	return filepath.Join(top, "out", "cache"), nil
}

// Top is the repository's folder: the one with go.mod, at or above the current one.
func Top() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		above := filepath.Dir(dir)
		if above == dir {
			return "", errors.New("cannot find the repository: no go.mod at or above the current folder")
		}
		dir = above
	}
}

// cached returns the path of what fill makes: dir/NAME-KEY, where KEY stands for
// the recipe, so that a changed recipe is another thing. Of several processes that
// want it at once, one makes it and the others wait. What fill left half done is
// not taken for the thing: it has another name until it is whole.
func cached(dir, name, recipe string, fill func(path string) error) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, fmt.Sprintf("%s-%.6x", name, sha256.Sum256([]byte(recipe))))
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("cannot lock %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return path, err
	}
	half := path + ".half"
	if err := os.RemoveAll(half); err != nil {
		return "", err
	}
	if err := fill(half); err != nil {
		return "", errors.Join(err, os.RemoveAll(half))
	}
	return path, os.Rename(half, path)
}

// run runs a program of the build machine to its end.
func run(ctx context.Context, program string, args ...string) error {
	_, err := output(ctx, program, args...)
	return err
}

// output is run for what the program prints. An error tells the end of that, too.
func output(ctx context.Context, program string, args ...string) (string, error) {
	return command(exec.CommandContext(ctx, program, args...))
}

func command(cmd *exec.Cmd) (string, error) {
	// Debian puts tools that make file systems where only root looks.
	cmd.Env = append(cmd.Environ(), "LC_ALL=C", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if path, err := exec.LookPath("/usr/sbin/" + cmd.Args[0]); cmd.Err != nil && err == nil {
		cmd.Path, cmd.Err = path, nil
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%w: run make setup", err)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args[:min(2, len(cmd.Args))], " "), err, tail(out))
	}
	return string(out), nil
}

// tail is the end of what a program said, as much as an error has room for.
func tail(out []byte) string {
	const limit = 2000
	return strings.TrimSpace(string(out[max(0, len(out)-limit):]))
}
