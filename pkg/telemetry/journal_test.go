package telemetry

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// fullDisk has no room while full.
type fullDisk struct {
	realDisk
	full bool
}

type fullFile struct {
	file
	disk *fullDisk
}

func (d *fullDisk) open(path string) (file, error) {
	f, err := d.realDisk.open(path)
	return &fullFile{f, d}, err
}

func (d *fullDisk) create(path string) (file, error) {
	f, err := d.realDisk.create(path)
	return &fullFile{f, d}, err
}

func (f *fullFile) Write(b []byte) (int, error) {
	if f.disk.full {
		n, _ := f.file.Write(b[:len(b)/2])
		return n, syscall.ENOSPC
	}
	return f.file.Write(b)
}

func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	d := &fullDisk{full: true}
	o, err := openOutbox(dir, Limits{}, d)
	if err != nil {
		t.Fatal(err)
	}
	put(t, o, 3)
	o.spill()
	m := Message{Topic: "evt/test", QoS: 1, Durable: true, Payload: []byte("{}")}
	if err := o.Put(m); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Put of a durable message: %v, want ENOSPC", err)
	}
	if s := o.Stats(); s.Waiting != 3 || s.Disk == "" {
		t.Errorf("stats %+v, want 3 waiting and the disk's error: telemetry goes on", s)
	}
	if n := o.sessionNumber(); n != 1 {
		t.Errorf("session number %d, want 1", n)
	}
	if err := o.Close(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Close: %v, want ENOSPC", err)
	}
	d.full = false
	if o, err = openOutbox(dir, Limits{}, d); err != nil {
		t.Fatal(err)
	}
	d.full = true
	put(t, o, 1)
	d.full = false
	if err := o.Put(m); err != nil {
		t.Errorf("Put on a disk with room again: %v", err)
	}
	if s := o.Stats(); s.Disk != "" || s.Waiting != 2 {
		t.Errorf("stats %+v, want 2 waiting, and no error any more", s)
	}
	kill(o)
	if got := numbers(mustOutbox(t, dir, Limits{}), "evt/test"); len(got) != 1 {
		t.Errorf("events %v wait after a kill, want one", got)
	}
}

func TestDamagedJournal(t *testing.T) {
	var lines []string
	for n := range 3 {
		r := record{Topic: "evt/test", QoS: 1, Durable: true, Seq: uint64(n + 1), Payload: fmt.Appendf(nil, `{"seq":%d}`, n+1)}
		lines = append(lines, string(r.line()))
	}
	whole := strings.Join(lines, "")
	for _, tc := range []struct {
		name, text string
		want       []uint64
		damaged    int
	}{
		{"whole", whole, []uint64{1, 2, 3}, 0},
		{"nothing", "", nil, 0},
		{"torn", whole[:len(whole)-9], []uint64{1, 2}, 1},
		{"torn before its line feed", whole[:len(whole)-1], []uint64{1, 2}, 1},
		{"a bit in the middle", strings.Replace(whole, `"seq":2}}`, `"seq":3}}`, 1), []uint64{1, 3}, 1},
		{"a line of garbage", lines[0] + "\x00\xff garbage\n" + lines[1], []uint64{1, 2}, 1},
		{"an empty line", "\n" + whole, []uint64{1, 2, 3}, 1},
		{"a line without end", lines[0] + strings.Repeat("x", 5*lineLimit) + "\n" + lines[1], []uint64{1, 2}, 1},
		{"only garbage", strings.Repeat("\x00", 3*lineLimit), nil, 1},
		{"a sum that fits a wrong topic", lines[0] + string(record{Topic: "cmd/a/b", QoS: 1, Seq: 9, Payload: []byte("{}")}.line()), []uint64{1}, 1},
		{"a sum that fits QoS 2", lines[0] + string(record{Topic: "tele/a", QoS: 2, Seq: 9, Payload: []byte("{}")}.line()), []uint64{1}, 1},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, journalName), []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		o := mustOutbox(t, dir, Limits{})
		if got := numbers(o, "evt/test"); !slices.Equal(got, tc.want) || o.Stats().Damaged != tc.damaged {
			t.Errorf("%s: %v wait, %d lines damaged, want %v and %d", tc.name, got, o.Stats().Damaged, tc.want, tc.damaged)
		}
		event(t, o, 0)
		kill(o)
		if got := numbers(mustOutbox(t, dir, Limits{}), "evt/test"); len(got) != len(tc.want)+1 {
			t.Errorf("%s: after one more and a kill %v wait", tc.name, got)
		}
	}
}

// A swiftDisk syncs nothing: a fuzzer cannot wait for it.
type swiftDisk struct{ realDisk }

type swiftFile struct{ file }

func (swiftFile) Sync() error { return nil }

func (swiftDisk) syncFolder(string) error { return nil }

func (d swiftDisk) open(path string) (file, error) {
	f, err := d.realDisk.open(path)
	return swiftFile{f}, err
}

func (d swiftDisk) create(path string) (file, error) {
	f, err := d.realDisk.create(path)
	return swiftFile{f}, err
}

func FuzzJournal(f *testing.F) {
	message := record{Topic: "tele/a", QoS: 1, Seq: 7, Payload: []byte(`{"seq":7}`)}.line()
	done := record{Done: "tele/a", Seq: 7}.line()
	next := record{Next: map[string]uint64{"tele/a": 9, "state": 3}}.line()
	f.Add([]byte(""))
	f.Add(slices.Concat(message, done, next))
	f.Add(slices.Concat(next, message[:len(message)/2]))
	f.Add([]byte("00000000 \n\n00000000 {}\n"))
	dir := f.TempDir()
	path := filepath.Join(dir, journalName)
	// The sum is in the way of a fuzzer: what it makes up is also read with one.
	f.Fuzz(func(t *testing.T, text []byte) {
		sealed := fmt.Appendf(nil, "%08x %s\n", checksum(text), text)
		for _, contents := range [][]byte{text, sealed} {
			if err := os.WriteFile(path, contents, 0o600); err != nil {
				t.Fatal(err)
			}
			o, err := openOutbox(dir, Limits{Bytes: leastBytes, Messages: 8}, swiftDisk{})
			if err != nil {
				t.Fatal(err)
			}
			before := slices.Collect(o.waiting.all())
			if len(before) > 8 || o.waiting.bytes > o.room() || len(o.streams) > streamLimit {
				t.Fatalf("%d messages, %d bytes, %d streams came from %q", len(before), o.waiting.bytes, len(o.streams), contents)
			}
			for _, it := range before {
				if err := (Message{Topic: it.topic, QoS: it.qos, Durable: it.durable, Payload: it.payload}).check(); err != nil {
					t.Errorf("from %q came a message that could not be put: %v", contents, err)
				}
			}
			if err := o.Close(); err != nil {
				t.Fatalf("cannot close what came from %q: %v", contents, err)
			}
			again, err := openOutbox(dir, Limits{Bytes: leastBytes, Messages: 8}, swiftDisk{})
			if err != nil {
				t.Fatal(err)
			}
			if after := again.waiting.len(); after != len(before) {
				t.Errorf("%d messages came from %q, %d from what was written after it", len(before), contents, after)
			}
			if err := again.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
