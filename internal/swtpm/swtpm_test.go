package swtpm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"birthmark/internal/swtpm"
	"birthmark/internal/swtpm/swtpmtest"
)

// random asks the TPM for 8 bytes: TPM2_GetRandom.
func random(t *testing.T, tpm *swtpm.TPM) []byte {
	t.Helper()
	network, addr, _ := strings.Cut(tpm.Address(), ":")
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte{0x80, 1, 0, 0, 0, 12, 0, 0, 0x01, 0x7b, 0, 8}); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 10+2+8)
	if _, err := io.ReadFull(c, answer); err != nil {
		t.Fatal(err)
	}
	if code := binary.BigEndian.Uint32(answer[6:]); code != 0 {
		t.Fatalf("TPM2_GetRandom: got response code %#x, want success", code)
	}
	return answer[12:]
}

func TestAnswersAfterEveryKindOfPowerOff(t *testing.T) {
	dir := swtpmtest.Dir(t)
	off := []struct {
		name string
		do   func(*swtpm.TPM) error
	}{
		{"orderly", (*swtpm.TPM).Stop},
		{"power cut", func(tpm *swtpm.TPM) error { tpm.Kill(); return nil }},
		{"both, twice", func(tpm *swtpm.TPM) error {
			tpm.Kill()
			tpm.Kill()
			return errors.Join(tpm.Stop(), tpm.Stop())
		}},
	}
	for _, o := range off {
		tpm, err := swtpm.Start(t.Context(), dir)
		if err != nil {
			t.Fatalf("before %s: %v", o.name, err)
		}
		if a, b := random(t, tpm), random(t, tpm); bytes.Equal(a, b) {
			t.Errorf("before %s: random bytes are %x twice", o.name, a)
		}
		if err := o.do(tpm); err != nil {
			t.Errorf("%s: %v", o.name, err)
		}
	}
}

func TestStopDoesNotWaitForAClient(t *testing.T) {
	tpm := swtpmtest.Start(t)
	c, err := net.Dial("unix", strings.TrimPrefix(tpm.Address(), "unix:"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := tpm.Stop(); err != nil {
		t.Error(err)
	}
}

func TestEveryTestHasItsOwnCopy(t *testing.T) {
	a, b, c := swtpmtest.Start(t), swtpmtest.Start(t), swtpmtest.StartOther(t)
	read := func(tpm *swtpm.TPM) string {
		b, err := os.ReadFile(filepath.Join(tpm.Dir(), "tpm", "tpm2-00.permall"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if a.Dir() == b.Dir() {
		t.Error("two starts share a folder")
	}
	if read(a) == read(c) {
		t.Error("StartOther gave the same TPM as Start")
	}
}

func TestDebianToolsReachIt(t *testing.T) {
	tpm, err := swtpm.StartTCP(t.Context(), swtpmtest.Dir(t))
	if err != nil {
		t.Fatal(err)
	}
	defer tpm.Kill()
	for range 2 {
		out, err := exec.CommandContext(t.Context(), "tpm2_getcap", "--tcti", tpm.TCTI(), "handles-nv-index").CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("0x1C00016")) {
			t.Fatalf("tpm2_getcap: %v, got %q, want the EK certificate's index 0x1C00016", err, out)
		}
		random(t, tpm) // our own transport's way in
	}
}

func TestStartSaysWhyNot(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("x", 120))
	missing := t.TempDir() // holds no TPM, and swtpm makes none in a missing tpm/
	for name, tt := range map[string]struct{ dir, want string }{
		"path too long": {long, "at most 107"},
		"no TPM":        {missing, "it ended at once"},
	} {
		tpm, err := swtpm.Start(t.Context(), tt.dir)
		if err == nil {
			tpm.Kill()
			t.Errorf("%s: started", name)
		} else if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %q, want it to say %q", name, err, tt.want)
		}
	}
}
