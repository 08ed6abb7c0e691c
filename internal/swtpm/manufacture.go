package swtpm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Manufacture makes a new TPM in dir, which must exist: state in dir/tpm with
// endorsement keys and their certificates in NV (RSA-2048 at 0x01C00002, P-384 at
// 0x01C00016), signed by an authority of its own in dir/ca. It takes about a
// second. A folder that already holds a TPM keeps it.
func Manufacture(ctx context.Context, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("cannot manufacture a TPM: %w", err)
	}
	for _, sub := range []string{"tpm", "ca"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return fmt.Errorf("cannot manufacture a TPM: %w", err)
		}
	}
	for name, text := range setupFiles(filepath.Join(dir, "ca")) {
		if err := os.WriteFile(filepath.Join(dir, "ca", name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("cannot manufacture a TPM: %w", err)
		}
	}
	setup := exec.CommandContext(ctx, "swtpm_setup", "--tpm2",
		"--tpmstate", filepath.Join(dir, "tpm"),
		"--config", filepath.Join(dir, "ca", "setup.conf"),
		"--create-ek-cert", "--lock-nvram", "--not-overwrite")
	if out, err := setup.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot manufacture a TPM: swtpm_setup: %w: %s", err, out[max(0, len(out)-logLimit):])
	}
	return nil
}

// setupFiles is the configuration that keeps swtpm_setup and swtpm_localca
// inside ca, instead of the machine's /var/lib/swtpm-localca.
func setupFiles(ca string) map[string]string {
	in := func(name string) string { return filepath.Join(ca, name) }
	return map[string]string{
		"setup.conf": "create_certs_tool = swtpm_localca\n" +
			"create_certs_tool_config = " + in("localca.conf") + "\n" +
			"create_certs_tool_options = " + in("localca.options") + "\n",
		"localca.conf": "statedir = " + ca + "\n" +
			"signingkey = " + in("key.pem") + "\n" +
			"issuercert = " + in("cert.pem") + "\n" +
			"certserial = " + in("serial") + "\n",
		"localca.options": "--tpm-manufacturer IBM\n--tpm-model swtpm-libtpms\n--tpm-version 2\n" +
			"--platform-manufacturer Birthmark\n--platform-model lab\n--platform-version 1\n",
	}
}
