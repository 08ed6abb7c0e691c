package est

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// run runs somebody else's program in dir and returns what it prints. That it is
// missing is a failure: `make setup` installs it.
func run(tb testing.TB, dir, name string, args ...string) []byte {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, &stderr)
	}
	return out
}

func save(tb testing.TB, dir, name string, text []byte) {
	tb.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
		tb.Fatal(err)
	}
}

func readPEM(tb testing.TB, dir, name string) *x509.Certificate {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		tb.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		tb.Fatalf("%s holds no PEM: %q", name, text)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}

// strongSwan's EST client gets the CA certificates, enrols by password and renews by
// certificate, with ECDSA and RSA keys.
func TestStrongSwan(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	for _, kind := range [][]string{{"ecdsa", "256"}, {"ecdsa", "384"}, {"rsa", "2048"}} {
		t.Run(strings.Join(kind, "-"), func(t *testing.T) {
			dir := t.TempDir()
			root, issuing := filepath.Join(w.dir, "owner", "root.pem"), filepath.Join(w.dir, "owner", "issuing.pem")
			id := "swan-" + strings.Join(kind, "-")
			est := func(args ...string) []byte {
				t.Helper()
				return run(t, dir, "pki", append(args, "--url", w.ownerEST.URL(), "--outform", "pem")...)
			}
			request := func(n string) {
				t.Helper()
				save(t, dir, "key"+n, run(t, dir, "pki", "--gen", "--type", kind[0], "--size", kind[1], "--outform", "pem"))
				save(t, dir, "req"+n, run(t, dir, "pki", "--req", "--type", "priv", "--in", "key"+n, "--dn", "CN="+id, "--outform", "pem"))
			}
			est("--estca", "--cacert", root, "--caout", "ca.pem")
			if !readPEM(t, dir, "ca.pem").Equal(w.owner.Root()) || !readPEM(t, dir, "ca-1.pem").Equal(w.owner.Issuing()) {
				t.Error("--estca wrote other certificates than the owner's")
			}
			request("1")
			save(t, dir, "cert1", est("--est", "--cacert", root, "--cacert", issuing, "--in", "req1",
				"--userpass", id+":"+w.password(t, w.owner, id)))
			first := readPEM(t, dir, "cert1")
			request("2")
			save(t, dir, "cert2", est("--est", "--cacert", root, "--cacert", issuing, "--in", "req2", "--cert", "cert1", "--key", "key1"))
			second := readPEM(t, dir, "cert2")
			if first.Subject.CommonName != id || !bytes.Equal(first.RawSubject, second.RawSubject) || first.Equal(second) {
				t.Errorf("enrolled as %v, renewed as %v, want another certificate of the same name", first.Subject, second.Subject)
			}
		})
	}
}

// A factory's script does with curl and openssl what RFC 7030 says.
func TestCurl(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	dir := t.TempDir()
	root, issuing := filepath.Join(w.dir, "owner", "root.pem"), filepath.Join(w.dir, "owner", "issuing.pem")
	curl := func(op string, args ...string) {
		t.Helper()
		run(t, dir, "curl", append([]string{"--silent", "--show-error", "--fail", "--cacert", root, "--output", "answer",
			w.ownerEST.URL() + "/.well-known/est/" + op}, args...)...)
		run(t, dir, "openssl", "base64", "-d", "-A", "-in", "answer", "-out", "answer.p7")
		run(t, dir, "openssl", "pkcs7", "-inform", "DER", "-in", "answer.p7", "-print_certs", "-out", "answer.pem")
	}
	curl("cacerts")
	if text, err := os.ReadFile(filepath.Join(dir, "answer.pem")); err != nil || bytes.Count(text, []byte("BEGIN CERTIFICATE")) != 2 {
		t.Errorf("openssl reads %q from cacerts, %v, want 2 certificates", text, err)
	}
	for n, proof := range []func(op string){
		func(op string) {
			curl(op, "--user", "curl-1:"+w.password(t, w.owner, "curl-1"), "--data-binary", "@req", "--header", "Content-Type: application/pkcs10")
		},
		func(op string) {
			curl(op, "--cert", "cert.pem", "--key", "old.key", "--data-binary", "@req", "--header", "Content-Type: application/pkcs10",
				"--header", "Content-Transfer-Encoding: base64", "--header", "Transfer-Encoding: chunked")
		},
	} {
		run(t, dir, "openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "new.key",
			"-subj", "/CN=curl-1", "-addext", "subjectAltName=URI:urn:serial:1", "-outform", "DER", "-out", "req.der")
		run(t, dir, "openssl", "base64", "-in", "req.der", "-out", "req")
		proof([]string{"simpleenroll", "simplereenroll"}[n])
		run(t, dir, "openssl", "verify", "-CAfile", root, "-untrusted", issuing, "-purpose", "sslclient", "answer.pem")
		cert := readPEM(t, dir, "answer.pem")
		if cert.Subject.String() != "CN=curl-1" || len(cert.URIs) != 1 {
			t.Errorf("got a certificate for %v and %v, want CN=curl-1 and its URI", cert.Subject, cert.URIs)
		}
		for from, to := range map[string]string{"answer.pem": "cert.pem", "new.key": "old.key"} {
			if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
				t.Fatal(err)
			}
		}
	}
}
