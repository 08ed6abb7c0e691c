package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"birthmark/pkg/rot"
)

// NV indices of ours, in the range that the TCG's registry leaves to owners.
const (
	layoutIndex = tpm2.TPMHandle(0x018B4D00)
	floorIndex  = tpm2.TPMHandle(0x018B4D01)
	epochIndex  = tpm2.TPMHandle(0x018B4D02)
)

const (
	layoutVersion = 1
	layoutSize    = 4 + 8 + 8 // bytes: layoutVersion, floor's base, epoch's base
	counterSize   = 8         // bytes, TPM 2.0 Part 3, 31.1
)

// Attributes of the indices. Whoever may use the TPM reads them and counts up,
// without the owner's authorization value: the agent does not have it where it is
// in escrow. Who counts up and may not makes a device that is too old for its own
// firmware or owner, and can do no more. The layout is written once: it is locked,
// until somebody with the owner's value, or TPM2_Clear, removes it.
var (
	layoutAttributes  = tpm2.TPMANV{NT: tpm2.TPMNTOrdinary, AuthWrite: true, AuthRead: true, OwnerRead: true, NoDA: true, WriteDefine: true}
	counterAttributes = tpm2.TPMANV{NT: tpm2.TPMNTCounter, AuthWrite: true, AuthRead: true, OwnerRead: true, NoDA: true}
)

// An nvIndex is one that is there.
type nvIndex struct {
	tpm2.NamedHandle
	public *tpm2.TPMSNVPublic
}

// MakeCounters makes both counters, at the values given; counters that are there it
// leaves as they are. It goes on where an earlier call was stopped. It needs the
// owner's authorization value.
func (r *Root) MakeCounters(ctx context.Context, floor, epoch uint64) error {
	err := r.run(ctx, func() error {
		_, err := r.count(rot.FirmwareFloor)
		if err == nil {
			_, err = r.count(rot.OwnerEpoch)
		}
		if errors.Is(err, rot.ErrCleared) {
			err = r.makeCounters(map[tpm2.TPMHandle]uint64{floorIndex: floor, epochIndex: epoch})
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot make the TPM's counters: %w", err)
	}
	return nil
}

// Count reads a counter; rot.ErrCleared when there is none.
func (r *Root) Count(ctx context.Context, c rot.Counter) (uint64, error) {
	var value uint64
	err := r.run(ctx, func() (err error) {
		value, err = r.count(c)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("cannot read the TPM's counter of the %s: %w", c, err)
	}
	return value, nil
}

// Raise adds one to a counter and returns what it is then. After an error it may
// have been raised: the caller reads it again.
func (r *Root) Raise(ctx context.Context, c rot.Counter) (uint64, error) {
	var value uint64
	err := r.run(ctx, func() error {
		if _, err := r.count(c); err != nil { // no counter without its base
			return err
		}
		i, err := r.index(counters[c], counterAttributes, counterSize)
		if err != nil {
			return err
		}
		if err := r.increment(i); err != nil {
			return err
		}
		value, err = r.count(c)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("cannot raise the TPM's counter of the %s: %w", c, err)
	}
	return value, nil
}

var counters = map[rot.Counter]tpm2.TPMHandle{rot.FirmwareFloor: floorIndex, rot.OwnerEpoch: epochIndex}

// count is what the TPM counts, less its base: a new counter of a TPM is above every
// one that it ever had. The base of one that was made at a high value is below zero,
// modulo 2^64.
func (r *Root) count(c rot.Counter) (uint64, error) {
	handle, ok := counters[c]
	if !ok {
		return 0, fmt.Errorf("there is no counter %q", c)
	}
	bases, err := r.bases()
	if err != nil {
		return 0, err
	}
	i, err := r.index(handle, counterAttributes, counterSize)
	if err != nil {
		return 0, err
	}
	value, err := r.readCounter(i)
	if err != nil {
		return 0, err
	}
	return value - bases[handle], nil
}

// bases reads the layout.
func (r *Root) bases() (map[tpm2.TPMHandle]uint64, error) {
	i, err := r.index(layoutIndex, layoutAttributes, layoutSize)
	if err != nil {
		return nil, err
	}
	if !i.public.Attributes.Written || !i.public.Attributes.WriteLocked {
		return nil, fmt.Errorf("%w: it was not finished with making its counters", rot.ErrCleared)
	}
	data, err := r.readIndex(i)
	if err != nil {
		return nil, err
	}
	if version := binary.BigEndian.Uint32(data); version != layoutVersion {
		return nil, fmt.Errorf("%w: it has counters of layout %d, not %d", rot.ErrUnsupported, version, layoutVersion)
	}
	return map[tpm2.TPMHandle]uint64{floorIndex: binary.BigEndian.Uint64(data[4:]), epochIndex: binary.BigEndian.Uint64(data[12:])}, nil
}

// makeCounters writes and locks the layout last: without it there are no counters.
// One that is there and locked lacks a counter, which somebody with the owner's
// value removed; its bases say nothing about a new one.
func (r *Root) makeCounters(start map[tpm2.TPMHandle]uint64) error {
	old, err := r.index(layoutIndex, layoutAttributes, layoutSize)
	if err == nil && old.public.Attributes.WriteLocked {
		_, err = execute(r, tpm2.NVUndefineSpace{AuthHandle: r.owner(plain), NVIndex: old.NamedHandle})
	}
	if err != nil && !errors.Is(err, rot.ErrCleared) {
		return err
	}
	layout := binary.BigEndian.AppendUint32(nil, layoutVersion)
	for _, handle := range []tpm2.TPMHandle{floorIndex, epochIndex} {
		i, err := r.provideIndex(handle, counterAttributes, counterSize)
		if err != nil {
			return err
		}
		if !i.public.Attributes.Written { // it has no value before it is raised once
			if err := r.increment(i); err != nil {
				return err
			}
			if i, err = r.index(handle, counterAttributes, counterSize); err != nil {
				return err
			}
		}
		value, err := r.readCounter(i)
		if err != nil {
			return err
		}
		layout = binary.BigEndian.AppendUint64(layout, value-start[handle])
	}
	i, err := r.provideIndex(layoutIndex, layoutAttributes, layoutSize)
	if err != nil {
		return err
	}
	_, err = execute(r, tpm2.NVWrite{AuthHandle: r.by(i, in), NVIndex: i.NamedHandle, Data: tpm2.TPM2BMaxNVBuffer{Buffer: layout}})
	if err != nil {
		return err
	}
	if i, err = r.index(layoutIndex, layoutAttributes, layoutSize); err != nil { // its Name is another one now
		return err
	}
	_, err = execute(r, tpm2.NVWriteLock{AuthHandle: r.by(i, plain), NVIndex: i.NamedHandle})
	return err
}

// index finds one of our indices; rot.ErrCleared when it is not there. That it has
// the attributes which the TPM says it has shows at its use, in the session.
func (r *Root) index(handle tpm2.TPMHandle, want tpm2.TPMANV, size uint16) (nvIndex, error) {
	public, name, err := r.readNVPublic(handle)
	if isAbsent(err) {
		return nvIndex{}, fmt.Errorf("%w: it has no counters", rot.ErrCleared)
	}
	if err != nil {
		return nvIndex{}, err
	}
	computed, err := tpm2.NVName(public)
	if err != nil {
		return nvIndex{}, broken(err)
	}
	if !bytes.Equal(computed.Buffer, name.Buffer) || public.NVIndex != handle {
		return nvIndex{}, broken(errors.New("a public area of an NV index that does not have its Name"))
	}
	got := public.Attributes
	got.Written, got.WriteLocked = false, false // states, not attributes
	if got != want || public.DataSize != size || public.NameAlg != tpm2.TPMAlgSHA256 || len(public.AuthPolicy.Buffer) > 0 {
		return nvIndex{}, fmt.Errorf("%w: it holds something else at %#x", rot.ErrUnsupported, handle)
	}
	return nvIndex{tpm2.NamedHandle{Handle: handle, Name: *computed}, public}, nil
}

// provideIndex is index, and makes it where it is missing.
func (r *Root) provideIndex(handle tpm2.TPMHandle, want tpm2.TPMANV, size uint16) (nvIndex, error) {
	i, err := r.index(handle, want, size)
	if !errors.Is(err, rot.ErrCleared) {
		return i, err
	}
	_, err = execute(r, tpm2.NVDefineSpace{
		AuthHandle: r.owner(in),
		PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{NVIndex: handle, NameAlg: tpm2.TPMAlgSHA256, Attributes: want, DataSize: size}),
	})
	if err != nil {
		return nvIndex{}, err
	}
	return r.index(handle, want, size)
}

// by authorizes the use of an index by its own, empty value.
func (r *Root) by(i nvIndex, d direction) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: i.Handle, Name: i.Name, Auth: r.session.authorize("", d)}
}

func (r *Root) increment(i nvIndex) error {
	_, err := execute(r, tpm2.NVIncrement{AuthHandle: r.by(i, plain), NVIndex: i.NamedHandle})
	return err
}

func (r *Root) readCounter(i nvIndex) (uint64, error) {
	data, err := r.readIndex(i)
	if errors.Is(err, tpm2.TPMRCNVUninitialized) {
		err = fmt.Errorf("%w: it was not finished with making its counters", rot.ErrCleared)
	}
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(data), nil
}

// readIndex reads all of an index in the session: what comes is what the TPM holds.
func (r *Root) readIndex(i nvIndex) ([]byte, error) {
	answer, err := execute(r, tpm2.NVRead{AuthHandle: r.by(i, out), NVIndex: i.NamedHandle, Size: i.public.DataSize})
	if err != nil {
		return nil, err
	}
	if len(answer.Data.Buffer) != int(i.public.DataSize) {
		return nil, broken(errors.New("an NV read of another size than asked for"))
	}
	return answer.Data.Buffer, nil
}
