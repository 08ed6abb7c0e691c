package agent

import (
	"context"
	"crypto"
	"errors"
	"io"
	"time"

	"birthmark/pkg/rot"
)

// lookLimit is for a look at the TPM. A handshake waits for it.
const lookLimit = 10 * time.Second

// An ldevid is the everyday key at work in TLS handshakes. crypto/tls keeps of an error
// of its key only the words, and a link tries again for ever: so when a signature fails,
// the key is looked for in its root once more.
type ldevid struct {
	rot.Key
	ctx  context.Context // of the step that it was opened for
	root rot.Root
	lost func(error) // told why the key is gone for good; may be nil
}

func openLDevID(ctx context.Context, root rot.Root, blob rot.Blob) (*ldevid, error) {
	key, err := root.Open(ctx, blob)
	if err != nil {
		return nil, err
	}
	return &ldevid{Key: key, ctx: ctx, root: root}, nil
}

func (k *ldevid) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signature, err := k.Key.Sign(random, digest, opts)
	if err != nil && k.lost != nil {
		if gone := k.look(); gone != nil {
			k.lost(gone)
		}
	}
	return signature, err
}

// look is why the key is not in its root any more, nil as long as it may be: a root
// that does not answer now has it, perhaps, in a minute.
func (k *ldevid) look() error {
	ctx, cancel := context.WithTimeout(k.ctx, lookLimit)
	defer cancel()
	again, err := k.root.Open(ctx, k.Blob())
	switch {
	case err == nil:
		again.Close()
	case errors.Is(err, rot.ErrReplaced), errors.Is(err, rot.ErrCleared), errors.Is(err, rot.ErrNotOurs):
		return err
	}
	return nil
}
