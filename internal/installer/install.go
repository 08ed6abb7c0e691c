package installer

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"

	"birthmark/pkg/cms"
	"birthmark/pkg/fota"
	"birthmark/pkg/fota/bundle"
	"birthmark/pkg/store"
)

// Memory is what a Server remembers.
type memory struct {
	// Staged is what the last install has finished.
	Staged *staged `json:"staged,omitempty"`
	// CRLs has the number of the newest CRL that was believed, by SHA-256 of its
	// issuer's public key.
	CRLs map[string]*big.Int `json:"crls,omitempty"`
	// Permit is the last one that was taken, as it was signed.
	Permit string `json:"permit,omitempty"`
	// Floor is who holds the floor, and how high.
	Floor holding `json:"floor,omitzero"`
}

// A staged release is one that install has finished, and nothing was written since.
type staged struct {
	Release
	Manifest *fota.Manifest `json:"manifest"`
}

var errForgetful = errors.New("nothing can be remembered, and so nothing installed: see the installer's log")

// remember opens the memory. A device whose medium is full or broken can still be
// blessed, so that is no reason not to serve. The function that it returns closes it.
func (s *Server) remember() (forget func()) {
	s.floor = floor{open: s.Chip, log: s.Log,
		load: func() holding { return holding{} },
		save: func(holding) error { return errForgetful },
	}
	m, err := store.Open[memory](s.State)
	if err != nil {
		s.Log.Error("nothing can be remembered", "err", err)
		return func() {}
	}
	if damaged := m.Damaged(); damaged != "" {
		s.Log.Error("what was remembered is damaged, and was set aside", "path", damaged)
	}
	s.memory = m
	s.floor.load = func() holding { return m.Get().Floor }
	s.floor.save = func(h holding) error { return m.Update(func(m *memory) error { m.Floor = h; return nil }) }
	return func() { m.Close() }
}

// install verifies a bundle and lets Boot write what is in it.
func (s *Server) install(ctx context.Context, p *peer, r request, file *os.File) (last answer, err error) {
	if s.memory == nil {
		return last, errForgetful
	}
	device, err := s.look(ctx)
	if err != nil {
		return last, err
	}
	if device.Trial {
		return last, errors.New("what runs is on trial: what it would be replaced by is in the other slot")
	}
	trust, err := s.trust()
	if err != nil {
		return last, err
	}
	var size int64
	if file != nil {
		size, err = fileSize(file)
	} else {
		size = *r.size
	}
	if err != nil {
		return last, fmt.Errorf("cannot use the descriptor: %w", err)
	}
	peer := s.listen(ctx, p, size)
	defer peer.close()
	var source io.ReaderAt = peer
	if file != nil {
		source = file
	}
	release, err := s.write(peer.ctx, device, trust, source, size, s.progress(p))
	var no *fota.Refusal
	if err != nil && !errors.As(err, &no) && peer.ctx.Err() != nil {
		err = context.Cause(peer.ctx) // which is why the rest did not go well
	}
	return answer{Written: release}, err
}

func (s *Server) listen(ctx context.Context, p *peer, size int64) *remote {
	if s.hear != nil {
		return s.hear(ctx, p, size)
	}
	return hearing(ctx, p, size)
}

// write goes from the last bytes of a bundle to a slot that could be started.
func (s *Server) write(ctx context.Context, device fota.Status, trust *cms.Trust, source io.ReaderAt, size int64, progress func(done, total int64)) (*Release, error) {
	b, err := bundle.Open(source, size, trust)
	if err != nil {
		return nil, err
	}
	if err := s.checkCRLs(b.Chain, trust.CRLs); err != nil {
		return nil, err
	}
	if err := device.Policy().Check(b.Manifest); err != nil {
		return nil, err
	}
	release := &Release{Version: b.Manifest.Version, Root: hex.EncodeToString(b.Manifest.Verity.Root[:])}
	stage := func(r *staged) error {
		return s.memory.Update(func(m *memory) error { m.Staged = r; return nil })
	}
	// From now on the other slot may hold anything.
	if err := stage(nil); err != nil {
		return nil, err
	}
	if err := s.Boot.Install(ctx, b.Manifest, b.CopyImage, progress); err != nil {
		return nil, err
	}
	return release, stage(&staged{*release, b.Manifest})
}

// checkCRLs refuses a chain of which a CRL has spoken that is older than one which was
// seen before, and remembers those that are newer. Package cms has verified that one of
// crls speaks of each certificate.
func (s *Server) checkCRLs(chain []*x509.Certificate, crls []*x509.RevocationList) error {
	return s.memory.Update(func(m *memory) error {
		for _, issuer := range chain[1:] {
			newest, id := newestCRL(issuer, crls), keyID(issuer)
			seen := m.CRLs[id]
			switch {
			case seen != nil && (newest == nil || newest.Cmp(seen) < 0):
				return fota.Refuse(fota.StageChain, "stale", "the CRL of %s is number %v, and number %v was seen before", issuer.Subject, newest, seen)
			case newest == nil:
				continue // it has no number: nothing can be said about its age
			}
			if m.CRLs == nil {
				m.CRLs = map[string]*big.Int{}
			}
			m.CRLs[id] = newest
		}
		return nil
	})
}
