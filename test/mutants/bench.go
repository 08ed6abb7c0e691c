package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// patience is how long a test may take. A mutant may well make one wait for ever:
// that is noticed, too.
const patience = 5 * time.Minute

// A bench is a copy of the tree, to break things in.
type bench struct {
	ctx  context.Context
	dir  string
	tree string // the copy
	test string // the program of the test that was built last
}

// newBench copies what git would commit.
func newBench(ctx context.Context) (*bench, error) {
	dir, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return nil, err
	}
	b := &bench{ctx: ctx, dir: dir, tree: filepath.Join(dir, "birthmark"), test: filepath.Join(dir, "mutant.test")}
	out, err := exec.CommandContext(ctx, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		b.remove()
		return nil, fmt.Errorf("cannot list the files with git: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		if err := copyFile(filepath.Join(b.tree, name), name); err != nil {
			b.remove()
			return nil, err
		}
	}
	return b, nil
}

func copyFile(to, from string) error {
	info, err := os.Lstat(from)
	if errors.Is(err, os.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return nil // deleted and not committed, or a link, which no test reads
	}
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, text, info.Mode().Perm())
}

func (b *bench) remove() { os.RemoveAll(b.dir) }

var errStillGreen = errors.New("SURVIVED: the test is green")

// green makes sure that a test is there and passes.
func (b *bench) green(t test) error {
	if err := b.build(t); err != nil {
		return err
	}
	out, err := b.run(t)
	if err != nil {
		return fmt.Errorf("it is red: %w\n%s", err, out)
	}
	if bytes.Contains(out, []byte("no tests to run")) {
		return errors.New("there is no such test")
	}
	return nil
}

// try applies a mutant, lets its test run and takes the mutant back. It returns
// what the test said, and no error if it went red.
func (b *bench) try(m mutant) (said []byte, err error) {
	if err := b.apply(m); err != nil {
		return nil, fmt.Errorf("the patch does not apply: %w", err)
	}
	said, err = b.notices(m.red)
	return said, errors.Join(err, b.apply(m, "--reverse"))
}

func (b *bench) notices(t test) (said []byte, err error) {
	if err := b.build(t); err != nil {
		return nil, err
	}
	said, err = b.run(t)
	if ctx := b.ctx.Err(); ctx != nil {
		return said, ctx
	}
	if err == nil {
		return said, errStillGreen
	}
	return said, nil
}

func (b *bench) apply(m mutant, flags ...string) error {
	cmd := exec.CommandContext(b.ctx, "git", append([]string{"apply"}, flags...)...)
	cmd.Dir, cmd.Stdin = b.tree, bytes.NewReader(m.patch)
	// No repository: names in a patch are those of the copy.
	cmd.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+b.dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// build builds the program of a test. One that does not compile proves nothing.
func (b *bench) build(t test) error {
	// As `make build` builds, so that both share the cache, and without vet: a
	// fault may leave a variable that is not looked at.
	cmd := exec.CommandContext(b.ctx, "go", "test", "-c", "-trimpath", "-vet=off", "-o", b.test, "./"+t.folder)
	cmd.Dir, cmd.Env = b.tree, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("it does not compile: %w\n%s", err, out)
	}
	return nil
}

// run runs the test in its folder, where its data lies.
func (b *bench) run(t test) ([]byte, error) {
	// The test's own deadline comes first, and says where it stood.
	ctx, cancel := context.WithTimeout(b.ctx, patience+10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.test, "-test.run="+t.pattern, "-test.failfast", "-test.timeout="+patience.String())
	cmd.Dir = filepath.Join(b.tree, t.folder)
	cmd.WaitDelay = time.Second // for output of what it leaves behind
	return cmd.CombinedOutput()
}

func timedOut(said []byte) bool { return bytes.Contains(said, []byte("panic: test timed out after")) }
