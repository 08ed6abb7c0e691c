package tpm

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"birthmark/pkg/rot"
)

// A hostile TPM answers what the fuzzer likes: one byte of tag and code, two of
// length, then the parameters.
type hostile struct {
	script []byte
	answer bytes.Buffer
}

func (h *hostile) Write(command []byte) (int, error) {
	h.answer.Reset()
	if len(h.script) < 3 {
		return len(command), nil
	}
	kind, n := h.script[0], min(int(binary.BigEndian.Uint16(h.script[1:])), len(h.script)-3)
	body := h.script[3 : 3+n]
	h.script = h.script[3+n:]
	r := response(tpm2.TPMRC(kind>>1), body...)
	r[1] |= kind & 1 << 1 // TPM_ST_SESSIONS
	h.answer.Write(r)
	return len(command), nil
}

func (h *hostile) Read(b []byte) (int, error) { return h.answer.Read(b) }
func (h *hostile) Close() error               { return nil }

func newRoot(link io.ReadWriteCloser, known rot.Identity) *Root {
	return &Root{
		address: "unix:fuzz",
		log:     slog.New(slog.DiscardHandler),
		turn:    make(chan struct{}, 1),
		tpm:     &transport{link: link, deadline: time.Minute},
		id:      known,
		loaded:  make(map[*Key]struct{}),
	}
}

// A hostile TPM may refuse everything; it must not crash the agent. The seeds are
// what swtpm answered at a first boot and at a later one.
func FuzzHostileTPM(f *testing.F) {
	f.Add([]byte{0, 0, 0}, false)
	f.Fuzz(func(t *testing.T, script []byte, known bool) {
		var id rot.Identity
		if known {
			id = rot.Identity{Kind: "tpm", EK: "00", SRKName: "000b00"}
		}
		r := newRoot(&hostile{script: script}, id)
		r.tpm.ctx = t.Context()
		if err := r.attach(); err != nil {
			return
		}
		if known {
			t.Error("a made-up TPM passed for a remembered one")
		}
		r.completeIdentity()
		if k, err := r.IDevID(t.Context()); err == nil {
			t.Errorf("a made-up TPM made the key %v", k.Public())
		}
	})
}

func FuzzParseCertificate(f *testing.F) {
	f.Add([]byte{0x30, 0x03, 0x02, 0x01, 0x01})
	f.Fuzz(func(t *testing.T, data []byte) {
		der, key, err := parseCertificate(data)
		if err == nil && (key == nil || !bytes.HasPrefix(data, der)) {
			t.Errorf("found key %v in %x", key, data)
		}
	})
}

// FuzzPublic takes public areas as they stand in key files.
func FuzzPublic(f *testing.F) {
	for _, t := range ekTemplates {
		f.Add(tpm2.Marshal(t.public))
	}
	f.Add(tpm2.Marshal(rsaKey(2048)))
	f.Add(tpm2.Marshal(ak()))
	f.Fuzz(func(t *testing.T, area []byte) {
		public := tpm2.BytesAs2B[tpm2.TPMTPublic](area)
		k, err := newRoot(nil, rot.Identity{}).child(nil, public, tpm2.TPM2BPrivate{})
		if err != nil {
			return
		}
		digest := sha256.Sum256(area)
		if _, _, err := k.scheme(digest[:], crypto.SHA256); err != nil {
			t.Errorf("a key that cannot sign: %v", err)
		}
		keyHash(k.Public())
		k.Describe()
	})
}
