package diag

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"birthmark/internal/config"
)

// unpack reads a bundle.
func unpack(t *testing.T, bundle []byte) map[string]string {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(bundle))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(text)
	}
}

func part(name, text string, err error) Part {
	return Part{name, func() ([]byte, error) {
		if text == "" {
			return nil, err
		}
		return []byte(text), err
	}}
}

func TestABundleSaysWhatIsMissingAndHasAnEnd(t *testing.T) {
	var b bytes.Buffer
	err := Write(&b, time.Now(),
		part("whole", "text", nil),
		part("half", "text", errors.New("torn")),
		part("none", "", errors.New("not allowed")),
		part("large", strings.Repeat("x", partLimit), nil),
		part("too-large", strings.Repeat("x", partLimit+1), nil))
	if err != nil {
		t.Fatal(err)
	}
	files := unpack(t, b.Bytes())
	want := map[string]int{"whole": 4, "half": 4, "large": partLimit, "missing.txt": -1}
	if len(files) != len(want) {
		t.Errorf("got %d files, want %d", len(files), len(want))
	}
	for name, size := range want {
		if text, ok := files["birthmark-diag/"+name]; !ok || size >= 0 && len(text) != size {
			t.Errorf("%s: %d bytes (%t), want %d", name, len(text), ok, size)
		}
	}
	const missing = "half: torn\nnone: not allowed\ntoo-large: 262145 bytes, limit 262144\n"
	if got := files["birthmark-diag/missing.txt"]; got != missing {
		t.Errorf("missing.txt says %q, want %q", got, missing)
	}
}

func TestOfTheAuditLogTheEndIsTaken(t *testing.T) {
	dir := t.TempDir()
	if _, err := Audit(dir).Read(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a log: %v", err)
	}
	var all strings.Builder
	for n := range 3000 {
		fmt.Fprintf(&all, `{"seq":%d,"event":"something that happened"}`+"\n", n)
	}
	for _, log := range []string{"{}\n", all.String()} {
		if err := os.WriteFile(filepath.Join(dir, "audit.log"), []byte(log), 0o600); err != nil {
			t.Fatal(err)
		}
		text, err := Audit(dir).Read()
		if err != nil || !strings.HasSuffix(log, string(text)) || len(text) == 0 || len(text) > auditLimit || text[0] != '{' {
			t.Errorf("of %d bytes: %d, beginning %.20q, %v; want whole lines of the end", len(log), len(text), text, err)
		}
	}
}

func TestAPasswordInAnAddressIsLeftOut(t *testing.T) {
	l, err := config.Load(config.Options{Root: t.TempDir(), Env: []string{
		"BIRTHMARK_EST__URL=https://me:hunter2@est.example:8443/x",
		"BIRTHMARK_BIRTH__URL=https://me:hunter2@est.example:port",
		"BIRTHMARK_BROKER__URLS=mqtts://mqtt.example:8883,mqtts://hunter2@mqtt.example:8883",
		"BIRTHMARK_EST__PASSWORD_FILE=/etc/secret",
	}})
	if err != nil {
		t.Fatal(err)
	}
	text, err := Configuration(l).Read()
	if err != nil || bytes.Contains(text, []byte("hunter2")) {
		t.Errorf("%v, and it says\n%s", err, text)
	}
	for _, want := range []string{"https://redacted@est.example:8443/x", `"mqtts://mqtt.example:8883"`, "mqtts://redacted@mqtt.example:8883", "/etc/secret", "BIRTHMARK_EST__URL"} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("it does not say %q", want)
		}
	}
}
