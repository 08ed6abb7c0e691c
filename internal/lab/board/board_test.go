package board

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"birthmark/internal/swtpm/swtpmtest"
	"birthmark/pkg/fota"
	"birthmark/pkg/fota/sdboot"
)

// A factory has what releases are made with.
type factory struct {
	testing.TB
	dir         string
	db, foreign *Key
	built       map[string]*Image
}

func newFactory(tb testing.TB) *factory {
	f := &factory{TB: tb, dir: tb.TempDir(), built: map[string]*Image{}}
	var err error
	f.db, err = NewKey(f.dir, "db")
	f.must(err)
	f.foreign, err = NewKey(f.dir, "foreign")
	f.must(err)
	return f
}

func (f *factory) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func (f *factory) build(v fota.Version, key *Key, panics bool) *Image {
	f.Helper()
	what := fmt.Sprint(v, key == f.db, panics)
	if f.built[what] == nil {
		i, err := Release{Name: "acme-gw", Version: v, Agent: "/bin/true", Panics: panics}.Build(f.Context(), f.TempDir(), key)
		f.must(err)
		f.built[what] = i
	}
	return f.built[what]
}

// v1 runs on every board, v2 is what it may be updated to.
var v1, v2 = fota.Version{Major: 1, Security: 1}, fota.Version{Major: 2, Security: 1}

func (f *factory) board() *Board {
	f.Helper()
	b, err := New(Config{Dir: filepath.Join(f.TempDir(), "b"), DB: f.db}, f.build(v1, f.db, false))
	f.must(err)
	return b
}

// put puts a release into root-b, and its UKI into EFI/Linux.
func (f *factory) put(b *Board, i *Image, entry string) {
	f.Helper()
	root, err := os.ReadFile(i.Root)
	f.must(err)
	f.must(errors.Join(os.WriteFile(b.path(slotFolder, "root-b"), root, 0o600), os.Truncate(b.path(slotFolder, "root-b"), SlotSize)))
	uki, err := os.ReadFile(i.UKI)
	f.must(err)
	f.must(os.WriteFile(b.path(entryFolder, entry), uki, 0o600))
}

// What a start comes to, by what lies on the medium. Names of entries are shortened.
func TestStart(t *testing.T) {
	f := newFactory(t)
	next := func(entry string) func(*Board) {
		return func(b *Board) { f.put(b, f.build(v2, f.db, false), entry) }
	}
	for _, c := range []struct {
		name   string
		change func(*Board)
		entry  string // that was started, "" for none
		slot   string
		fault  string // in the error
	}{
		{"out of the factory", func(*Board) {}, "acme-gw_1.0.0+sv1+2-1.efi", "root-a", ""},
		{"a newer release is armed", next("acme-gw_2.0.0+sv1+3.efi"), "acme-gw_2.0.0+sv1+2-1.efi", "root-b", ""},
		{"it was tried", next("acme-gw_2.0.0+sv1+1-2.efi"), "acme-gw_2.0.0+sv1+0-3.efi", "root-b", ""},
		{"it has no tries left", next("acme-gw_2.0.0+sv1+0-3.efi"), "acme-gw_1.0.0+sv1+2-1.efi", "root-a", ""},
		{"nothing has", func(b *Board) {
			next("acme-gw_2.0.0+sv1+0-3.efi")(b)
			f.must(os.Rename(b.path(entryFolder, "acme-gw_1.0.0+sv1+3.efi"), b.path(entryFolder, "acme-gw_1.0.0+sv1+0-3.efi")))
		}, "acme-gw_2.0.0+sv1+0-4.efi", "root-b", ""},
		{"it is not counted", next("acme-gw_2.0.0+sv1.efi"), "acme-gw_2.0.0+sv1.efi", "root-b", ""},
		{"the older one is wished for once", func(b *Board) {
			next("acme-gw_2.0.0+sv1+3.efi")(b)
			f.must(b.set(entryOneShot, wide("acme-gw_1.0.0+sv1+3.efi")))
		}, "acme-gw_1.0.0+sv1+2-1.efi", "root-a", ""},
		{"a draft", next(".acme-gw_2.0.0+sv1.new"), "acme-gw_1.0.0+sv1+2-1.efi", "root-a", ""},
		{"a hidden entry", next(".acme-gw_2.0.0+sv1+3.efi"), "acme-gw_1.0.0+sv1+2-1.efi", "root-a", ""},
		{"an entry without contents", func(b *Board) {
			f.must(os.WriteFile(b.path(entryFolder, "acme-gw_3.0.0+sv1+3.efi"), nil, 0o600))
		}, "acme-gw_1.0.0+sv1+2-1.efi", "root-a", ""},
		{"a UKI that somebody else signed", func(b *Board) { f.put(b, f.build(v2, f.foreign, false), "acme-gw_2.0.0+sv1+3.efi") },
			"acme-gw_2.0.0+sv1+2-1.efi", "", "security violation"},
		{"a root file system that is damaged", func(b *Board) {
			next("acme-gw_2.0.0+sv1+3.efi")(b)
			f.damage(b.path(slotFolder, "root-b"))
		}, "acme-gw_2.0.0+sv1+2-1.efi", "root-b", "not what its hash tree says"},
		{"one that is not there", func(b *Board) {
			next("acme-gw_2.0.0+sv1+3.efi")(b)
			f.must(os.Truncate(b.path(slotFolder, "root-b"), 0))
		}, "acme-gw_2.0.0+sv1+2-1.efi", "", "no slot has the root file system"},
		{"one without init", func(b *Board) { f.put(b, f.build(v2, f.db, true), "acme-gw_2.0.0+sv1+3.efi") },
			"acme-gw_2.0.0+sv1+2-1.efi", "root-b", "no working init"},
		{"nothing", func(b *Board) { f.must(os.Remove(b.path(entryFolder, "acme-gw_1.0.0+sv1+3.efi"))) }, "", "", "nothing to start"},
	} {
		b := f.board()
		c.change(b)
		s, err := b.start()
		f.must(err)
		if s.Entry != c.entry || s.Slot != c.slot || (s.Err == nil) != (c.fault == "") || s.Err != nil && !strings.Contains(s.Err.Error(), c.fault) {
			t.Errorf("%s: got %+v, want %s from %q and the fault %q", c.name, s, c.entry, c.slot, c.fault)
		}
		if entries, err := b.Entries(); err != nil || c.entry != "" && !slices.Contains(entries, c.entry) {
			t.Errorf("%s: there is %q, %v, want %s, of which the try was counted", c.name, entries, err, c.entry)
		}
		if left, err := b.get(entryOneShot); err == nil {
			t.Errorf("%s: LoaderEntryOneShot is still %q", c.name, narrow(left))
		}
	}
}

// damage changes one bit in the middle of what a slot holds.
func (f *factory) damage(path string) {
	f.Helper()
	b, err := os.ReadFile(path)
	f.must(err)
	b[loadLeast/2] ^= 1
	f.must(os.WriteFile(path, b, 0o600))
}

// The device's own code finds on a board what it would find on a device, and is content.
func TestTheInstallerKnowsTheBoard(t *testing.T) {
	f := newFactory(t)
	b := f.board()
	if _, err := b.start(); err != nil {
		t.Fatal(err)
	}
	i := sdboot.Installer{Root: b.Path("/"), Tries: tries}
	got, err := i.Status(t.Context())
	f.must(err)
	if got.Compatible != "acme-gw" || got.Running != v1 || !got.SecureBoot || !got.Trial || got.Slots[fota.RootSlot] != SlotSize || len(got.Notes) > 0 {
		t.Errorf("of a board that was started the installer says %+v, want that %v runs, on trial, with Secure Boot, and no notes", got, v1)
	}
	f.must(i.Bless(t.Context()))
	if got, err := i.Status(t.Context()); err != nil || got.Trial {
		t.Errorf("blessed, it says %+v, %v", got, err)
	}
}

// Who shares the TPM sees nothing of the others', and leaves nothing.
func TestEverybodyHasTheTPMForHimself(t *testing.T) {
	b := &Board{Config: Config{Dir: filepath.Join(t.TempDir(), "b"), TPM: swtpmtest.Start(t).Address()}}
	if err := os.MkdirAll(filepath.Dir(b.path(chipPath)), 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := b.openChip(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ask := func(conn net.Conn, command ...byte) []byte {
		t.Helper()
		command = append([]byte{0x80, 1, 0, 0, 0, byte(6 + len(command))}, command...)
		if _, err := conn.Write(command); err != nil {
			t.Fatal(err)
		}
		answer, err := readPacket(conn)
		if err != nil || binary.BigEndian.Uint32(answer[6:]) != 0 {
			t.Fatalf("the TPM answers %x, %v", answer, err)
		}
		return answer[headSize:]
	}
	dial := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("unix", b.path(chipPath))
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	sessions := []byte{0, 0, 1, 0x7a, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 64} // TPM2_GetCapability of handles
	// TPM2_StartAuthSession: an HMAC session of nobody, with a nonce of 16 bytes, no
	// cipher and SHA-256.
	start := slices.Concat([]byte{0, 0, 1, 0x76, 0x40, 0, 0, 7, 0x40, 0, 0, 7, 0, 16}, make([]byte, 16), []byte{0, 0, 0, 0, 0x10, 0, 0x0b})
	one, other := dial(), dial()
	own := ask(one, start...)[:4]
	if seen := ask(one, sessions...)[5:]; !bytes.Equal(seen, append([]byte{0, 0, 0, 1}, own...)) {
		t.Errorf("who has the session %x sees %x", own, seen)
	}
	if seen := ask(other, sessions...)[5:]; !bytes.Equal(seen, make([]byte, 4)) {
		t.Errorf("who has none sees %x", seen)
	}
	one.Close()
	other.Close()
	c.doors.Close()
	c.all.Wait()
	left, err := c.execute(append([]byte{0x80, 1, 0, 0, 0, byte(6 + len(sessions))}, sessions...))
	if err != nil || binary.BigEndian.Uint32(left[headSize+5:]) != 0 {
		t.Errorf("when all are gone there is %x, %v", left, err)
	}
	c.close()
}

// FuzzPacket: whatever comes from a program or a TPM is passed on or not, and no more.
func FuzzPacket(f *testing.F) {
	f.Add([]byte{0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x65}, []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0})
	f.Add([]byte{0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x31}, []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0})
	f.Add([]byte{0x80, 1, 0, 0, 0, 14, 0, 0, 1, 0x65, 2, 0, 0, 0}, []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0})
	f.Add([]byte{0x80, 1, 0, 0, 0, 22, 0, 0, 1, 0x7a, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 64},
		[]byte{0x80, 1, 0, 0, 0, 23, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, from, to []byte) {
		command, err := readPacket(bytes.NewReader(from))
		if err != nil {
			return
		}
		answer, err := readPacket(bytes.NewReader(to))
		if err != nil {
			return
		}
		told := account(map[uint32]bool{}, command, answer)
		if again, err := readPacket(bytes.NewReader(told)); err != nil || len(again) != len(told) {
			t.Errorf("%x is told as %x", answer, told)
		}
	})
}
