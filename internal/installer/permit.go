package installer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/permit"
)

// takePermit remembers a permit that is good, in place of the one before.
func (s *Server) takePermit(ctx context.Context, file *os.File) error {
	if s.memory == nil {
		return errForgetful
	}
	size, err := fileSize(file)
	if err == nil && size > permit.Limit {
		err = fmt.Errorf("it has %d bytes, a permit has at most %d", size, permit.Limit)
	}
	if err != nil {
		return fmt.Errorf("cannot use the descriptor: %w", err)
	}
	text, err := io.ReadAll(io.NewSectionReader(file, 0, size))
	if err != nil {
		return err
	}
	device, err := s.Boot.Status(ctx)
	if err != nil {
		return err
	}
	if _, err := s.permitted(text, device); err != nil {
		return err
	}
	return s.memory.Update(func(m *memory) error { m.Permit = string(text); return nil })
}

// permitted is the release that a permit is for. It is asked each time that it is used:
// a permit ends, its signer may have been revoked, and what is remembered is nobody's word.
// Whether it has ended takes a clock that is right. Where certificates of firmware are
// taken without one ([clock.Clock.Verify]), a device would have no way on; without a permit
// it has.
func (s *Server) permitted(text []byte, device fota.Status) (fota.Version, error) {
	if !s.Clock.Trusted() {
		return fota.Version{}, fota.Refuse(fota.StagePolicy, "permit", "the permit is not taken: it ends, and the clock is not synchronised")
	}
	trust, err := permit.TrustIn(s.Trust...).Read()
	if err != nil {
		return fota.Version{}, err
	}
	trust.Grace, trust.Now, trust.Build = s.Grace, s.Clock.Now(), s.Clock.Verify
	p, chain, err := permit.Open(text, trust)
	if err != nil {
		return fota.Version{}, err
	}
	if err := s.checkCRLs(chain, trust.CRLs); err != nil {
		return fota.Version{}, err
	}
	return p.Version, p.Check(device.Compatible, s.memory.Get().Floor.Chip.EK, s.Clock.Now())
}

// allow puts into what Boot says which older release the owner permits, if there is one.
func (s *Server) allow(device *fota.Status) {
	if s.memory == nil || s.memory.Get().Permit == "" {
		return
	}
	v, err := s.permitted([]byte(s.memory.Get().Permit), *device)
	var r *fota.Refusal
	switch {
	case err == nil:
		device.Permit = v
	case !errors.As(err, &r) || r.Code != "permit": // or else it is over
		s.Log.Warn("the owner's permit is not taken any more", "err", err)
	}
}
