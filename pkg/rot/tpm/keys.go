package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"birthmark/pkg/rot"
	"birthmark/pkg/rot/tpm/keyfile"
)

// IDevID returns the birth key: the factory's, if there is one, or else our own
// P-256 key. Both are the same after TPM2_Clear.
func (r *Root) IDevID(ctx context.Context) (rot.Key, error) {
	return r.endorsed(ctx, "IDevID", factoryIDevIDHandle, idevid())
}

// endorsed returns the key that the factory left at a handle or, if it left none,
// the primary key of the endorsement hierarchy that follows from a template.
func (r *Root) endorsed(ctx context.Context, what string, factory tpm2.TPMHandle, template tpm2.TPMTPublic) (*Key, error) {
	k := &Key{root: r}
	err := r.run(ctx, func() error {
		public, name, err := r.readPublic(factory)
		switch {
		case err == nil:
			handle := tpm2.NamedHandle{Handle: factory, Name: name}
			if err := r.confirm(handle); err != nil {
				return err
			}
			a := public.ObjectAttributes
			if !a.FixedTPM || !a.SensitiveDataOrigin || a.Restricted != template.ObjectAttributes.Restricted || !a.SignEncrypt {
				return fmt.Errorf("%w: it holds something else at %#x", rot.ErrUnsupported, factory)
			}
			k.load = func() (tpm2.NamedHandle, error) { return handle, nil }
			return k.adopt(public)
		case !isAbsent(err):
			return err
		}
		k.load = func() (tpm2.NamedHandle, error) { return k.primary(template) }
		_, err = k.ready()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot use the %s: %w", what, err)
	}
	return k, nil
}

// adopt takes a public area as the key's.
func (k *Key) adopt(public *tpm2.TPMTPublic) error {
	key, err := publicKey(public)
	if err != nil {
		return err
	}
	k.public, k.key = public, key
	return nil
}

// primary lets the TPM make a primary key again. The session's HMAC covers the
// answer, and with it the public key. It is another one than before only if the
// chip's maker gave the endorsement hierarchy a new seed.
func (k *Key) primary(template tpm2.TPMTPublic) (tpm2.NamedHandle, error) {
	answer, err := execute(k.root, tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: k.root.session.authorize("", in|out)},
		InPublic:      tpm2.New2B(template),
	})
	if err != nil {
		return tpm2.NamedHandle{}, err
	}
	public, err := answer.OutPublic.Contents()
	if err == nil && k.key == nil {
		err = k.adopt(public)
	}
	if err != nil {
		return tpm2.NamedHandle{}, broken(err)
	}
	if !bytes.Equal(tpm2.Marshal(public), tpm2.Marshal(k.public)) {
		err := fmt.Errorf("%w: its endorsement hierarchy makes other keys than before", rot.ErrReplaced)
		return tpm2.NamedHandle{}, errors.Join(err, k.root.flush(answer.ObjectHandle))
	}
	return tpm2.NamedHandle{Handle: answer.ObjectHandle, Name: answer.Name}, nil
}

// Create makes an LDevID under the SRK. P-384 and RSA depend on the chip; an RSA
// key may take half a minute.
func (r *Root) Create(ctx context.Context, a rot.Algorithm) (rot.Key, error) {
	template, ok := ldevid(a)
	if !ok {
		return nil, fmt.Errorf("cannot make a key of kind %q: want %s, %s or %s", a, rot.P256, rot.P384, rot.RSA2048)
	}
	var k *Key
	err := r.run(ctx, func() error {
		made, err := execute(r, tpm2.Create{ParentHandle: r.parent(), InPublic: tpm2.New2B(template)})
		if err != nil {
			return unsupported(err)
		}
		blob, err := keyfile.Marshal(keyfile.Key{
			Parent:    uint32(srkHandle),
			Public:    tpm2.Marshal(made.OutPublic),
			Private:   tpm2.Marshal(made.OutPrivate),
			EmptyAuth: true,
		})
		if err != nil {
			return err
		}
		if k, err = r.child(blob, made.OutPublic, made.OutPrivate); err != nil {
			return err
		}
		if _, err := k.ready(); err != nil {
			return err
		}
		return k.checkPSS()
	})
	if err != nil {
		return nil, fmt.Errorf("cannot make a %s key in the TPM: %w", a, err)
	}
	return k, nil
}

// Open loads an LDevID from its key file. Errors to decide by: rot.ErrNotOurs when
// it is damaged, of another TPM, or of this one before it was cleared.
func (r *Root) Open(ctx context.Context, b rot.Blob) (rot.Key, error) {
	k, err := r.open(ctx, b)
	if err != nil {
		return nil, fmt.Errorf("cannot open the key: %w", err)
	}
	return k, nil
}

func (r *Root) open(ctx context.Context, b rot.Blob) (*Key, error) {
	file, err := keyfile.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", rot.ErrNotOurs, err)
	}
	if file.Parent != uint32(srkHandle) {
		return nil, fmt.Errorf("%w: its parent is %#x, not %#x", rot.ErrNotOurs, file.Parent, srkHandle)
	}
	public, private := tpm2.BytesAs2B[tpm2.TPMTPublic](file.Public[2:]), tpm2.TPM2BPrivate{Buffer: file.Private[2:]}
	k, err := r.child(b, public, private)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", rot.ErrNotOurs, err)
	}
	return k, r.run(ctx, func() error {
		_, err := k.ready()
		return err
	})
}

// child is a key under the SRK, not loaded yet.
func (r *Root) child(b rot.Blob, public tpm2.TPM2BPublic, private tpm2.TPM2BPrivate) (*Key, error) {
	area, err := public.Contents()
	if err != nil {
		return nil, err
	}
	if !isSigner(area) {
		return nil, fmt.Errorf("not a key that was made to sign and stay in a TPM, but one with %q", attributes(area.ObjectAttributes))
	}
	name, err := tpm2.ObjectName(area)
	if err != nil {
		return nil, err
	}
	k := &Key{root: r, blob: bytes.Clone(b)}
	if err := k.adopt(area); err != nil {
		return nil, err
	}
	k.load = func() (tpm2.NamedHandle, error) {
		answer, err := execute(r, tpm2.Load{ParentHandle: r.parent(), InPrivate: private, InPublic: public})
		if refusedParameter(err) { // TPM_RC_INTEGRITY: another TPM wrapped it
			err = fmt.Errorf("%w: %w", rot.ErrNotOurs, err)
		}
		if err != nil {
			return tpm2.NamedHandle{}, err
		}
		if !bytes.Equal(answer.Name.Buffer, name.Buffer) {
			return tpm2.NamedHandle{}, broken(errors.New("the TPM loaded another key"))
		}
		return tpm2.NamedHandle{Handle: answer.ObjectHandle, Name: *name}, nil
	}
	return k, nil
}

func (r *Root) parent() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: r.srk.Handle, Name: r.srk.Name, Auth: r.session.authorize("", in|out)}
}

// checkPSS signs once with a new RSA key. Older chips salt PSS signatures as long
// as they can, which TLS 1.3 refuses (RFC 8446, 4.2.3): better now than when the
// certificate is there.
func (k *Key) checkPSS() error {
	public, ok := k.key.(*rsa.PublicKey)
	if !ok {
		return nil
	}
	digest := sha256.Sum256([]byte("birthmark"))
	signature, err := k.sign(digest[:], hashScheme(tpm2.TPMAlgRSAPSS, tpm2.TPMAlgSHA256))
	if err != nil {
		return err
	}
	err = rsa.VerifyPSS(public, crypto.SHA256, digest[:], signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	if err != nil {
		return fmt.Errorf("%w: its RSA-PSS signatures do not fit TLS 1.3: %w", rot.ErrUnsupported, err)
	}
	return nil
}
