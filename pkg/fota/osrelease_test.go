package fota_test

import (
	"errors"
	"strings"
	"testing"
	"testing/fstest"

	"birthmark/pkg/fota"
)

func TestOSRelease(t *testing.T) {
	for _, c := range []struct {
		name, text  string
		id, version string
		says        string // of the error; "" for none
	}{
		{"both", "ID=debian\nIMAGE_ID=acme-gw\nIMAGE_VERSION=2.1.0+sv6\n", "acme-gw", "2.1.0+sv6", ""},
		{"quoted", "IMAGE_ID='acme-gw'\nIMAGE_VERSION=\"2.1.0+sv6\"\n", "acme-gw", "2.1.0+sv6", ""},
		{"with spaces around, and no end", " IMAGE_ID=acme-gw \r\n\tIMAGE_VERSION=2.1.0+sv6", "acme-gw", "2.1.0+sv6", ""},
		{"in a comment", "#IMAGE_VERSION=2.1.0+sv6\n", "", "", ""},
		{"other names", "MY_IMAGE_VERSION=1\nIMAGE_VERSION_ID=1\nimage_version=1\n", "", "", ""},
		{"none", "", "", "", ""},
		{"two versions", "IMAGE_VERSION=2.1.0+sv6\nIMAGE_VERSION=2.0.0+sv6\n", "", "", "IMAGE_VERSION twice"},
		{"the same version twice", "IMAGE_VERSION=2.1.0+sv6\n IMAGE_VERSION=2.1.0+sv6\n", "", "", "IMAGE_VERSION twice"},
		{"none, and then one", "IMAGE_VERSION=\nIMAGE_VERSION=2.1.0+sv6\n", "", "", "IMAGE_VERSION twice"},
		{"two names", "IMAGE_ID=acme-gw\nIMAGE_ID=acme-hub\n", "", "", "IMAGE_ID twice"},
		{"too long", strings.Repeat("\n", 64<<10+1), "", "", "limit 65536"},
	} {
		got, err := fota.ParseOSRelease(c.text)
		if got.ID != c.id || got.Version != c.version || (err != nil) != (c.says != "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %+v, %v, want %s, %s and an error that says %q", c.name, got, err, c.id, c.version, c.says)
		}
	}
}

// FuzzOSRelease holds that what is said stands in the text, and once.
func FuzzOSRelease(f *testing.F) {
	f.Add("IMAGE_ID=acme-gw\nIMAGE_VERSION=\"2.1.0+sv6\"\n")
	f.Add("IMAGE_VERSION='\nIMAGE_VERSION=\n")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := fota.ParseOSRelease(text)
		if !strings.Contains(text, got.ID) || !strings.Contains(text, got.Version) || err != nil && got != (fota.OSRelease{}) {
			t.Errorf("got %+v, %v of %q", got, err, text)
		}
		if again, err := fota.ParseOSRelease(text + "\nIMAGE_VERSION=1.0.0+sv1\n"); err == nil && got.Version != "" {
			t.Errorf("got %+v of %q, and another version", again, text)
		}
	})
}

func TestRunning(t *testing.T) {
	image := func(text string) fstest.MapFS {
		return fstest.MapFS{"usr/lib/os-release": {Data: []byte(text)}}
	}
	v, err := fota.Running(image("ID=debian\nIMAGE_VERSION=\"2.1.0+sv6\"\n"))
	if err != nil || v != (fota.Version{Major: 2, Minor: 1, Security: 6}) {
		t.Errorf("got %v, %v, want 2.1.0+sv6", v, err)
	}
	for name, root := range map[string]fstest.MapFS{"no line": image("ID=debian\n"), "no file": {}} {
		if v, err := fota.Running(root); !errors.Is(err, fota.ErrNoVersion) {
			t.Errorf("%s: got %v, %v, want ErrNoVersion", name, v, err)
		}
	}
	for name, text := range map[string]string{
		"a version that is none": "IMAGE_VERSION=latest\n",
		"two versions":           "IMAGE_VERSION=2.1.0+sv6\nIMAGE_VERSION=2.0.0+sv6\n",
		"a file without end":     "IMAGE_VERSION=2.1.0+sv6\n" + strings.Repeat("\n", 64<<10),
	} {
		if v, err := fota.Running(image(text)); err == nil || errors.Is(err, fota.ErrNoVersion) || v != (fota.Version{}) {
			t.Errorf("%s: got %v, %v, want no version and another error", name, v, err)
		}
	}
}
