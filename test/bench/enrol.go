package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"birthmark/internal/lab"
)

// enrolling are the lanes of enrolment-ratio: from nothing to a new key and its
// certificate in files, from the owner's EST server, by a one-time password.
func (w *world) enrolling() []*lane {
	return []*lane{
		w.enrolment("birthmark enroll", w.enrolOurs),
		w.enrolment("openssl and curl", w.enrolCurl),
		w.enrolment("strongSwan pki", w.enrolSwan),
	}
}

// enrolment gives every turn of a lane a new device, and looks at what it leaves.
func (w *world) enrolment(name string, enrol func(ctx context.Context, dir, id, password string) error) *lane {
	return &lane{name: name, once: func(ctx context.Context) (time.Duration, error) {
		w.made++
		id := fmt.Sprintf("bench-%d", w.made)
		dir := w.path(id)
		password, err := w.lab.NewPassword(lab.Owner, id)
		if err != nil {
			return 0, err
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			return 0, err
		}
		if err := os.WriteFile(filepath.Join(dir, "password"), []byte(password+"\n"), 0o600); err != nil {
			return 0, err
		}
		start := time.Now()
		if err := enrol(ctx, dir, id, password); err != nil {
			return 0, err
		}
		took := time.Since(start)
		for file, want := range map[string]string{"cert.pem": "CERTIFICATE-----", "key.pem": "PRIVATE KEY-----"} {
			if text, err := os.ReadFile(filepath.Join(dir, file)); err != nil || !bytes.Contains(text, []byte(want)) {
				return 0, fmt.Errorf("left no %s in %s (%v)", want, file, err)
			}
		}
		return took, nil
	}}
}

func (w *world) enrolOurs(ctx context.Context, dir, id, _ string) error {
	return run(ctx, dir, "", "said", w.agent, "enroll", "--est-url", w.lab.OwnerURL(), "--anchors", w.ownerRoot(), "--tpm", w.tpm.Address(),
		"--username", id, "--password-file", "password", "--subject", "CN="+id, "--out", ".")
}

// enrolCurl is a factory's script.
func (w *world) enrolCurl(ctx context.Context, dir, id, password string) error {
	var failed error
	step := func(stdin, stdout, program string, args ...string) {
		if failed == nil {
			failed = run(ctx, dir, stdin, stdout, program, args...)
		}
	}
	step("", "", "openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "key.pem",
		"-subj", "/CN="+id, "-outform", "DER", "-out", "req.der")
	step("req.der", "req", "base64")
	step("", "", "curl", "--silent", "--show-error", "--fail", "--cacert", w.ownerRoot(), "--user", id+":"+password,
		"--header", "Content-Type: application/pkcs10", "--data-binary", "@req", "--output", "answer", w.lab.OwnerURL()+"/.well-known/est/simpleenroll")
	step("answer", "answer.p7", "base64", "-d")
	step("", "", "openssl", "pkcs7", "-inform", "DER", "-in", "answer.p7", "-print_certs", "-out", "cert.pem")
	return failed
}

// enrolSwan is strongSwan's EST client.
func (w *world) enrolSwan(ctx context.Context, dir, id, password string) error {
	return errors.Join(
		run(ctx, dir, "", "key.pem", "pki", "--gen", "--type", "ecdsa", "--size", "256", "--outform", "pem"),
		run(ctx, dir, "", "req.pem", "pki", "--req", "--type", "priv", "--in", "key.pem", "--dn", "CN="+id, "--outform", "pem"),
		run(ctx, dir, "", "cert.pem", "pki", "--est", "--url", w.lab.OwnerURL(), "--cacert", w.ownerRoot(), "--cacert", w.issuing(),
			"--in", "req.pem", "--userpass", id+":"+password, "--outform", "pem"))
}

func (w *world) issuing() string { return w.path("lab", lab.Owner, "issuing.pem") }

// enrolPeer gives the peer its certificate, and the chain that a broker which knows
// the root only has to be shown.
func (w *world) enrolPeer(ctx context.Context) error {
	dir := w.path("peer")
	password, err := w.lab.NewPassword(lab.Owner, peerID)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := w.enrolCurl(ctx, dir, peerID, password); err != nil {
		return err
	}
	var chain []byte
	for _, file := range []string{filepath.Join(dir, "cert.pem"), w.issuing()} {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		chain = append(chain, text...)
	}
	return os.WriteFile(filepath.Join(dir, "chain.pem"), chain, 0o600)
}
