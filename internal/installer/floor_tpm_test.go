package installer

import (
	"context"
	"encoding/hex"
	"net"
	"strings"
	"testing"
	"time"

	"birthmark/internal/swtpm"
	"birthmark/internal/swtpm/swtpmtest"
	"birthmark/pkg/rot"
	"birthmark/pkg/rot/tpm"
)

// atTPM opens a TPM, as cmd/agent does.
func atTPM(s *swtpm.TPM) func(context.Context, rot.Identity) (Chip, error) {
	return func(ctx context.Context, known rot.Identity) (Chip, error) {
		r, err := tpm.Open(ctx, tpm.Config{Address: s.Address(), Known: known, Deadline: long})
		if err != nil {
			return nil, err
		}
		return r, nil
	}
}

// counted is what a TPM counts, for somebody else who uses it: first he raises it, or
// makes the counters.
func counted(t *testing.T, s *swtpm.TPM, by uint64) uint64 {
	t.Helper()
	r, err := tpm.Open(t.Context(), tpm.Config{Address: s.Address()})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range by {
		if _, err := r.Raise(t.Context(), rot.FirmwareFloor); err != nil {
			t.Fatal(err)
		}
	}
	n, err := r.Count(t.Context(), rot.FirmwareFloor)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// clearTPM sends TPM2_Clear (TPM 2.0 Part 3, 24.6), authorized by the empty value of the
// lockout hierarchy.
func clearTPM(t *testing.T, s *swtpm.TPM) {
	t.Helper()
	command, err := hex.DecodeString("8002" + "0000001b" + "00000126" + "4000000a" + "00000009" + "40000009" + "0000" + "00" + "0000")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", strings.TrimPrefix(s.Address(), "unix:"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(long)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(command); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 64)
	if n, err := c.Read(answer); err != nil || n < 10 || hex.EncodeToString(answer[6:10]) != "00000000" {
		t.Fatalf("TPM2_Clear: %x, %v", answer[:n], err)
	}
}

// TestTheFloorInATPM goes through the life of a floor: missing, behind, ahead, gone with
// TPM2_Clear, made anew from another base, and held by another TPM.
func TestTheFloorInATPM(t *testing.T) {
	s := swtpmtest.Start(t)
	d := newDevice(t)
	runs := func(v string, trial bool, s *swtpm.TPM) *Status {
		t.Helper()
		d.stopped()
		d.loader.status.Running, d.loader.status.Trial = version(t, v), trial
		d.startWith(atTPM(s))
		st := d.stands()
		d.stopped()
		return st
	}
	want := func(what string, st *Status, floor uint32, count uint64, note string) {
		t.Helper()
		if got := counted(t, s, 0); st.Device.Floor != floor || got != count {
			t.Errorf("%s: the floor is %d and the TPM counts %d, want %d, %d", what, st.Device.Floor, got, floor, count)
		}
		if notes := strings.Join(st.Notes, "\n"); note == "" && notes != "" || !strings.Contains(notes, note) {
			t.Errorf("%s: got notes %q, want %q", what, st.Notes, note)
		}
	}
	want("missing", runs("1.0.0+sv2", false, s), 2, 2, "")
	want("behind, on trial", runs("1.1.0+sv4", true, s), 2, 2, "")
	d.startWith(atTPM(s))
	if err := d.Bless(t.Context()); err != nil {
		t.Errorf("bless: %v", err)
	}
	want("blessed", d.stands(), 4, 4, "")
	d.stopped()
	counted(t, s, 1)
	want("ahead", runs("1.1.0+sv4", false, s), 5, 5, "below the floor, security version 5")
	clearTPM(t, s)
	want("cleared", runs("1.1.0+sv4", false, s), 5, 5, "the TPM was cleared")
	want("risen from another base", runs("1.2.0+sv6", false, s), 6, 6, "")

	st := runs("1.2.0+sv7", false, swtpmtest.StartOther(t))
	want("another TPM", st, 7, 6, "another root of trust")
	d.startWith(atTPM(s))
	s.Kill()
	if _, err := d.try(d.release("1.3.0+sv7")); err == nil {
		t.Error("a release was installed without a TPM")
	}
	if err := d.Bless(t.Context()); err != nil {
		t.Errorf("bless without a TPM: %v", err)
	}
	if st := d.stands(); st.Device.Floor != 7 || len(st.Notes) == 0 {
		t.Errorf("without a TPM the floor is %d, notes %q; want 7 and why", st.Device.Floor, st.Notes)
	}
}
