package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestACredentialIsReadInPlaceOfAFile(t *testing.T) {
	dir := tree(t, map[string]string{
		"birth-password": "one-time\n", "owner-root": rootPEM(t), "long": strings.Repeat("x", secretLimit+1),
	})
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	if got, err := ReadSecret("credential:birth-password"); got != "one-time" || err != nil {
		t.Errorf("got %q, %v; want one-time", got, err)
	}
	if certs, err := ReadCertificates("credential:owner-root"); len(certs) != 1 || err != nil {
		t.Errorf("got %d certificates, %v; want one", len(certs), err)
	}
	if _, err := ReadSecret("credential:long"); err == nil || !strings.Contains(err.Error(), "more than 1024 bytes") {
		t.Errorf("a long one: got %v, want the limit", err)
	}
	_, err := ReadSecret("credential:none")
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "LoadCredential=none:FILE") {
		t.Errorf("one that is not there: got %v, want ErrNotExist and what to do", err)
	}
	for _, name := range []string{"", ".", "..", "../birth-password", "/etc/passwd", "a\x00b", strings.Repeat("n", 256)} {
		if _, err := ReadSecret("credential:" + name); err == nil || !strings.Contains(err.Error(), "no name of a credential") {
			t.Errorf("%.20q: got %v, want that it is no name", name, err)
		}
	}
}

// TestACredentialOfASettingIsNotRelativeToItsFile loads one, and holds that Check says
// what is missing.
func TestACredentialOfASettingIsNotRelativeToItsFile(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", t.TempDir())
	file := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(file, []byte("[est]\nanchors = \"credential:owner-root\"\npassword_file = \"credential:pw\"\n[device]\nstate = \"credential:x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := Load(Options{File: file})
	if err != nil {
		t.Fatal(err)
	}
	if got := l.Config.EST; got.Anchors != "credential:owner-root" || got.PasswordFile != "credential:pw" {
		t.Errorf("got %+v, want the names as they are", got)
	}
	said := errors.Join(l.Check()...).Error()
	for _, want := range []string{"c.toml:2: est.anchors cannot be used", "LoadCredential=owner-root:FILE", `device.state is "credential:x": name a folder`} {
		if !strings.Contains(said, want) {
			t.Errorf("Check does not say %q:\n%s", want, said)
		}
	}
	if strings.Contains(said, "est.password_file") {
		t.Errorf("Check wants the password, which may come late:\n%s", said)
	}
}
