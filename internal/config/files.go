package config

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode"
)

const (
	fileLimit   = 256 << 10 // bytes of a file that is named in a configuration, or is one
	secretLimit = 1 << 10   // bytes of a password
)

// Instead of a file a setting can name a credential of systemd's (systemd.exec(5),
// LoadCredential=), which only the unit's processes can read.
const (
	credentialPrefix = "credential:"
	credentialName   = 255 // bytes, as of any file
	// agentCredentials is where they are looked for without $CREDENTIALS_DIRECTORY: by
	// root, who wants to know whether the configuration is fine.
	agentCredentials = "/run/credentials/birthmark-agent.service"
)

// ReadFile reads a file of at most 256 KiB.
func ReadFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the file: %w", err)
	}
	if !info.Mode().IsRegular() && info.Mode()&fs.ModeCharDevice == 0 {
		return nil, fmt.Errorf("cannot read %s: not a file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, fileLimit+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read the file: %w", err)
	}
	if len(text) > fileLimit {
		return nil, fmt.Errorf("cannot read %s: more than %d KiB", path, fileLimit>>10)
	}
	return text, nil
}

// readNamed reads the file that a setting names, or the credential.
func readNamed(setting string) ([]byte, error) {
	name, ok := strings.CutPrefix(setting, credentialPrefix)
	if !ok {
		return ReadFile(setting)
	}
	if name == "" || name == "." || name == ".." || len(name) > credentialName || strings.ContainsAny(name, "/\x00") {
		return nil, fmt.Errorf("%.20q is no name of a credential", name)
	}
	text, err := ReadFile(filepath.Join(cmp.Or(os.Getenv("CREDENTIALS_DIRECTORY"), agentCredentials), name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: birthmark-agent.service needs LoadCredential=%s:FILE, and a restart", err, name)
	}
	return text, err
}

// reason is an error of ReadFile without the path, for a message that begins with
// it.
func reason(err error) string {
	var path *fs.PathError
	if errors.As(err, &path) {
		return "cannot read the file: " + path.Err.Error()
	}
	return err.Error()
}

// ReadCertificates reads a PEM file, or credential, with one certificate or more.
func ReadCertificates(path string) ([]*x509.Certificate, error) {
	text, err := readNamed(path)
	if err != nil {
		return nil, err
	}
	certs, err := ParseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("cannot use %s: %w", path, err)
	}
	return certs, nil
}

// ParseCertificates reads PEM with one certificate or more, and nothing else but
// text between them.
func ParseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it holds a %s, not only certificates", strings.ToLower(block.Type))
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d in it: %w", len(certs)+1, err)
		}
		certs, text = append(certs, cert), rest
	}
	if certs == nil {
		return nil, errors.New("no PEM certificate in it")
	}
	return certs, nil
}

// ReadSecret reads a password from a file or credential: one line of at most 1 KiB, without the line's end.
func ReadSecret(path string) (string, error) {
	text, err := readNamed(path)
	if err != nil {
		return "", err
	}
	secret := string(bytes.TrimRight(text, "\r\n"))
	switch {
	case secret == "":
		return "", fmt.Errorf("cannot use %s: it is empty", path)
	case len(secret) > secretLimit:
		return "", fmt.Errorf("cannot use %s: more than %d bytes", path, secretLimit)
	case strings.ContainsFunc(secret, unicode.IsControl):
		return "", fmt.Errorf("cannot use %s: more than one line, or control characters", path)
	}
	return secret, nil
}

// ParseSHA256 reads a fingerprint as tools print it: 64 hex digits, with or without
// colons.
func ParseSHA256(text string) ([]byte, error) {
	sum, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(text), ":", ""))
	if err != nil || len(sum) != sha256.Size {
		return nil, fmt.Errorf("%q is no SHA-256 fingerprint: %d hex digits are needed", clip(text), 2*sha256.Size)
	}
	return sum, nil
}
