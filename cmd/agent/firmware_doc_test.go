package main

import (
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	bt "birthmark/pkg/fota/bundle/bundletest"
)

// differs is what is another in every run of the manual's example.
var differs = regexp.MustCompile(`serial [0-9a-f]+|\d{4}-\d\d-\d\d|all \d+ bytes`)

// TestTheManualShowsWhatHappens runs the example of docs/firmware.md, as it stands there.
func TestTheManualShowsWhatHappens(t *testing.T) {
	text, err := os.ReadFile("../../docs/firmware.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "```\n$ cat update/manifest.raucm\n")
	shown, _, ok := strings.Cut(rest, "\n```\n")
	manifest, steps, _ := strings.Cut(shown, "\n$ ")
	if !ok || steps == "" {
		t.Fatal("docs/firmware.md shows no example")
	}
	dir := t.TempDir()
	put := func(name, text string) { write(t, filepath.Join(dir, name), text) }
	maker := bt.NewPKI(t, "P-256", "P-256")
	key, err := x509.MarshalPKCS8PrivateKey(maker.Signer.Key)
	if err != nil {
		t.Fatal(err)
	}
	put("release.key", string(inPEM("PRIVATE KEY", key)))
	put("release.pem", string(inPEM("CERTIFICATE", maker.Signer.Cert.Raw)))
	put("ca.pem", string(inPEM("CERTIFICATE", maker.Issuing.Cert.Raw)))
	put("root.pem", string(inPEM("CERTIFICATE", maker.Root.Cert.Raw)))
	put("crls.pem", string(inPEM("X509 CRL", bt.CRL(t, maker.Root, nil), bt.CRL(t, maker.Issuing, nil))))
	if err := os.Mkdir(filepath.Join(dir, "update"), 0o700); err != nil {
		t.Fatal(err)
	}
	put("update/manifest.raucm", manifest+"\n")
	put("update/rootfs.ext4", string(bt.Text(1<<20-100_000))+string(bt.Noise(100_000, "rootfs")))

	binary := build(t, nil)
	var happened strings.Builder
	for step := range strings.SplitSeq(steps, "\n$ ") {
		command := step[:commandLength(step)]
		cmd := exec.CommandContext(t.Context(), "sh", "-c", command)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(binary)+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		happened.WriteString("\n$ " + command + "\n")
		for line := range strings.Lines(string(out)) {
			if !strings.HasPrefix(line, "rauc-Message: ") { // a log, with the time
				happened.WriteString(line)
			}
		}
	}
	steps = "\n$ " + strings.ReplaceAll(steps, "\n$ ", "\n\n$ ") + "\n"
	if got, want := differs.ReplaceAllString(happened.String(), "…"), differs.ReplaceAllString(steps, "…"); got != want {
		t.Errorf("the example of docs/firmware.md ends otherwise; got\n%s\nwant\n%s", got, want)
	}
}

// commandLength is how much of a step is its command: a line, and what follows a
// backslash.
func commandLength(step string) int {
	n := 0
	for line := range strings.Lines(step) {
		n += len(line)
		if !strings.HasSuffix(line, "\\\n") {
			break
		}
	}
	return n - len("\n")
}
