package installer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"reflect"
	"time"

	"birthmark/pkg/fota"
	"birthmark/pkg/rot"
)

// A Chip is a root of trust that holds the floor: the oldest security version that may
// run, where no disk that is put back takes it back.
type Chip interface {
	rot.Counters
	Identity() rot.Identity
	Close() error
}

const (
	lookLimit  = 15 * time.Second // for a chip to say how high the floor is
	raiseLimit = time.Minute      // for all that it takes to raise it

	// stepsLimit is how far the floor goes up at once. A counter goes up by ones, and each
	// is a write to a memory that wears out. What is left is done at the next bless; no
	// release goes further in one step, unless it was not installed by this program.
	stepsLimit = fota.LeapLimit
)

// A holding is what is remembered of the floor.
type holding struct {
	Chip rot.Identity `json:"chip,omitzero"` // that holds it
	// Floor is the highest that was seen or meant: a chip that lost its own gets it back.
	Floor uint64 `json:"floor,omitempty"`
	// Rising: the counter is on its way up to Floor. While it is false, the counter has got
	// there, and who moves it is somebody else.
	Rising bool `json:"rising,omitempty"`
	// Epoch is the chip's other counter, as it was last: one is not made without the other.
	Epoch uint64 `json:"epoch,omitempty"`
	// Lost: since the floor was raised last, the chip was found without it, or with less.
	Lost bool `json:"lost,omitempty"`
}

// A floor is held by a chip and by what is remembered; the higher counts. It is for one
// goroutine at a time.
type floor struct {
	open func(ctx context.Context, known rot.Identity) (Chip, error) // nil: it is remembered only
	load func() holding
	save func(holding) error // durable when it returns nil
	log  *slog.Logger
}

// read says how high the floor is, and changes nothing. With an error it is how high it is
// at least; rot.ErrCleared means that the chip holds none, and gets one at the next bless.
func (f *floor) read(ctx context.Context) (level uint64, err error) {
	h := f.load()
	if f.open == nil {
		return h.Floor, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	chip, err := f.meet(ctx, h.Chip)
	if err != nil {
		return h.Floor, err
	}
	defer chip.Close() // what it leaves behind, the kernel takes away
	count, err := chip.Count(ctx, rot.FirmwareFloor)
	return max(count, h.Floor), err
}

// raise raises the floor to what was blessed, or to what is remembered if that is higher:
// it is remembered, then done, then remembered as done. A floor that is higher stays. Sure
// is called before anything moves, and returns nil when it is sure that the device will
// start what was blessed again. After an error, or a loss of power, raise is called again.
func (f *floor) raise(ctx context.Context, to uint64, sure func(context.Context) error) error {
	h := f.load()
	if f.open == nil {
		h.Floor = max(h.Floor, to)
		return f.note(h)
	}
	ctx, cancel := context.WithTimeout(ctx, raiseLimit)
	defer cancel()
	chip, err := f.meet(ctx, h.Chip)
	if err != nil {
		return err
	}
	defer chip.Close()
	count, epoch, err := counts(ctx, chip)
	missing := errors.Is(err, rot.ErrCleared)
	if to > max(h.Floor, count) {
		h.Lost = false
	}
	switch known := h.Chip.EK != ""; {
	case missing && known && !h.Rising:
		f.log.Warn("the chip has lost the floor, which is made anew", "remembered", h.Floor)
		h.Lost = true
	case missing: // never made, or not to the end
	case err != nil:
		return err
	case known && count > h.Floor:
		f.log.Warn("the floor was raised by somebody else", "floor", count, "remembered", h.Floor)
	case known && count < h.Floor && !h.Rising:
		f.log.Warn("the chip has a lower floor than it had, which is raised again", "floor", count, "remembered", h.Floor)
		h.Lost = true
	}
	h.Chip, h.Epoch = chip.Identity(), max(h.Epoch, epoch)
	h.Chip.EKCertificate = nil
	h.Floor = max(h.Floor, count, to)
	if h.Rising = missing || count < h.Floor; h.Rising {
		if err := sure(ctx); err != nil {
			return err
		}
		if err := f.note(h); err != nil {
			return err
		}
		if missing {
			count, err = create(ctx, chip, h.Floor, h.Epoch)
		} else {
			count, err = climb(ctx, chip, count, h.Floor)
		}
		if err != nil {
			return err
		}
		f.log.Info("the floor was raised", "floor", count)
		h.Rising = count < h.Floor
	}
	return f.note(h)
}

// note remembers h, if that is not what is remembered.
func (f *floor) note(h holding) error {
	if reflect.DeepEqual(h, f.load()) {
		return nil
	}
	return f.save(h)
}

// counts reads both counters; rot.ErrCleared if one is missing.
func counts(ctx context.Context, chip Chip) (floor, epoch uint64, err error) {
	floor, errFloor := chip.Count(ctx, rot.FirmwareFloor)
	epoch, errEpoch := chip.Count(ctx, rot.OwnerEpoch)
	for _, err := range []error{errFloor, errEpoch} {
		if err != nil && !errors.Is(err, rot.ErrCleared) {
			return 0, 0, err
		}
	}
	return floor, epoch, errors.Join(errFloor, errEpoch)
}

// create makes the counters that a chip does not have, at the values given.
func create(ctx context.Context, chip Chip, floor, epoch uint64) (count uint64, err error) {
	if err := chip.MakeCounters(ctx, floor, epoch); err != nil {
		return 0, err
	}
	return chip.Count(ctx, rot.FirmwareFloor)
}

// climb raises a counter, one by one.
func climb(ctx context.Context, chip Chip, count, to uint64) (uint64, error) {
	for range stepsLimit {
		if count >= to {
			break
		}
		var err error
		if count, err = chip.Raise(ctx, rot.FirmwareFloor); err != nil {
			return 0, err
		}
	}
	return count, nil
}

// meet opens the chip that is known, also when its owner was cleared; rot.ErrReplaced if
// it is another.
func (f *floor) meet(ctx context.Context, known rot.Identity) (Chip, error) {
	chip, err := f.open(ctx, known)
	if !errors.Is(err, rot.ErrCleared) {
		return chip, err
	}
	if chip, err = f.open(ctx, rot.Identity{}); err != nil {
		return nil, err
	}
	if got := chip.Identity().EK; got != known.EK {
		chip.Close()
		return nil, fmt.Errorf("%w: its EK is %.16s…, and %.16s… held the floor", rot.ErrReplaced, got, known.EK)
	}
	return chip, nil
}

// bless blesses what runs, and raises the floor to it. What is not done to the floor is
// no reason not to be blessed: the device has to come up again. It is done later.
func (s *Server) bless(ctx context.Context) error {
	if err := s.Boot.Bless(ctx); err != nil {
		return err
	}
	s.raise(ctx, func(context.Context) error { return nil })
	return nil
}

// catchUp ends what an earlier Server has begun: to raise the floor to what was blessed.
// That is blessed again before, since nobody knows whether it had reached the medium.
func (s *Server) catchUp(ctx context.Context) {
	if s.Boot != nil && s.memory != nil && s.Chip != nil {
		s.raise(ctx, s.Boot.Bless)
	}
}

// raise raises the floor to what runs, unless that is on trial.
func (s *Server) raise(ctx context.Context, sure func(context.Context) error) {
	device, err := s.Boot.Status(ctx)
	if err == nil && device.Trial {
		return
	}
	if err == nil {
		err = s.floor.raise(ctx, uint64(device.Running.Security), sure)
	}
	if err != nil {
		s.Log.Warn("the floor was not raised, will be tried again", "err", err)
	}
}

// stand puts the floor into what Boot says. What runs and is blessed is part of it, even
// before it is raised. With an error it may be higher; rot.ErrCleared means that it is
// what is remembered, since the chip holds none.
func (s *Server) stand(ctx context.Context, device *fota.Status) error {
	level, err := s.floor.read(ctx)
	if !device.Trial {
		level = max(level, uint64(device.Running.Security))
	}
	device.Floor = uint32(min(level, math.MaxUint32))
	if err != nil {
		return fmt.Errorf("cannot tell how high the floor is: %w", err)
	}
	return nil
}

// floorNotes are what somebody should know about the floor.
func (s *Server) floorNotes(device fota.Status, err error) (notes []string) {
	switch missing := errors.Is(err, rot.ErrCleared); {
	case missing && !device.Trial: // or else it is made when what runs is blessed
		notes = append(notes, "the TPM holds no floor, which is remembered on the disk only: see the installer's log")
	case err != nil && !missing:
		notes = append(notes, err.Error())
	}
	if running := device.Running; device.Floor > running.Security {
		notes = append(notes, fmt.Sprintf("%v runs, which is below the floor, security version %d: it goes on, and nothing below the floor is installed", running, device.Floor))
	}
	if s.memory != nil && s.memory.Get().Floor.Lost {
		notes = append(notes, fmt.Sprintf("the TPM was cleared, or set back: its floor was gone, or lower, and is made anew as it is remembered, security version %d", device.Floor))
	}
	return notes
}
