package tpm

import (
	"context"
	"crypto"
	"fmt"
	"io"

	"github.com/google/go-tpm/tpm2"

	"birthmark/pkg/rot"
)

// A Key is a signing key in the TPM. It is a rot.Key, usable in crypto/tls with
// every version and scheme that its algorithm allows. It loads itself again when
// the TPM was reset or another key needed the room.
type Key struct {
	root   *Root
	public *tpm2.TPMTPublic
	key    crypto.PublicKey
	blob   rot.Blob
	load   func() (tpm2.NamedHandle, error) // holding the root's turn

	// Owned by whoever has the root's turn.
	handle tpm2.NamedHandle // zero when it is not loaded
	used   uint64           // Root.clock of the last use
	closed bool
}

var (
	_ rot.Key       = (*Key)(nil)
	_ rot.Describer = (*Key)(nil)
)

// Public returns an *ecdsa.PublicKey or *rsa.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.key }

// Blob returns the key file of an LDevID; nil for the IDevID.
func (k *Key) Blob() rot.Blob { return k.blob }

// Describe names the attributes that the TPM enforces for this key.
func (k *Key) Describe() []string { return attributes(k.public.ObjectAttributes) }

// Sign signs a digest made with opts.HashFunc(): SHA-256, SHA-384 or SHA-512. RSA
// keys sign by PKCS #1 v1.5, or by PSS if opts says so, with a salt as long as the
// hash. ECDSA signatures are ASN.1 DER. The first argument is not used: the TPM
// has its own random numbers. It costs one TPM command.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	digest, scheme, err := k.scheme(digest, opts)
	if err != nil {
		return nil, fmt.Errorf("cannot sign: %w", err)
	}
	var signature []byte
	err = k.root.run(context.Background(), func() error {
		signature, err = k.sign(digest, scheme)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot sign with the TPM: %w", err)
	}
	return signature, nil
}

// sign needs the root's turn.
func (k *Key) sign(digest []byte, scheme tpm2.TPMTSigScheme) ([]byte, error) {
	handle, err := k.ready()
	if err != nil {
		return nil, err
	}
	answer, err := execute(k.root, tpm2.Sign{
		KeyHandle:  tpm2.AuthHandle{Handle: handle.Handle, Name: handle.Name, Auth: k.root.session.authorize("", in)},
		Digest:     tpm2.TPM2BDigest{Buffer: digest},
		InScheme:   scheme,
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	})
	if err != nil {
		return nil, unsupported(err) // the hash, or the scheme
	}
	signature, err := signatureBytes(answer.Signature)
	if err != nil {
		return nil, broken(err)
	}
	return signature, nil
}

// ready makes sure that the key is loaded. It needs the root's turn.
func (k *Key) ready() (tpm2.NamedHandle, error) {
	k.used = k.root.clock
	if k.closed {
		return k.handle, fmt.Errorf("%w: the key was closed", rot.ErrUnavailable)
	}
	if k.handle.Handle == 0 {
		handle, err := k.load()
		if err != nil {
			return handle, err
		}
		k.handle = handle
		k.root.loaded[k] = struct{}{}
	}
	return k.handle, nil
}

// Close unloads the key. It may be called again, and after the root's Close.
func (k *Key) Close() error {
	r := k.root
	r.turn <- struct{}{}
	defer func() { <-r.turn }()
	k.closed = true
	if k.handle.Handle == 0 || r.closed {
		return nil
	}
	r.tpm.ctx = context.Background()
	if err := r.unload(k); err != nil {
		r.leave()
		return fmt.Errorf("cannot unload a key from the TPM: %w", meaning(err))
	}
	return nil
}

// unload takes a key out of the TPM's memory, unless it lives there.
func (r *Root) unload(k *Key) error {
	handle := k.handle.Handle
	k.handle = tpm2.NamedHandle{}
	delete(r.loaded, k)
	if !isTransient(handle) {
		return nil
	}
	return r.flush(handle)
}

// makeRoom unloads the key that has not been used for the longest time, sparing
// those that the command at hand needs. A TPM without resource manager has as few
// as three slots, and uses one itself for a persistent parent.
func (r *Root) makeRoom() bool {
	var oldest *Key
	for k := range r.loaded {
		if k.used < r.clock && isTransient(k.handle.Handle) && (oldest == nil || k.used < oldest.used) {
			oldest = k
		}
	}
	return oldest != nil && r.unload(oldest) == nil
}
