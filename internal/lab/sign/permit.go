package sign

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"birthmark/pkg/fota/permit"
	"birthmark/pkg/store"
)

// Owner returns who signs permits in the lab in the folder dir, as [Lab] returns who signs
// firmware: by a CA of his own, below permits.
func Owner(dir string) (Signer, error) {
	s, err := lab(filepath.Join(dir, "permits"), "Permits")
	if err != nil {
		return Signer{}, fmt.Errorf("cannot use the owner's CA in %s: %w", dir, err)
	}
	return s, nil
}

// Permit signs a permit, and writes it to the file out if a device takes it from this
// signer.
func Permit(ctx context.Context, p permit.Permit, by Signer, out string) error {
	text, err := p.Text()
	if err != nil {
		return &ReleaseError{err.Error()}
	}
	trust, err := by.trust()
	if err != nil {
		return err
	}
	signed, err := signText(ctx, text, by)
	if err != nil {
		return err
	}
	if _, _, err := permit.Open(signed, trust); err != nil {
		return fmt.Errorf("a device would not take the permit: %w", err)
	}
	return store.WriteFile(out, signed, 0o644)
}

// signText has openssl sign a text.
func signText(ctx context.Context, text []byte, by Signer) (signed []byte, err error) {
	if _, err := exec.LookPath("openssl"); err != nil {
		return nil, &MissingError{"openssl", "openssl"}
	}
	args := []string{"cms", "-sign", "-binary", "-nodetach", "-md", "sha256", "-outform", "PEM", "-signer", by.Certificate, "-inkey", by.Key}
	if len(by.Intermediates) > 0 { // of several files openssl takes the last only
		f, err := os.CreateTemp("", "birthmark-sign-")
		if err != nil {
			return nil, err
		}
		defer os.Remove(f.Name())
		for _, path := range by.Intermediates {
			above, err := os.ReadFile(path)
			if err != nil {
				return nil, errors.Join(err, f.Close())
			}
			if _, err := f.Write(append(above, '\n')); err != nil {
				return nil, errors.Join(err, f.Close())
			}
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
		args = append(args, "-certfile", f.Name())
	}
	cmd := exec.CommandContext(ctx, "openssl", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // it cannot ask a terminal for a password
	cmd.WaitDelay = farewell
	cmd.Stdin = bytes.NewReader(text)
	var said tail
	cmd.Stderr = &said
	signed, err = cmd.Output()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(string(said.text)), "\n")
		return nil, fmt.Errorf("openssl: %s", cmp.Or(first, err.Error()))
	}
	return signed, nil
}
