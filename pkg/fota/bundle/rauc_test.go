package bundle

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"birthmark/pkg/fota"
	bt "birthmark/pkg/fota/bundle/bundletest"
)

// info is what `rauc info` says about a bundle.
type info struct {
	Compatible, Version, Description, Build string

	Images []map[string]struct {
		Filename, Checksum string
		Size               int64
	}
}

// TestRaucReadsTheSame: Debian's rauc takes what package bundletest makes, and reads in
// it what is read here.
func TestRaucReadsTheSame(t *testing.T) {
	pki := bt.NewPKI(t, "P-256", "P-256")
	r := bt.NewRelease("acme-gw", "1.1.0+sv2")
	r.Update = "description=\\sa \\\\ b\\n\xc3\xa4=c;d\\te\nbuild=2026-11-25 #1\n"
	for name, b := range map[string][]byte{"by rauc": r.Rauc(t, pki.Signer, "-comp zstd"), "by bundletest": r.Parts(t, pki.Signer).Bytes()} {
		d := deviceOf(t, pki)
		opened, err := Open(bytes.NewReader(b), int64(len(b)), &d.trust)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, m := raucInfo(t, pki, b), opened.Manifest
		if got.Compatible != m.Compatible || got.Version != m.Version.String() || got.Description != m.Description || got.Build != m.Build {
			t.Errorf("%s: rauc reads %+v, we read %+v", name, got, m)
		}
		images := map[string]fota.Image{}
		for _, image := range m.Images {
			images[image.Slot] = image
		}
		for _, one := range got.Images {
			for slot, theirs := range one {
				ours := images[slot]
				delete(images, slot)
				if theirs.Filename != ours.File || theirs.Size != ours.Size || theirs.Checksum != hex.EncodeToString(ours.SHA256[:]) {
					t.Errorf("%s: for %s rauc reads %+v, we read %+v", name, slot, theirs, ours)
				}
			}
		}
		if len(images) != 0 {
			t.Errorf("%s: we read images that rauc does not: %v", name, images)
		}
	}
}

func raucInfo(t *testing.T, pki *bt.PKI, b []byte) (i info) {
	t.Helper()
	dir := t.TempDir()
	anchors := filepath.Join(dir, "anchors.pem")
	// RAUC's default purpose is mail.
	conf := fmt.Sprintf("[system]\ncompatible=acme-gw\nbootloader=noop\n[keyring]\npath=%s\ncheck-purpose=codesign\n", anchors)
	for name, text := range map[string][]byte{anchors: bt.PEM(pki.Root.Cert), filepath.Join(dir, "system.conf"): []byte(conf), filepath.Join(dir, "b.raucb"): b} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("rauc", "--conf=system.conf", "info", "--output-format=json", "b.raucb")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8") // or it writes "?" for what is not ASCII
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("rauc info: %v\n%s", err, errs.Bytes())
	}
	if err := json.Unmarshal(out, &i); err != nil {
		t.Fatalf("rauc info says %q: %v", out, err)
	}
	return i
}

// TestRaucCrypt: what rauc encrypts is refused for that reason, both before, with the key
// in the manifest, and after.
func TestRaucCrypt(t *testing.T) {
	pki := bt.NewPKI(t, "P-256", "P-256")
	d := deviceOf(t, pki)
	r := bt.NewRelease("acme-gw", "1.1.0+sv2")
	r.Format = "crypt"
	clear := r.Rauc(t, pki.Signer, "-comp zstd")
	_, err := Open(bytes.NewReader(clear), int64(len(clear)), &d.trust)
	wantRefusal(t, "before it is encrypted", err, fota.StageManifest, "crypt")

	dir := t.TempDir()
	recipient := bt.Issue(t, nil, bt.Key(t, "RSA-2048", "recipient"), "Device", nil)
	for name, b := range map[string][]byte{"clear": clear, "anchors.pem": bt.PEM(pki.Root.Cert), "recipient.pem": bt.PEM(recipient.Cert),
		"system.conf": []byte("[system]\ncompatible=acme-gw\nbootloader=noop\n[keyring]\npath=anchors.pem\ncheck-purpose=codesign\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("rauc", "--conf=system.conf", "encrypt", "--to=recipient.pem", "clear", "encrypted")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("rauc encrypt: %v\n%s", err, out)
	}
	encrypted, err := os.ReadFile(filepath.Join(dir, "encrypted"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(bytes.NewReader(encrypted), int64(len(encrypted)), &d.trust)
	wantRefusal(t, "encrypted", err, fota.StageCMS, "crypt")
}
