// Package agenttest asserts what must hold of every device at every moment. It
// is for tests: of the agent in the process (power cuts) and of the real binary
// (kill -9).
package agenttest

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"birthmark/internal/agent"
	"birthmark/internal/config"
	"birthmark/pkg/audit"
	"birthmark/pkg/lifecycle"
	"birthmark/pkg/rot"
	"birthmark/pkg/rot/tpm"
	"birthmark/pkg/store"
)

// CheckState asserts that what the state folder dir claims is true of the TPM at
// address: the IDevID certificate and the LDevID certificate are for keys that
// the TPM holds, a request under way has its key. It returns the state; a folder
// without a state file is blank.
func CheckState(tb testing.TB, dir, address string) agent.Device {
	tb.Helper()
	d, _, err := store.Read[agent.Device](dir)
	if errors.Is(err, fs.ErrNotExist) {
		return d
	}
	if err != nil {
		tb.Fatalf("half a state: %v", err)
	}
	root, err := tpm.Open(tb.Context(), tpm.Config{Address: address, Known: d.Root})
	if err != nil {
		tb.Fatalf("cannot open the TPM of %s: %v", d.ID, err)
	}
	defer root.Close()
	if d.State != lifecycle.Blank {
		key, err := root.IDevID(tb.Context())
		if err != nil {
			tb.Fatal(err)
		}
		defer key.Close()
		matches(tb, d.ID, d.Birth.Chain, key, "IDevID")
	}
	if d.State == lifecycle.Enrolled || d.State == lifecycle.Operational {
		key := open(tb, root, d.Owner.Key, "LDevID")
		defer key.Close()
		matches(tb, d.ID, d.Owner.Chain, key, "LDevID")
	}
	if d.Asking.Key != "" {
		open(tb, root, d.Asking.Key, "requested LDevID").Close()
	}
	return d
}

func open(tb testing.TB, root rot.Root, blob, what string) rot.Key {
	tb.Helper()
	key, err := root.Open(tb.Context(), rot.Blob(blob))
	if err != nil {
		tb.Fatalf("the %s is lost: %v", what, err)
	}
	return key
}

func matches(tb testing.TB, id, chain string, key rot.Key, what string) {
	tb.Helper()
	certs, err := config.ParseCertificates([]byte(chain))
	if err != nil {
		tb.Fatalf("%s of %s: %v", what, id, err)
	}
	if !agent.SamePublicKey(certs[0], key) || certs[0].Subject.CommonName != id {
		tb.Errorf("the %s certificate of %s is not for the key and the name of %s", what, certs[0].Subject, id)
	}
}

// CheckIssued asserts that the CA whose folder is dir issued exactly one
// certificate for the device id.
func CheckIssued(tb testing.TB, dir, id string) {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "issued.jsonl"))
	if err != nil {
		tb.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		var entry struct{ Subject string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			tb.Fatal(err)
		}
		if entry.Subject == "CN="+id {
			n++
		}
	}
	if n != 1 {
		tb.Errorf("%s issued %d certificates for %s, want 1", filepath.Base(dir), n, id)
	}
}

// CheckAudit asserts that the audit log in the state folder dir is whole.
func CheckAudit(tb testing.TB, dir string) {
	tb.Helper()
	f, err := os.Open(filepath.Join(dir, "audit.log"))
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	if _, n, err := audit.Verify(f, ""); err != nil || n == 0 {
		tb.Errorf("audit log of %d entries: %v", n, err)
	}
}
