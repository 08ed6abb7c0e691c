package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

func (c *CA) path(name string) string { return filepath.Join(c.dir, name) }

// makeKey makes a P-256 key in a file.
func (c *CA) makeKey(name string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	text, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return key, replace(c.path(name), text, 0o600)
}

// loadKey reads a key that makeKey has written.
func (c *CA) loadKey(name string) (*ecdsa.PrivateKey, error) {
	key, err := load(c.path(name), x509.ParsePKCS8PrivateKey)
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s is not an ECDSA key", name)
	}
	return ec, nil
}

// loadCertificate reads the first certificate of a file.
func (c *CA) loadCertificate(name string) (*x509.Certificate, error) {
	return load(c.path(name), x509.ParseCertificate)
}

// load reads what is in the first PEM block of a file.
func load[T any](path string, parse func(der []byte) (T, error)) (v T, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return v, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return v, fmt.Errorf("%s holds no PEM", filepath.Base(path))
	}
	if v, err = parse(block.Bytes); err != nil {
		return v, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return v, nil
}

func encodeCertificates(certs ...*x509.Certificate) (text []byte) {
	for _, cert := range certs {
		text = append(text, encode("CERTIFICATE", cert.Raw)...)
	}
	return text
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return encode("PRIVATE KEY", der), nil
}

// replace puts text in place of what is at path: after a power cut there is the
// old or the new, and the new once replace has returned. Whoever calls it for the
// same path at the same time needs a lock.
func replace(path string, text []byte, mode fs.FileMode) (err error) {
	draft := path + ".new"
	if err := os.Remove(draft); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(draft, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(draft) // the next replace tries again
		}
	}()
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(draft, path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// syncFolder makes durable what was made and renamed in a folder.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
