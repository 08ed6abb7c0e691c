package tpm

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"birthmark/pkg/rot"
)

const qualifyingLimit = 32 // bytes; TPMs take at least that many

// Certify lets the attestation key state that k is in this TPM, with which
// attributes (TPM 2.0 Part 3, 18.2). An IDevID that the factory made by the TCG's
// template cannot be certified: rot.ErrUnsupported.
func (r *Root) Certify(ctx context.Context, k rot.Key, qualifying []byte) (rot.Evidence, error) {
	key, ok := k.(*Key)
	if !ok || key.root != r {
		return rot.Evidence{}, fmt.Errorf("cannot certify a key: %w", rot.ErrNotOurs)
	}
	if len(qualifying) > qualifyingLimit {
		return rot.Evidence{}, fmt.Errorf("cannot certify a key: %d bytes of qualifying data, at most %d", len(qualifying), qualifyingLimit)
	}
	ak, err := r.endorsed(ctx, "attestation key", factoryIAKHandle, ak())
	if err != nil {
		return rot.Evidence{}, err
	}
	defer ak.Close()
	var answer *tpm2.CertifyResponse
	err = r.run(ctx, func() error {
		object, err := key.ready()
		if err != nil {
			return err
		}
		signer, err := ak.ready()
		if err != nil {
			return err
		}
		answer, err = execute(r, tpm2.Certify{
			// The session may stand for one of the two; its HMAC covers both.
			ObjectHandle:   tpm2.AuthHandle{Handle: object.Handle, Name: object.Name, Auth: tpm2.PasswordAuth(nil)},
			SignHandle:     tpm2.AuthHandle{Handle: signer.Handle, Name: signer.Name, Auth: r.session.authorize("", in|out)},
			QualifyingData: tpm2.TPM2BData{Buffer: qualifying},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		})
		if errors.Is(err, tpm2.TPMRCAuthType) {
			err = fmt.Errorf("%w: %w", rot.ErrUnsupported, err)
		}
		return err
	})
	if err != nil {
		return rot.Evidence{}, fmt.Errorf("cannot certify a key: %w", err)
	}
	return rot.Evidence{
		Attest:    answer.CertifyInfo.Bytes(),
		Signature: tpm2.Marshal(answer.Signature),
		Public:    tpm2.Marshal(key.public),
		AK:        tpm2.Marshal(ak.public),
	}, nil
}
