package e2e

import (
	"bytes"
	"encoding/asn1"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"birthmark/internal/agent"
	"birthmark/internal/agent/agenttest"
	"birthmark/internal/swtpm"
	"birthmark/internal/swtpm/swtpmtest"
	"birthmark/pkg/store"
)

// inService takes a new device from blank to its first telemetry and stops its
// agent. It returns the state folder.
func inService(t *testing.T, bench *agenttest.Lab, id string, tpm *swtpm.TPM) (state string) {
	t.Helper()
	env := bench.DeviceEnv(t, id, tpm.Address())
	liveOn(t, bench, env, id)
	return stateFolder(env)
}

// TestKeyIsInTheTPM asks Debian's tpm2-tools, not our code, about the everyday key
// of a device, and about the key.pem of `birthmark enroll`: each loads into this
// TPM, was made there and cannot leave it.
func TestKeyIsInTheTPM(t *testing.T) {
	need(t, "tpm2_load")
	tpm := swtpmtest.Start(t)
	bench := agenttest.StartLab(t)
	device, _, err := store.Read[agent.Device](inService(t, bench, "dev-tools", tpm))
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := os.ReadFile(enrollFiles(t, bench, "dev-once", tpm).key)
	if err != nil {
		t.Fatal(err)
	}

	if err := tpm.Stop(); err != nil {
		t.Fatal(err)
	}
	tools, err := swtpm.StartTCP(t.Context(), tpm.Dir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tools.Kill)
	env := []string{"TPM2TOOLS_TCTI=" + tools.TCTI()}
	t.Run("the agent's LDevID", func(t *testing.T) { wantInTPM(t, env, []byte(device.Owner.Key)) })
	must(t, env, "tpm2_flushcontext", "-t")
	t.Run("key.pem of enroll", func(t *testing.T) { wantInTPM(t, env, keyPEM) })
}

// enrollFiles runs `birthmark enroll` for a new device.
func enrollFiles(t *testing.T, bench *agenttest.Lab, id string, tpm *swtpm.TPM, more ...string) keyFiles {
	t.Helper()
	password, err := bench.NewPassword("owner", id)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "password")
	if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out")
	must(t, nil, birthmark, append([]string{"enroll", "--est-url", bench.OwnerURL(), "--anchors", filepath.Join(bench.Dir, "device", "owner-root.pem"),
		"--username", id, "--password-file", file, "--subject", "CN=" + id, "--tpm", tpm.Address(), "--out", out}, more...)...)
	return keyFiles{id, filepath.Join(out, "key.pem"), filepath.Join(out, "cert.pem")}
}

// wantInTPM fails the test unless the tools say that the key in a key file is one
// of the TPM's own.
func wantInTPM(t *testing.T, env []string, keyFile []byte) {
	dir := t.TempDir()
	splitKeyFile(t, keyFile, dir)
	context := filepath.Join(dir, "context")
	must(t, env, "tpm2_load", "-C", "0x81000001", "-u", filepath.Join(dir, "pub"), "-r", filepath.Join(dir, "priv"), "-c", context)
	printed := must(t, env, "tpm2_readpublic", "-c", context)
	attributes := regexp.MustCompile(`(?s)attributes:\s+value: ([a-z|]+)`).FindStringSubmatch(printed)
	if attributes == nil {
		t.Fatalf("tpm2_readpublic printed no attributes:\n%s", printed)
	}
	t.Log(attributes[1])
	has := strings.Split(attributes[1], "|")
	for _, want := range []string{"fixedtpm", "fixedparent", "sensitivedataorigin", "sign"} {
		if !slices.Contains(has, want) {
			t.Errorf("the key has no attribute %s: %s", want, attributes[1])
		}
	}
	for _, not := range []string{"decrypt", "restricted"} {
		if slices.Contains(has, not) {
			t.Errorf("the key has attribute %s: %s", not, attributes[1])
		}
	}
}

// splitKeyFile takes a TSS2 key file apart, without our codec, into the two
// files that tpm2_load reads.
func splitKeyFile(t *testing.T, text []byte, dir string) {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "TSS2 PRIVATE KEY" {
		t.Fatalf("no TSS2 key file:\n%s", text)
	}
	var key struct {
		Type      asn1.ObjectIdentifier
		EmptyAuth bool `asn1:"optional,explicit,tag:0"`
		Parent    int64
		Pub, Priv []byte
	}
	if _, err := asn1.Unmarshal(block.Bytes, &key); err != nil {
		t.Fatal(err)
	}
	if key.Parent != 0x81000001 {
		t.Errorf("parent is %#x, want 0x81000001", key.Parent)
	}
	for name, b := range map[string][]byte{"pub": key.Pub, "priv": key.Priv} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNoPrivateKeyOnDisk looks through everything below a state folder for
// private keys that are not wrapped by the TPM.
func TestNoPrivateKeyOnDisk(t *testing.T) {
	state := inService(t, agenttest.StartLab(t), "dev-grep", swtpmtest.Start(t))
	files := 0
	err := filepath.WalkDir(state, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		files++
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if where := privateKey(b); where != "" {
			t.Errorf("%s holds a private key: %s", path, where)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 2 {
		t.Errorf("looked into %d files, want state.json and audit.log at least", files)
	}
}

// TestPrivateKeyIsFound proves that TestNoPrivateKeyOnDisk can fail.
func TestPrivateKeyIsFound(t *testing.T) {
	for _, kind := range [][]string{
		{"ecparam", "-name", "prime256v1", "-genkey", "-noout", "-outform", "PEM"},
		{"ecparam", "-name", "prime256v1", "-genkey", "-noout", "-outform", "DER"},
		{"genpkey", "-algorithm", "RSA", "-outform", "PEM"},
		{"genpkey", "-algorithm", "RSA", "-outform", "DER"},
		{"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384", "-outform", "DER"},
	} {
		if key := must(t, nil, "openssl", kind...); privateKey([]byte("{\"x\":\""+key)) == "" {
			t.Errorf("the key of openssl %v was not found", kind)
		}
	}
}

// privateKey says where in b a private key that is not the TPM's stands.
func privateKey(b []byte) string {
	for _, marker := range []struct{ name, bytes string }{
		{"PEM, PKCS #8", "BEGIN PRIVATE KEY"},
		{"PEM, EC", "BEGIN EC PRIVATE KEY"},
		{"PEM, RSA", "BEGIN RSA PRIVATE KEY"},
		{"DER, ECPrivateKey of 32 bytes", "\x02\x01\x01\x04\x20"},
		{"DER, ECPrivateKey of 48 bytes", "\x02\x01\x01\x04\x30"},
		{"DER, PKCS #1 of 2048 bits", "\x02\x01\x00\x02\x82\x01\x01\x00"},
		{"DER, PKCS #8 with RSA", "\x02\x01\x00\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01"},
	} {
		if bytes.Contains(b, []byte(marker.bytes)) {
			return marker.name
		}
	}
	return ""
}

// TestStolenState puts the state folder of one device into another.
func TestStolenState(t *testing.T) {
	bench := agenttest.StartLab(t)
	state := inService(t, bench, "dev-stolen", swtpmtest.Start(t))
	before := snapshot(t, state)
	env := []string{
		"BIRTHMARK_DEVICE__STATE=" + state,
		"BIRTHMARK_DOORS__FOLDER=" + t.TempDir(),
		"BIRTHMARK_TPM__ADDRESS=" + swtpmtest.StartOther(t).Address(),
	}
	_, stderr, code := run(t, env, birthmark, "run", "--config", bench.ConfigFile())
	if code != 1 || !strings.Contains(stderr, "another device") {
		t.Errorf("the agent ended with exit code %d, want 1 and the reason:\n%s", code, stderr)
	}
	after := snapshot(t, state)
	if before["state.json"] != after["state.json"] {
		t.Error("the state file was changed")
	}
}

// snapshot is the contents of the files of a folder.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, e := range entries {
		if e.Type().IsRegular() {
			b, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			files[e.Name()] = string(b)
		}
	}
	return files
}
