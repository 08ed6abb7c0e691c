package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"birthmark/internal/agent"
	"birthmark/internal/agent/agenttest"
	"birthmark/internal/swtpm"
	"birthmark/internal/swtpm/swtpmtest"
	"birthmark/pkg/store"
)

// TestOtherProgramsUseTheKey lets Debian's curl, openssl and mosquitto_pub
// authenticate with keys that only the TPM can use, by what `birthmark config
// openssl` prints: to the owner's EST server, which renews the certificate, and to
// the owner's broker, whose log has the message. The keys are the everyday key of a
// device in service, and those that `birthmark enroll` made.
func TestOtherProgramsUseTheKey(t *testing.T) {
	for _, program := range []string{"curl", "openssl", "mosquitto_pub", "tpm2-abrmd", "dbus-daemon", "tpm2_getcap"} {
		need(t, program)
	}
	tpm := swtpmtest.Start(t)
	bench := agenttest.StartLab(t)
	device, _, err := store.Read[agent.Device](inService(t, bench, "dev-service", tpm))
	if err != nil {
		t.Fatal(err)
	}
	keys := []keyFiles{saveKey(t, "dev-service", device.Owner.Key, device.Owner.Chain)}
	for _, algorithm := range []string{"P-256", "P-384", "RSA-2048"} {
		keys = append(keys, enrollFiles(t, bench, "dev-"+algorithm, tpm, "--algorithm", algorithm))
	}
	if err := tpm.Stop(); err != nil {
		t.Fatal(err)
	}
	env := manageResources(t, tpm.Dir())
	for _, k := range keys {
		t.Run(k.id, func(t *testing.T) {
			usesKey(t, bench, append(env, opensslEnv(t, k)...), k)
		})
	}
}

// keyFiles are what other programs know of a key.
type keyFiles struct{ id, key, cert string }

func saveKey(t *testing.T, id, key, chain string) keyFiles {
	t.Helper()
	dir := t.TempDir()
	k := keyFiles{id, filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.pem")}
	for file, text := range map[string]string{k.key: key, k.cert: chain} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

// opensslEnv saves what `birthmark config openssl` prints and makes it OpenSSL's
// configuration.
func opensslEnv(t *testing.T, k keyFiles) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "openssl.cnf")
	text := must(t, nil, birthmark, "config", "openssl", "--key", k.key)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"OPENSSL_CONF=" + file}
}

// manageResources powers on the TPM in dir with tpm2-abrmd in front of it, which is
// for a TPM in software what the kernel is for one of hardware. The bus on which
// programs reach it is one of the test's own.
func manageResources(t *testing.T, dir string) (env []string) {
	t.Helper()
	tpm, err := swtpm.StartTCP(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tpm.Kill)
	bus := "unix:path=" + filepath.Join(tpm.Dir(), "bus")
	const tcti = "tabrmd:bus_type=session"
	env = []string{"DBUS_SESSION_BUS_ADDRESS=" + bus, "TPM2OPENSSL_TCTI=" + tcti, "TPM2TOOLS_TCTI=" + tcti, "TSS2_LOG=all+NONE"}
	daemon := start(t, nil, need(t, "dbus-daemon"), "--session", "--nofork", "--nopidfile", "--address="+bus)
	awaitFile(t, daemon, strings.TrimPrefix(bus, "unix:path="))
	args := []string{"--session", "--tcti=" + tpm.TCTI()}
	if os.Getuid() == 0 {
		args = append(args, "--allow-root")
	}
	manager := start(t, env, need(t, "tpm2-abrmd"), args...)
	late := time.After(patience)
	for {
		if _, _, code := run(t, env, "tpm2_getcap", "properties-fixed"); code == 0 {
			return env
		}
		select {
		case <-manager.exited:
			t.Fatalf("tpm2-abrmd ended by itself:\n%s", &manager.stderr)
		case <-late:
			t.Fatalf("tpm2-abrmd does not answer:\n%s", &manager.stderr)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// awaitFile waits until the process has made a file.
func awaitFile(t *testing.T, p *process, path string) {
	t.Helper()
	late := time.After(patience)
	for {
		if _, err := os.Stat(path); err == nil {
			return
		}
		select {
		case <-p.exited:
			t.Fatalf("%s ended by itself:\n%s", p.Path, &p.stderr)
		case <-late:
			t.Fatalf("%s does not make %s", p.Path, path)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// usesKey renews the certificate by hand, as RFC 7030 says, and publishes.
func usesKey(t *testing.T, bench *agenttest.Lab, env []string, k keyFiles) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	root := filepath.Join(bench.Dir, "device", "owner-root.pem")

	must(t, env, "openssl", "req", "-new", "-key", k.key, "-subj", "/CN="+k.id, "-outform", "DER", "-out", in("request.der"))
	must(t, nil, "openssl", "base64", "-in", in("request.der"), "-out", in("request"))
	renew := func(env []string, args ...string) string {
		return must(t, env, "curl", append([]string{"--silent", "--show-error", "--cacert", root, "--output", in("answer"), "--write-out", "%{http_code}",
			"--header", "Content-Type: application/pkcs10", "--data-binary", "@" + in("request"), bench.OwnerURL() + "/.well-known/est/simplereenroll"}, args...)...)
	}
	if status := renew(nil); status != "403" {
		t.Errorf("curl without the certificate: got status %s, want 403", status)
	}
	if status := renew(env, "--cert", k.cert, "--key", k.key); status != "200" {
		t.Fatalf("curl with the certificate: got status %s, want %d", status, http.StatusOK)
	}
	must(t, nil, "openssl", "base64", "-d", "-A", "-in", in("answer"), "-out", in("answer.p7"))
	must(t, nil, "openssl", "pkcs7", "-inform", "DER", "-in", in("answer.p7"), "-print_certs", "-out", in("renewed.pem"))
	if old, renewed := certificateOf(t, k.cert), certificateOf(t, in("renewed.pem")); old == renewed || !strings.Contains(renewed, "CN = "+k.id) {
		t.Errorf("renewed to %s, want another certificate of %s", renewed, k.id)
	}

	host, port, _ := strings.Cut(brokerAddress(bench), ":")
	topic, message := "birthmark/v1/d/"+k.id+"/tele/by-hand", "hello from "+k.id
	// With -d it prints the broker's acknowledgement.
	said := must(t, env, "mosquitto_pub", "-d", "-h", host, "-p", port, "-i", k.id, "-q", "1", "-t", topic, "-m", message,
		"--cafile", root, "--cert", k.cert, "--key", k.key)
	if !strings.Contains(said, "received PUBACK") {
		t.Errorf("mosquitto_pub saw no PUBACK:\n%s", said)
	}
	if !logged(t, bench.BrokerLog(), topic, message) {
		t.Errorf("the broker's log has no %q on %s", message, topic)
	}
}

// certificateOf is the serial number and the subject of a certificate in a file.
func certificateOf(t *testing.T, file string) string {
	t.Helper()
	return must(t, nil, "openssl", "x509", "-in", file, "-noout", "-serial", "-subject")
}

// logged reports whether the broker has logged a message.
func logged(t *testing.T, brokerLog, topic, payload string) bool {
	t.Helper()
	text, err := os.ReadFile(brokerLog)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var e struct{ Event, Topic, Payload string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q in the broker's log: %v", line, err)
		}
		if e.Event == "publish" && e.Topic == topic && e.Payload == payload {
			return true
		}
	}
	return false
}
