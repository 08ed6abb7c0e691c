package config

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadSecret(t *testing.T) {
	dir := tree(t, map[string]string{"unix": "pass word\n", "dos": "pass word\r\n", "bare": "pass word"})
	for _, name := range []string{"unix", "dos", "bare"} {
		if got, err := ReadSecret(filepath.Join(dir, name)); got != "pass word" || err != nil {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	if _, err := ReadSecret(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want ErrNotExist", err)
	}
}

func TestReadCertificates(t *testing.T) {
	first, second := rootPEM(t), rootPEM(t)
	dir := tree(t, map[string]string{"two.pem": "# text before\n" + first + "and between\n" + second + "\n"})
	certs, err := ReadCertificates(filepath.Join(dir, "two.pem"))
	if err != nil || len(certs) != 2 || certs[0].Equal(certs[1]) {
		t.Errorf("got %d certificates, %v, want two", len(certs), err)
	}
}

func TestReadFileFollowsNoSurprises(t *testing.T) {
	if text, err := ReadFile("/dev/null"); err != nil || len(text) != 0 {
		t.Errorf("/dev/null: %q, %v", text, err)
	}
	if _, err := ReadFile("/dev/zero"); err == nil || !strings.Contains(err.Error(), "more than 256 KiB") {
		t.Errorf("/dev/zero: got %v, want the limit", err)
	}
}

func TestParseSHA256(t *testing.T) {
	plain := strings.Repeat("0f", 32)
	for _, text := range []string{plain, strings.ToUpper(plain), " " + plain + "\n", strings.TrimSuffix(strings.Repeat("0F:", 32), ":")} {
		if sum, err := ParseSHA256(text); err != nil || len(sum) != 32 || sum[31] != 0x0f {
			t.Errorf("%q: got %x, %v", text, sum, err)
		}
	}
	for _, text := range []string{"", "0f", plain + "00", strings.Repeat("xy", 32), strings.Repeat("é", 1000)} {
		if sum, err := ParseSHA256(text); err == nil {
			t.Errorf("%.20q: got %x, want an error", text, sum)
		}
	}
}

func TestNearest(t *testing.T) {
	names := []string{"url", "label", "anchors", "anchor_sha256", "password_file"}
	for name, want := range map[string]string{
		"url": "url", "ur": "url", "ulr": "url", "Label": "label", "anchor": "anchors",
		"passwordfile": "password_file", "password-file": "password_file", "anchor-sha-256": "anchor_sha256",
		"": "", "x": "", "certificate": "", "password": "", strings.Repeat("z", 1<<16): "",
	} {
		if got := nearest(name, names); got != want {
			t.Errorf("nearest to %.20q: got %q, want %q", name, got, want)
		}
	}
}
