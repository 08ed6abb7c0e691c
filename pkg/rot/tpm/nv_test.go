package tpm_test

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"birthmark/internal/swtpm"
	"birthmark/internal/swtpm/swtpmtest"
	"birthmark/pkg/rot"
	"birthmark/pkg/rot/tpm"
)

// Where the counters lie, and what they began with. Part of the format: devices in
// the field have them.
const (
	layoutIndex = 0x018B4D00
	floorIndex  = 0x018B4D01
	epochIndex  = 0x018B4D02
)

func wantCounts(t *testing.T, r *tpm.Root, floor, epoch uint64) {
	t.Helper()
	for c, want := range map[rot.Counter]uint64{rot.FirmwareFloor: floor, rot.OwnerEpoch: epoch} {
		if got, err := r.Count(t.Context(), c); err != nil || got != want {
			t.Errorf("%s: got %d, %v, want %d", c, got, err, want)
		}
	}
}

func makeCounters(t *testing.T, r *tpm.Root) {
	t.Helper()
	if err := r.MakeCounters(t.Context(), 0, 0); err != nil {
		t.Fatal(err)
	}
}

func raise(t *testing.T, r *tpm.Root, c rot.Counter, want uint64) {
	t.Helper()
	if got, err := r.Raise(t.Context(), c); err != nil || got != want {
		t.Errorf("raised %s: got %d, %v, want %d", c, got, err, want)
	}
}

func TestCountersCountUpIndependentlyAndStay(t *testing.T) {
	s := swtpmtest.Start(t)
	r := open(t, tpm.Config{Address: s.Address()})
	if _, err := r.Count(t.Context(), rot.OwnerEpoch); !errors.Is(err, rot.ErrCleared) {
		t.Errorf("before they are made: got %v, want rot.ErrCleared", err)
	}
	if _, err := r.Raise(t.Context(), rot.OwnerEpoch); !errors.Is(err, rot.ErrCleared) {
		t.Errorf("raised before they are made: got %v, want rot.ErrCleared", err)
	}
	makeCounters(t, r)
	wantCounts(t, r, 0, 0)
	raise(t, r, rot.FirmwareFloor, 1)
	raise(t, r, rot.FirmwareFloor, 2)
	raise(t, r, rot.OwnerEpoch, 1)
	makeCounters(t, r)
	wantCounts(t, r, 2, 1)
	if _, err := r.Count(t.Context(), "birthdays"); err == nil {
		t.Error("counted birthdays")
	}
	known := r.Identity()
	s.Kill() // with the connection open: power is cut
	restarted, err := swtpm.Start(t.Context(), s.Dir())
	if err != nil {
		t.Fatal(err)
	}
	defer restarted.Kill()
	r = open(t, tpm.Config{Address: restarted.Address(), Known: known})
	wantCounts(t, r, 2, 1)
	raise(t, r, rot.OwnerEpoch, 2)
	r.Close()
	tpm.WantClean(t, restarted)
}

// TPM2_Clear takes the counters, and the same TPM says so. They can be made again at
// any value, though what the TPM counts goes on.
func TestClearedCountersAreMissedAndBeginAnew(t *testing.T) {
	s := tpm.Start(t)
	r := open(t, tpm.Config{Address: s.Address()})
	makeCounters(t, r)
	raise(t, r, rot.FirmwareFloor, 1)
	raise(t, r, rot.FirmwareFloor, 2)
	ek := r.Identity().EK
	r.Close()
	before := raw(t, s, floorIndex)
	clearTPM(t, s)
	r = open(t, tpm.Config{Address: s.Address()})
	if r.Identity().EK != ek {
		t.Error("got another EK after TPM2_Clear")
	}
	if _, err := r.Count(t.Context(), rot.FirmwareFloor); !errors.Is(err, rot.ErrCleared) {
		t.Errorf("got %v, want rot.ErrCleared", err)
	}
	if err := r.MakeCounters(t.Context(), 1_000_000, 7); err != nil { // from what the device remembers
		t.Fatal(err)
	}
	wantCounts(t, r, 1_000_000, 7)
	raise(t, r, rot.FirmwareFloor, 1_000_001)
	r.Close()
	if after := raw(t, s, floorIndex); after <= before {
		t.Errorf("the TPM counts %d, before TPM2_Clear %d: a counter went back", after, before)
	}
}

// raw reads what the TPM itself counts.
func raw(t *testing.T, s *swtpm.TPM, index tpm2.TPMHandle) uint64 {
	t.Helper()
	conn, done := tpm.Direct(t, s)
	defer done()
	i := named(t, conn, index)
	answer := must[tpm2.NVReadResponse](t)(tpm2.NVRead{AuthHandle: i, NVIndex: i, Size: 8}.Execute(conn))
	return binary.BigEndian.Uint64(answer.Data.Buffer)
}

func TestTheLayoutIsWrittenOnce(t *testing.T) {
	s := tpm.Start(t)
	r := open(t, tpm.Config{Address: s.Address()})
	makeCounters(t, r)
	r.Close()
	conn, done := tpm.Direct(t, s)
	i := named(t, conn, layoutIndex)
	_, err := tpm2.NVWrite{AuthHandle: i, NVIndex: i, Data: tpm2.TPM2BMaxNVBuffer{Buffer: make([]byte, 20)}}.Execute(conn)
	if !errors.Is(err, tpm2.TPMRCNVLocked) {
		t.Errorf("wrote it again: got %v, want TPM_RC_NV_LOCKED", err)
	}
	done()
	wantCounts(t, open(t, tpm.Config{Address: s.Address()}), 0, 0)
}

// Somebody with the owner's authorization value removes one of the three.
func TestAMissingIndexIsNoticed(t *testing.T) {
	for _, index := range []tpm2.TPMHandle{layoutIndex, floorIndex, epochIndex} {
		s := swtpmtest.Start(t)
		r := open(t, tpm.Config{Address: s.Address()})
		makeCounters(t, r)
		raise(t, r, rot.OwnerEpoch, 1)
		r.Close()
		conn, done := tpm.Direct(t, s)
		must[tpm2.NVUndefineSpaceResponse](t)(tpm2.NVUndefineSpace{AuthHandle: tpm2.TPMRHOwner, NVIndex: named(t, conn, index)}.Execute(conn))
		done()
		r = open(t, tpm.Config{Address: s.Address()})
		_, floorErr := r.Count(t.Context(), rot.FirmwareFloor)
		_, epochErr := r.Count(t.Context(), rot.OwnerEpoch)
		if err := errors.Join(floorErr, epochErr); !errors.Is(err, rot.ErrCleared) {
			t.Errorf("without %#x: got %v, want rot.ErrCleared", index, err)
		}
		if err := r.MakeCounters(t.Context(), 3, 4); err != nil {
			t.Errorf("without %#x: %v", index, err)
		}
		wantCounts(t, r, 3, 4)
		r.Close()
		s.Kill()
	}
}

// What was stopped at any command is finished by the next call.
func TestMakingCountersGoesOnWhereItWasStopped(t *testing.T) {
	stoppedEarly := 0
	for n := 0; ; n++ {
		s := swtpmtest.Start(t)
		p := interpose(t, s)
		r := open(t, tpm.Config{Address: p.address})
		seen := 0
		end := p.onResponse(func(_ tpm2.TPMCC, _, response []byte) []byte {
			if seen++; seen == n+1 {
				p.hangUp = true
				return nil
			}
			return response
		})
		err := r.MakeCounters(t.Context(), 0, 0)
		end()
		if err == nil {
			break // there is no such command
		}
		if !errors.Is(err, rot.ErrUnavailable) {
			t.Errorf("stopped at command %d: got %v, want rot.ErrUnavailable", n, err)
		}
		if _, err := r.Count(t.Context(), rot.FirmwareFloor); errors.Is(err, rot.ErrCleared) {
			stoppedEarly++
		} else if err != nil {
			t.Errorf("stopped at command %d: got %v, want rot.ErrCleared or counters", n, err)
		}
		makeCounters(t, r)
		wantCounts(t, r, 0, 0)
		r.Close()
		s.Kill()
	}
	if stoppedEarly < 10 {
		t.Errorf("stopped at %d commands before there were counters, want 10 at least", stoppedEarly)
	}
}

// Indices at our places that are not ours are left alone.
func TestIndicesOfOthersAreNotTaken(t *testing.T) {
	for _, index := range []tpm2.TPMHandle{layoutIndex, floorIndex, epochIndex} {
		s := swtpmtest.Start(t)
		conn, done := tpm.Direct(t, s)
		must[tpm2.NVDefineSpaceResponse](t)(tpm2.NVDefineSpace{
			AuthHandle: tpm2.TPMRHOwner,
			PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
				NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
				Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true},
			}),
		}.Execute(conn))
		done()
		r := open(t, tpm.Config{Address: s.Address()})
		if err := r.MakeCounters(t.Context(), 0, 0); !errors.Is(err, rot.ErrUnsupported) {
			t.Errorf("%#x: got %v, want rot.ErrUnsupported", index, err)
		}
		r.Close()
		s.Kill()
	}
}

// Somebody on the bus cannot say what the counters are, whatever he answers.
func TestCountersAreNotBelievedFromTheBus(t *testing.T) {
	s := tpm.Start(t)
	p := interpose(t, s)
	r := open(t, tpm.Config{Address: p.address})
	makeCounters(t, r)
	raise(t, r, rot.OwnerEpoch, 1)
	old := map[string][]byte{}
	end := p.onResponse(func(code tpm2.TPMCC, command, response []byte) []byte {
		old[string(command[6:14])] = response
		return response
	})
	wantCounts(t, r, 0, 1)
	end()
	raise(t, r, rot.OwnerEpoch, 2)
	for name, spoil := range map[string]func(code tpm2.TPMCC, command, response []byte) []byte{
		"as earlier": func(_ tpm2.TPMCC, command, response []byte) []byte {
			if earlier := old[string(command[6:14])]; earlier != nil {
				return earlier
			}
			return response
		},
		"with another bit": func(code tpm2.TPMCC, _, response []byte) []byte {
			if code == tpm2.TPMCCNVRead && response[9] == 0 {
				response[20] ^= 1
			}
			return response
		},
	} {
		end := p.onResponse(spoil)
		if got, err := r.Count(t.Context(), rot.OwnerEpoch); !errors.Is(err, rot.ErrUnavailable) {
			t.Errorf("answered %s: got %d, %v, want rot.ErrUnavailable", name, got, err)
		}
		end()
		wantCounts(t, r, 0, 2)
	}
	r.Close()
}

func named(t *testing.T, conn interface {
	Send([]byte) ([]byte, error)
}, index tpm2.TPMHandle) tpm2.NamedHandle {
	t.Helper()
	public := must[tpm2.NVReadPublicResponse](t)(tpm2.NVReadPublic{NVIndex: index}.Execute(conn))
	return tpm2.NamedHandle{Handle: index, Name: public.NVName}
}

func TestClockCountsStarts(t *testing.T) {
	s := swtpmtest.Start(t)
	clock := func(s *swtpm.TPM) tpm.Clock {
		r := open(t, tpm.Config{Address: s.Address()})
		defer r.Close()
		c, err := r.Clock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if c.On < 0 || c.Total < c.On {
			t.Errorf("got %v with power since the start, %v in all", c.On, c.Total)
		}
		return c
	}
	first := clock(s)
	if again := clock(s); again.Resets != first.Resets || again.On < first.On {
		t.Errorf("got %+v, then %+v without a start in between", first, again)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	restarted, err := swtpm.Start(t.Context(), s.Dir())
	if err != nil {
		t.Fatal(err)
	}
	defer restarted.Kill()
	if again := clock(restarted); again.Resets != first.Resets+1 {
		t.Errorf("got %d resets, after one more start %d, want one more", first.Resets, again.Resets)
	}
}
