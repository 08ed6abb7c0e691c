// Package diag gathers what somebody who helps from afar needs to see of a device,
// in one file: `birthmark diag`.
//
// The file is a .tar.gz of at most 2 MiB before it is compressed, with a folder birthmark-diag:
//
//	version.json   version of the agent, kernel, when this was gathered
//	os-release     what the device runs
//	config.json    all settings and where they come from
//	status.json    as `birthmark status --json` prints it
//	doctor.json    as `birthmark doctor --json` prints it
//	metrics.txt    the numbers of the running agent
//	audit.log      the end of the audit log, 64 KiB
//	missing.txt    what of all this could not be had, and why
//
// Its reader is a stranger. Of files with secrets the names are in it, never what
// they hold; a password that somebody wrote into a URL is left out. Keys, also
// wrapped ones, requests and certificates are in none of the parts.
package diag

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"birthmark/internal/config"
)

const (
	partLimit  = 256 << 10 // bytes of a part
	auditLimit = 64 << 10  // bytes of the audit log's end

	folder = "birthmark-diag"
)

// A Part is one file of the bundle.
type Part struct {
	Name string
	Read func() ([]byte, error)
}

// JSON is a part with what get returns, which can be there in spite of an error.
func JSON(name string, get func() (any, error)) Part {
	return Part{name, func() ([]byte, error) {
		v, err := get()
		if v == nil {
			return nil, err
		}
		text, wrong := json.MarshalIndent(v, "", "  ")
		return text, errors.Join(err, wrong)
	}}
}

// System is the part that tells what the device runs.
func System() Part {
	return Part{"os-release", func() ([]byte, error) {
		text, err := config.ReadFile("/etc/os-release")
		if errors.Is(err, fs.ErrNotExist) {
			return config.ReadFile("/usr/lib/os-release") // os-release(5)
		}
		return text, err
	}}
}

// Configuration is the part with all settings.
func Configuration(l *config.Loaded) Part {
	values := l.Values()
	for i, v := range values {
		switch value := v.Value.(type) {
		case string:
			values[i].Value = redacted(value)
		case []string:
			var list []string
			for _, text := range value {
				list = append(list, redacted(text))
			}
			values[i].Value = list
		}
	}
	return JSON("config.json", func() (any, error) { return values, nil })
}

// redacted is a setting without the password that it may hold, against all advice.
func redacted(value string) string {
	if !strings.Contains(value, "://") {
		return value
	}
	u, err := url.Parse(value)
	switch {
	case err != nil:
		return "(an address that cannot be read)"
	case u.User != nil:
		u.User = url.User("redacted")
		return u.String()
	}
	return value
}

// Audit is the part with the end of the audit log in the state folder dir.
func Audit(dir string) Part {
	return Part{"audit.log", func() ([]byte, error) {
		f, err := os.Open(filepath.Join(dir, "audit.log"))
		if err != nil {
			return nil, err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		start := max(0, info.Size()-auditLimit)
		text, err := io.ReadAll(io.NewSectionReader(f, start, auditLimit))
		if start > 0 { // the first line is not whole
			_, text, _ = bytes.Cut(text, []byte("\n"))
		}
		return text, err
	}}
}

// Write writes the parts to w. What cannot be had is said in the bundle, and is no
// error.
func Write(w io.Writer, now time.Time, parts ...Part) error {
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	var missing bytes.Buffer
	add := func(name string, text []byte) error {
		err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: folder + "/" + name, Mode: 0o600, Size: int64(len(text)), ModTime: now})
		if err == nil {
			_, err = t.Write(text)
		}
		return err
	}
	for _, p := range parts {
		text, err := p.Read()
		if len(text) > partLimit {
			text, err = nil, fmt.Errorf("%d bytes, limit %d", len(text), partLimit)
		}
		if err != nil {
			fmt.Fprintf(&missing, "%s: %v\n", p.Name, err)
		}
		if text == nil {
			continue
		}
		if err := add(p.Name, text); err != nil {
			return fmt.Errorf("cannot write the bundle: %w", err)
		}
	}
	if err := errors.Join(add("missing.txt", missing.Bytes()), t.Close(), z.Close()); err != nil {
		return fmt.Errorf("cannot write the bundle: %w", err)
	}
	return nil
}
