package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"birthmark/pkg/cms"
	"birthmark/pkg/fota"
)

// plainLimit is the most bytes of payload that a plain bundle may have. RAUC before
// 1.15.2 counted in an int, and signed of a longer one the beginning only
// (CVE-2026-34155).
const plainLimit = 1<<31 - 1

// A table has a digest of every span of a payload that was hashed as a whole. It is
// made in the same pass, from the same copy of the bytes, and stays in memory: what is
// read again later is held against it, so that a file that was replaced in between is
// refused as if there were a tree (CVE-2020-25860).
type table struct {
	r     io.ReaderAt
	spans [][sha256.Size]byte // half a megabyte at plainLimit
}

// hashPlain reads the whole payload, holds it against what was signed, and returns its
// table.
func hashPlain(ctx context.Context, r io.ReaderAt, size int64, signed *cms.Signed, t *tally) (*table, error) {
	if size > plainLimit {
		return nil, fota.Refuse(fota.StageContainer, "plain", "a payload of %d bytes without a hash tree, limit %d", size, plainLimit)
	}
	made := &table{r: r}
	whole := signed.Hash.New()
	b := make([]byte, spanSize)
	for off := int64(0); off < size; off += spanSize {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b = b[:min(spanSize, size-off)]
		if err := readFull(r, b, off); err != nil {
			return nil, fmt.Errorf("cannot read the payload: %w", err)
		}
		whole.Write(b)
		made.spans = append(made.spans, sha256.Sum256(b))
		t.add(len(b))
	}
	if err := signed.Check(whole.Sum(nil)); err != nil {
		return nil, fota.Refuse(fota.StagePayload, "digest", "%w", err)
	}
	return made, nil
}

// load implements [loader].
func (t *table) load(p []byte, off int64) error {
	if err := readFull(t.r, p, off); err != nil {
		return fmt.Errorf("cannot read the payload: %w", err)
	}
	if sum := sha256.Sum256(p); !bytes.Equal(sum[:], t.spans[off/spanSize][:]) {
		return fota.Refuse(fota.StagePayload, "changed", "the payload is not what it was when its signature was verified")
	}
	return nil
}
