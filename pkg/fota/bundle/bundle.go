// Package bundle reads firmware bundles as `rauc bundle` makes them, and believes
// nothing of them that was not signed.
//
//	b, err := bundle.Open(file, size, trust)
//	err = policy.Check(b.Manifest)
//	err = b.CopyImage(ctx, slot, b.Manifest.Images[0], progress)
//
// A bundle is a file system, squashfs, with a signature behind it:
//
//	verity  squashfs | hash tree | CMS with the manifest in it | length of the CMS
//	plain   squashfs | CMS over all that is before it | length of the CMS
//
// # Order
//
// [Open] reads the length and the CMS and nothing else. When it returns, the signature
// is right, its signer is one that [cms.Trust] lets sign, the manifest is understood to
// the last key, and the file has the length that goes with the hash tree. Nothing that
// an attacker could write has been parsed but two lengths and the CMS: squashfs is read
// only through the tree, whose root is in the manifest.
//
// # What is promised
//
// Every byte that is parsed or handed out was hashed in memory that nobody else writes
// to, after it was read; it is that copy which is used. A file that is replaced, written
// to through another descriptor, or served differently the second time is refused when
// the difference is read, before it is used (CVE-2020-25860).
//
// [Bundle.CopyImage] returns nil only if the writer was given all bytes of the image, no
// others, and the digest in the manifest is theirs. Until then what was written is worth
// nothing: it may be the beginning of an image. [Bundle.Verify] is for looking at a
// bundle; whoever installs it needs it no more than CopyImage does.
//
// Memory does not grow with the bundle: four spans of 128 KiB, one block for each level
// of the tree, and what squashfs needs for a file. While Verify looks, there are four spans
// on their way to be hashed, and a bit for each span of the bundle besides.
//
// # Plain bundles
//
// There is no tree in a plain bundle, and its manifest is in the payload: all of it has
// to be read before anything may be believed, so [Open] refuses it, and [OpenPlain] does
// that reading. In the same pass it makes a table of digests, to which the promise above
// holds for every later reading. The price is that all is read twice, and the limit of
// 2 GiB - 1 for the payload.
//
// # Whom to believe
//
// [TrustFiles] reads that from files: root certificates, pinned CAs and CRLs. Everybody who
// installs a bundle, or says whether it would be installed, reads them there.
//
// # What is refused on purpose
//
// Encrypted bundles, hooks, handlers, adaptive images, images for variants: a device
// that would not do what the maker meant must not do half of it.
//
// # Errors
//
// A bundle that is refused is a *[fota.Refusal] with a stage and a code:
//
//	container  trailer unsigned plain
//	cms        crypt, and the codes of [cms.ReadSigned]
//	chain      the codes of [cms.Trust.Verify] and [TrustFiles.Read]
//	manifest   size text syntax duplicate unknown missing value filename version
//	           format verity inner, and what is refused on purpose: crypt hooks
//	           handler adaptive variant
//	policy     plain
//	payload    geometry tree block padding digest changed
//	squashfs   the codes of [squashfs.FormatError]
//	image      missing size digest
//
// Every other error is trouble with reading or writing, and says nothing about the
// bundle. A source that ends before its size is such trouble.
package bundle

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"sync"

	"birthmark/pkg/cms"
	"birthmark/pkg/fota"
	"birthmark/pkg/fota/bundle/squashfs"
)

// A Bundle is one whose signature was verified, and which may be read through that. It
// is safe for concurrent use; images are copied one after another.
type Bundle struct {
	Manifest *fota.Manifest
	Chain    []*x509.Certificate // of its signer, who comes first; the anchor is the last

	payload *spans

	mu    sync.Mutex
	files *squashfs.FS // in the payload; nil until an image was asked for
}

// Open verifies who signed a bundle of size bytes, and what, from its end alone. A plain
// bundle is refused, at [fota.StagePolicy].
func Open(r io.ReaderAt, size int64, trust *cms.Trust) (*Bundle, error) {
	s, err := readSigned(r, size, trust)
	if err != nil {
		return nil, err
	}
	if s.Content == nil {
		return nil, fota.Refuse(fota.StagePolicy, "plain", "the signature is one over the whole payload (format=plain), and only verity is allowed")
	}
	return s.verity(r)
}

// OpenPlain does what Open does, and takes plain bundles, too, of which it reads
// everything.
func OpenPlain(ctx context.Context, r io.ReaderAt, size int64, trust *cms.Trust, progress func(done, total int64)) (*Bundle, error) {
	s, err := readSigned(r, size, trust)
	if err != nil {
		return nil, err
	}
	if s.Content != nil {
		return s.verity(r)
	}
	return s.plain(ctx, r, &tally{total: s.payload, report: progress})
}

// A signed container knows what was signed and by whom.
type signed struct {
	container
	*cms.Signed
	chain []*x509.Certificate
}

func readSigned(r io.ReaderAt, size int64, trust *cms.Trust) (s signed, err error) {
	if s.container, err = readContainer(r, size); err != nil {
		return s, err
	}
	if s.Signed, err = cms.ReadSigned(s.signature); err != nil {
		if isEnveloped(s.signature) {
			return s, fota.Refuse(fota.StageCMS, "crypt", "the bundle is encrypted (format=crypt); this device has no key for it")
		}
		return s, refused(fota.StageCMS, err)
	}
	if trust == nil {
		trust = &cms.Trust{}
	}
	if s.chain, err = trust.Verify(s.Signed); err != nil {
		return s, refused(fota.StageChain, err)
	}
	return s, nil
}

// isEnveloped reports whether a message says of itself that it is encrypted: id-envelopedData
// (RFC 5652, 6.1) is the first that stands in it.
func isEnveloped(message []byte) bool {
	id := []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x03}
	const header = 6 // bytes of a SEQUENCE's tag and length, at most
	i := bytes.Index(message, id)
	return 0 < i && i <= header
}

// refused says at which stage package cms has refused something.
func refused(stage fota.Stage, err error) error {
	var r *cms.Refusal
	if !errors.As(err, &r) {
		return fmt.Errorf("cannot verify the signature: %w", err)
	}
	return &fota.Refusal{Stage: stage, Code: r.Code, Err: r.Err}
}

func (s signed) verity(r io.ReaderAt) (*Bundle, error) {
	m, err := readManifest(s.Content, outside)
	if err != nil {
		return nil, err
	}
	t, size, err := newTree(r, s.payload, m.Verity)
	if err != nil {
		return nil, err
	}
	return &Bundle{Manifest: m, Chain: s.chain, payload: newSpans(t, size)}, nil
}

func (s signed) plain(ctx context.Context, r io.ReaderAt, t *tally) (*Bundle, error) {
	made, err := hashPlain(ctx, r, s.payload, s.Signed, t)
	if err != nil {
		return nil, err
	}
	payload := newSpans(made, s.payload)
	payload.verified = true
	files, err := openFiles(payload, payload.size)
	if err != nil {
		return nil, err
	}
	m, err := readInner(files)
	switch {
	case err != nil:
		return nil, err
	case m == nil:
		return nil, refuse("missing", "there is no manifest in the payload")
	case m.Format != fota.FormatPlain:
		return nil, refuse("format", "it says format=%s, and the signature is one over the whole payload", m.Format)
	}
	return &Bundle{Manifest: m, Chain: s.chain, payload: payload}, nil
}
