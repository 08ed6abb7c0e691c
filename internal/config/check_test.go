package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// rootPEM makes a certificate.
func rootPEM(tb testing.TB) string {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// complete is a configuration with which nothing is wrong.
const complete = `
[birth]
url = "https://maker.test:8443/.well-known/est"
anchors = "root.pem"
password_file = "password"
[est]
url = "https://owner.test"
label = "field"
anchor_sha256 = "AB:CD:ef:00:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff:00:11:22:33:44:55:66:77:88:99:aa:bb:cc"
[broker]
urls = ["mqtts://broker.test:8883", "mqtts://[::1]:8883"]
anchors = "root.pem"
[telemetry.labels]
site_2 = "Berlin"
`

func completeTree(tb testing.TB) string {
	return tree(tb, map[string]string{"birthmark.toml": complete, "root.pem": rootPEM(tb), "password": "one-time\n"})
}

func TestCheckFindsNothingWrong(t *testing.T) {
	dir := completeTree(t)
	file := filepath.Join(dir, "birthmark.toml")
	if faults := mustLoad(t, Options{File: file}).Check(); len(faults) > 0 {
		t.Error(errors.Join(faults...))
	}
	// The password is used up after birth, and its file gone.
	if err := os.Remove(filepath.Join(dir, "password")); err != nil {
		t.Fatal(err)
	}
	if faults := mustLoad(t, Options{File: file}).Check(); len(faults) > 0 {
		t.Error(errors.Join(faults...))
	}
	none := []string{"BIRTHMARK_BIRTH__MODE=none", "BIRTHMARK_BIRTH__URL=", "BIRTHMARK_BIRTH__ANCHORS=", "BIRTHMARK_EST__PASSWORD_FILE=" + filepath.Join(dir, "password")}
	if faults := mustLoad(t, Options{File: file, Env: none}).Check(); len(faults) > 0 {
		t.Error(errors.Join(faults...))
	}
}

// One thing wrong at a time: one message, which names the place, the cause and
// what to do.
func TestCheckFindsWhatCannotWork(t *testing.T) {
	dir := completeTree(t)
	for name, text := range map[string]string{
		"empty": "", "long": strings.Repeat("x", secretLimit+1), "lines": "a\nb\n",
		"text": "not PEM", "key": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
		"broken": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
		"huge":   strings.Repeat("x", fileLimit+1),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	many := func(n int, form string) string {
		var all []string
		for i := range n {
			all = append(all, fmt.Sprintf(form, i))
		}
		return strings.Join(all, ",")
	}
	for _, tc := range []struct{ env, want string }{
		{"DEVICE__ID=a.b", `device.id is "a.b": use 1 to 64 of A-Z a-z 0-9 _ -, or leave it out to derive it from the TPM`},
		{"DEVICE__ID=" + strings.Repeat("x", 65), `: use 1 to 64 of`},
		{"DEVICE__ID=a/b", `device.id is "a/b": use`},
		{"DEVICE__ID=a\n", `: use 1 to 64 of`},
		{"DEVICE__STATE=", `device.state is "": name a folder`},
		{"DEVICE__STATE=var/lib", `device.state is "var/lib": name a folder by its whole path`},
		{"TPM__ADDRESS=", `tpm.address is "": write /dev/tpmrm0, unix:PATH or tcp:HOST:PORT`},
		{"TPM__ADDRESS=tpm0", `tpm.address is "tpm0"`},
		{"TPM__ADDRESS=unix:", `tpm.address is "unix:"`},
		{"TPM__ADDRESS=tcp:localhost", `tpm.address is "tcp:localhost"`},
		{"TPM__ALGORITHM=p256", `tpm.algorithm is "p256": choose one of P-256, P-384, RSA-2048`},
		{"BIRTH__MODE=attested", `birth.mode is "attested": choose one of password, none`},
		{"BIRTH__URL=", `birth.url is missing: write the address of the EST server of the maker's CA, https://HOST[:PORT]`},
		{"BIRTH__PASSWORD_FILE=", `birth.password_file is missing: name the file with the one-time password, or set birth.mode to "none"`},
		{"BIRTH__PASSWORD_FILE=" + dir + "/empty", `/empty: it is empty; put the password there, one line, readable by the agent`},
		{"BIRTH__PASSWORD_FILE=" + dir + "/long", `/long: more than 1024 bytes; put`},
		{"BIRTH__PASSWORD_FILE=" + dir + "/lines", `/lines: more than one line, or control characters; put`},
		{"BIRTH__PASSWORD_FILE=" + dir, `: not a file; put`},
		{"BIRTH__ANCHORS=", `birth.anchors is missing: name the file with the root certificate of the maker's CA, or set birth.anchor_sha256`},
		{"BIRTH__ANCHORS=" + dir + "/none", `no such file or directory; put the root certificate there, in PEM`},
		{"BIRTH__ANCHORS=" + dir + "/text", `no PEM certificate in it; put`},
		{"BIRTH__ANCHORS=" + dir + "/key", `it holds a private key, not only certificates; put`},
		{"BIRTH__ANCHORS=" + dir + "/broken", `certificate 1 in it: `},
		{"BIRTH__ANCHORS=" + dir + "/huge", `more than 256 KiB; put`},
		{"EST__URL=http://owner.test", `est.url is "http://owner.test": write https://HOST[:PORT]; a label goes into est.label`},
		{"EST__URL=https://", `est.url is "https://"`},
		{"EST__URL=https://a:b@owner.test", `est.url is`},
		{"EST__URL=https://owner.test/est", `est.url is`},
		{"EST__URL=https://owner.test?x=y", `est.url is`},
		{"EST__URL=https://owner.test\n", `est.url is`},
		{"EST__LABEL=a/b", `est.label is "a/b": use`},
		{"EST__ANCHOR_SHA256=", `est.anchors is missing: name the file with the root certificate of the owner's CA, or set est.anchor_sha256`},
		{"EST__ANCHOR_SHA256=abc", `est.anchor_sha256 cannot be used: "abc" is no SHA-256 fingerprint: 64 hex digits are needed; `},
		{"BIRTH__MODE=none", `est.password_file is missing: with birth.mode "none" the device has no certificate to show, so it needs a password`},
		{"BROKER__URLS=", `broker.urls is missing: write the addresses of the owner's broker, ["mqtts://HOST:PORT"]`},
		{"BROKER__URLS=mqtts://a:1,mqtt://a:1", `broker.urls has "mqtt://a:1": write mqtts://HOST:PORT; the port is mostly 8883`},
		{"BROKER__URLS=mqtts://a", `broker.urls has "mqtts://a": write`},
		{"BROKER__URLS=mqtts://a:99999", `broker.urls has "mqtts://a:99999": write`},
		{"BROKER__URLS=mqtts://a:1/path", `broker.urls has`},
		{"BROKER__URLS=" + many(17, "mqtts://a%d:1"), `broker.urls has 17 addresses: keep at most 16`},
		{"BROKER__ANCHORS=", `broker.anchors is missing: name`},
		{"BROKER__KEEPALIVE=1s", `broker.keepalive is 1s: choose from 5s to 18h0m0s`},
		{"BROKER__KEEPALIVE=20h", `broker.keepalive is 20h0m0s: choose`},
		{"BROKER__RECONNECT_WINDOW=-1s", `broker.reconnect_window is -1s: choose from 0s to 1h0m0s`},
		{"TELEMETRY__INTERVAL=1ms", `telemetry.interval is 1ms: choose from 1s to 24h0m0s`},
		{"TELEMETRY__LABELS=Ort=x", `telemetry.labels has the name "Ort": use a-z 0-9 _, at most 64`},
		{"TELEMETRY__LABELS=2nd=x", `telemetry.labels has the name "2nd": use`},
		{"TELEMETRY__LABELS=x=" + strings.Repeat("y", 257), `telemetry.labels has 257 bytes in "x": keep at most 256`},
		{"TELEMETRY__LABELS=" + many(32, "x%d=y"), `telemetry.labels has 33 entries: keep at most 32`},
		{"DOORS__FOLDER=", `doors.folder is "": name a folder by its whole path`},
		{"DOORS__FOLDER=run", `doors.folder is "run": name a folder`},
		{"DOORS__FOLDER=/" + strings.Repeat("x", 92), `doors.folder has 93 bytes: the path of a socket is short, keep at most 92`},
		{"METRICS__TEXTFILE=birthmark.prom", `metrics.textfile is "birthmark.prom": name a file by its whole path, ending in .prom`},
		{"METRICS__TEXTFILE=/run/birthmark.txt", `metrics.textfile is "/run/birthmark.txt": name`},
		{"LOG__LEVEL=verbose", `log.level is "verbose": choose one of debug, info, warn, error`},
	} {
		l := mustLoad(t, Options{File: filepath.Join(dir, "birthmark.toml"), Env: []string{"BIRTHMARK_" + tc.env}})
		faults := l.Check()
		var e *Error
		if len(faults) != 1 || !errors.As(faults[0], &e) {
			t.Errorf("%s: got %d faults, want one: %v", tc.env, len(faults), errors.Join(faults...))
			continue
		}
		if !strings.Contains(e.Msg, tc.want) {
			t.Errorf("%.60s:\n got %s\nwant %s", tc.env, e.Msg, tc.want)
		}
		if e.File != "" && !strings.HasPrefix(tc.env, strings.TrimPrefix(e.File, "BIRTHMARK_")+"=") {
			t.Errorf("%.60s: blamed on %s", tc.env, e.File)
		}
	}
}

func TestCheckNamesTheLine(t *testing.T) {
	file := filepath.Join(completeTree(t), "birthmark.toml")
	if err := os.WriteFile(file, []byte(complete+"[log]\nlevel = 'loud'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	faults := mustLoad(t, Options{File: file}).Check()
	want := file + `:16: log.level is "loud": choose one of debug, info, warn, error`
	if len(faults) != 1 || faults[0].Error() != want {
		t.Errorf("got %v, want %s", faults, want)
	}
}

// The example of the reference lacks nothing but the files it names.
func TestTheExampleOfTheReference(t *testing.T) {
	_, example, _ := strings.Cut(docHead, "```toml\n")
	example, _, _ = strings.Cut(example, "```")
	dir := tree(t, map[string]string{"birthmark.toml": example, "maker-root.pem": rootPEM(t), "owner-root.pem": rootPEM(t)})
	if faults := mustLoad(t, Options{File: filepath.Join(dir, "birthmark.toml")}).Check(); len(faults) > 0 {
		t.Error(errors.Join(faults...))
	}
}
