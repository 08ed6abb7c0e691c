package fota

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

const osReleaseLimit = 64 << 10 // bytes

// An OSRelease is what an image says of itself in os-release(5).
type OSRelease struct {
	ID      string // IMAGE_ID: what the device is called that it is for; "" if it does not say
	Version string // IMAGE_VERSION; "" if it does not say
}

// ParseOSRelease reads the text of os-release. Of a name that is there twice one reader
// takes the first and the next the last, the boot loader among them: that is an error.
func ParseOSRelease(text string) (OSRelease, error) {
	var r OSRelease
	if len(text) > osReleaseLimit {
		return r, fmt.Errorf("os-release has %d bytes, limit %d", len(text), osReleaseLimit)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		at := map[string]*string{"IMAGE_ID": &r.ID, "IMAGE_VERSION": &r.Version}[name]
		switch {
		case at == nil:
		case seen[name]:
			return OSRelease{}, fmt.Errorf("os-release says %s twice", name)
		default:
			*at, seen[name] = strings.Trim(value, `"'`), true
		}
	}
	return r, nil
}

// ErrNoVersion means that the running image does not say which release it is.
var ErrNoVersion = errors.New("os-release has no IMAGE_VERSION")

// Running is the release of the image that runs, from IMAGE_VERSION in the
// os-release of root; root is the file system, "/" on a device.
func Running(root fs.FS) (Version, error) {
	_, v, err := Identity(root)
	return v, err
}

// Identity is what Running is, and the IMAGE_ID beside it, which may be missing.
func Identity(root fs.FS) (id string, v Version, err error) {
	f, err := root.Open("usr/lib/os-release")
	if errors.Is(err, fs.ErrNotExist) {
		return "", Version{}, ErrNoVersion
	}
	if err != nil {
		return "", Version{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, osReleaseLimit+1))
	if err != nil {
		return "", Version{}, fmt.Errorf("cannot read os-release: %w", err)
	}
	r, err := ParseOSRelease(string(text))
	switch {
	case err != nil:
		return "", Version{}, err
	case r.Version == "":
		return r.ID, Version{}, ErrNoVersion
	}
	v, err = ParseVersion(r.Version)
	return r.ID, v, err
}
