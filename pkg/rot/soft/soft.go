// Package soft is a root of trust that deserves none: ordinary keys, for tests and
// for the lab. Whoever reads its memory or its folder has the keys. The device
// binary does not link it.
//
// It keeps the promises of package rot otherwise: the IDevID is the same at every
// call, and a Blob of one Root is refused by every other.
package soft

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"birthmark/pkg/rot"
)

const (
	pemType = "BIRTHMARK SOFTWARE KEY" // so that nobody takes it for a device's
	pemRoot = "Root"                   // PEM header with the EK of the Identity

	blobLimit = 16 << 10 // bytes of a Blob
)

// A Root is a software root of trust. It is safe for concurrent use.
type Root struct {
	idevid crypto.Signer
	id     rot.Identity
}

var _ rot.Root = (*Root)(nil)

// New makes a root in memory, with a new IDevID (P-256).
func New() *Root {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // rand.Reader does not fail
	}
	return root(key)
}

// Open returns the root whose IDevID is in dir/idevid.pem, readable by its owner
// only. It makes dir and the key if there are none.
func Open(dir string) (*Root, error) {
	r, err := open(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open software root of trust: %w", err)
	}
	return r, nil
}

func open(dir string) (*Root, error) {
	path := filepath.Join(dir, "idevid.pem")
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return create(dir, path)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s is no PEM file", path)
	}
	key, err := parse(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return root(key), nil
}

// create writes the IDevID under another name first: half a file must not stand in
// the way of the next start.
func create(dir, path string) (*Root, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	r := New()
	text, err := r.blob(r.idevid)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return nil, err
	}
	return r, os.Rename(path+".new", path)
}

func root(idevid crypto.Signer) *Root {
	spki, err := x509.MarshalPKIXPublicKey(idevid.Public())
	if err != nil {
		panic(err) // parse and New make only keys that can be marshalled
	}
	sum := sha256.Sum256(spki)
	return &Root{idevid, rot.Identity{Kind: "software", Vendor: "none", EK: hex.EncodeToString(sum[:])}}
}

// Identity has the hash of the IDevID in place of an EK's.
func (r *Root) Identity() rot.Identity { return r.id }

// IDevID returns the birth key.
func (r *Root) IDevID(context.Context) (rot.Key, error) { return &key{Signer: r.idevid}, nil }

// Create makes a key in memory.
func (r *Root) Create(_ context.Context, a rot.Algorithm) (rot.Key, error) {
	signer, err := generate(a)
	if err != nil {
		return nil, fmt.Errorf("cannot make a key of kind %q: %w", a, err)
	}
	blob, err := r.blob(signer)
	if err != nil {
		return nil, fmt.Errorf("cannot make a key of kind %q: %w", a, err)
	}
	return &key{signer, blob}, nil
}

func generate(a rot.Algorithm) (crypto.Signer, error) {
	switch a {
	case rot.P256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case rot.P384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case rot.RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	}
	return nil, fmt.Errorf("want %s, %s or %s", rot.P256, rot.P384, rot.RSA2048)
}

// Open reads a Blob of this root; rot.ErrNotOurs for any other.
func (r *Root) Open(_ context.Context, b rot.Blob) (rot.Key, error) {
	if len(b) > blobLimit {
		return nil, fmt.Errorf("cannot open the key: %w: %d bytes, at most %d", rot.ErrNotOurs, len(b), blobLimit)
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemType || len(rest) > 0 || block.Headers[pemRoot] != r.id.EK {
		return nil, fmt.Errorf("cannot open the key: %w", rot.ErrNotOurs)
	}
	signer, err := parse(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("cannot open the key: %w: %w", rot.ErrNotOurs, err)
	}
	return &key{signer, bytes.Clone(b)}, nil
}

// Close does nothing: there is nothing to unload.
func (r *Root) Close() error { return nil }

func (r *Root) blob(signer crypto.Signer) (rot.Blob, error) {
	der, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Headers: map[string]string{pemRoot: r.id.EK}, Bytes: der}), nil
}

func parse(der []byte) (crypto.Signer, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	signer, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T cannot sign", parsed)
	}
	return signer, nil
}

// A key is an ordinary private key.
type key struct {
	crypto.Signer
	blob rot.Blob
}

var _ rot.Describer = (*key)(nil)

func (k *key) Blob() rot.Blob { return k.blob }

func (k *key) Close() error { return nil }

// Describe says what protects the key.
func (k *key) Describe() []string { return []string{"software", "not protected"} }
