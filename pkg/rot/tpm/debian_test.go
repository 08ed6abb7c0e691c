package tpm_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"birthmark/internal/swtpm"
	"birthmark/internal/swtpm/swtpmtest"
	"birthmark/pkg/rot"
	"birthmark/pkg/rot/rottest"
	"birthmark/pkg/rot/tpm"
	"birthmark/pkg/rot/tpm/keyfile"
)

// Debian's tpm2-tools, which share no code with us, load our key files and see the
// protection that we promise.
func TestDebianReadsOurKeys(t *testing.T) {
	s, err := swtpm.StartTCP(t.Context(), swtpmtest.Dir(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Kill()
	r := open(t, tpm.Config{Address: s.Address()})
	var files []rot.Blob
	for _, a := range rottest.Algorithms {
		k := create(t, r, a)
		files = append(files, k.Blob())
		k.Close()
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	for i, blob := range files {
		out := inspect(t, s, blob)
		for _, want := range []string{"fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign", "0x81000001"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: tpm2-tools say %s, want %q in it", rottest.Algorithms[i], out, want)
			}
		}
	}
}

// inspect loads a key file's parts with tpm2_load and returns what tpm2_readpublic
// says of it.
func inspect(t *testing.T, s *swtpm.TPM, blob rot.Blob) string {
	t.Helper()
	k, err := keyfile.Parse(blob)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, b := range map[string][]byte{"pub": k.Public, "priv": k.Private} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var all strings.Builder
	for _, args := range [][]string{
		{"tpm2_load", "-Q", "-C", "0x81000001", "-u", "pub", "-r", "priv", "-c", "key.ctx"},
		{"tpm2_readpublic", "-c", "key.ctx"},
		{"tpm2_flushcontext", "-t"},
		{"tpm2_getcap", "handles-persistent"},
	} {
		c := exec.CommandContext(t.Context(), args[0], args[1:]...)
		c.Dir = dir
		c.Env = append(os.Environ(), "TPM2TOOLS_TCTI="+s.TCTI())
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
		all.Write(out)
	}
	return all.String()
}
