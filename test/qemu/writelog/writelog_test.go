package writelog

import (
	"bytes"
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A logger writes a log as the kernel does.
type logger struct {
	size    int
	entries int
	text    []byte
}

func (l *logger) add(first, sectors int, flags Flags, data string, text string) {
	head := make([]byte, l.size)
	for i, n := range []uint64{uint64(first), uint64(sectors), uint64(flags), uint64(len(text))} {
		binary.LittleEndian.PutUint64(head[8*i:], n)
	}
	copy(head[32:], text)
	l.text = append(append(l.text, head...), data...)
	l.entries++
}

func (l *logger) write(first int, flags Flags, data string) {
	l.add(first, len(data)/l.size, flags, data, "")
}

func (l *logger) log() []byte {
	head := make([]byte, l.size)
	for i, n := range []uint64{magic, version, uint64(l.entries), uint64(l.size)} {
		binary.LittleEndian.PutUint64(head[8*i:], n)
	}
	return append(head, l.text...)
}

// blocks is text of a letter for each block.
func blocks(letters string) string {
	text := strings.Builder{}
	for _, letter := range letters {
		text.WriteString(strings.Repeat(string(letter), Block))
	}
	return text.String()
}

// letters is the other way round, - for zeros.
func letters(t *testing.T, d *Disk, n int) string {
	t.Helper()
	text := strings.Builder{}
	for i := range n {
		block := make([]byte, Block)
		if _, err := d.ReadAt(block, int64(i*Block)); err != nil {
			t.Fatal(err)
		}
		switch {
		case !bytes.Equal(block, bytes.Repeat(block[:1], Block)):
			text.WriteByte('?')
		case block[0] == 0:
			text.WriteByte('-')
		default:
			text.WriteByte(block[0])
		}
	}
	return text.String()
}

func TestEntries(t *testing.T) {
	for _, size := range []int{512, 4096} {
		l := logger{size: size}
		l.write(0, 0, blocks("ab"))
		l.add(0, 0, Flush, "", "")
		l.add(3, 0, Mark, "", "born")
		l.add(1, 7, Discard, "", "")
		l.write(2, Flush|FUA|Meta, blocks("c"))
		entries, err := Parse(l.log())
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) != 5 {
			t.Fatalf("sectors of %d: got %d entries, want 5", size, len(entries))
		}
		n := int64(size)
		for i, want := range []Entry{
			{0, 2 * Block, 0, []byte(blocks("ab"))},
			{0, 0, Flush, nil},
			{3 * n, 0, Mark, []byte("born")},
			{n, 7 * n, Discard, nil},
			{2 * n, Block, Flush | FUA | Meta, []byte(blocks("c"))},
		} {
			if got := entries[i]; got.At != want.At || got.Size != want.Size || got.Flags != want.Flags || !bytes.Equal(got.Data, want.Data) {
				t.Errorf("sectors of %d: entry %d: got %d bytes at %d, flags %d, want %d at %d, flags %d",
					size, i, got.Size, got.At, got.Flags, want.Size, want.At, want.Flags)
			}
		}
	}
}

func TestLogsThatAreNone(t *testing.T) {
	good := logger{size: 512}
	good.write(8, 0, blocks("a"))
	set := func(at int, n uint64) []byte {
		log := slices.Clone(good.log())
		binary.LittleEndian.PutUint64(log[at:], n)
		return log
	}
	mark := logger{size: 512}
	mark.add(0, 0, Mark, "", "")
	binary.LittleEndian.PutUint64(mark.text[24:], 481)
	for name, log := range map[string][]byte{
		"nothing":                 nil,
		"half a head":             good.log()[:100],
		"another magic":           set(0, magic+1),
		"another version":         set(8, 2),
		"sectors of nothing":      set(24, 0),
		"sectors of 513 bytes":    set(24, 513),
		"sectors of 128 KiB":      set(24, 128<<10),
		"too many entries":        set(16, entriesLimit+1),
		"more entries than bytes": set(16, 2),
		"cut in an entry":         good.log()[:512+512+100],
		"a disk too large":        set(512, diskLimit),
		"sectors past all":        set(512+8, 1<<63),
		"an unknown flag":         set(512+16, uint64(allFlags+1)),
		"a mark too long":         mark.log(),
	} {
		if _, err := Parse(log); err == nil {
			t.Errorf("%s: it is read", name)
		}
	}
	if _, err := Parse(good.log()); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

func TestCount(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if n, err := Count(path); err == nil {
		t.Errorf("no file: got %d entries", n)
	}
	l := logger{size: 512}
	for range 3 {
		l.write(0, 0, blocks("a"))
	}
	if err := os.WriteFile(path, l.log(), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := Count(path); err != nil || n != 3 {
		t.Errorf("got %d entries, %v, want 3", n, err)
	}
}

// TestWhatACutLeaves: what is flushed or forced stays; of the rest any part may.
func TestWhatACutLeaves(t *testing.T) {
	for name, c := range map[string]struct {
		log  func(l *logger)
		all  string
		some []string
	}{
		"nothing flushed": {
			func(l *logger) { l.write(0, 0, blocks("a")); l.write(8, 0, blocks("b")) },
			"ab--", []string{"----", "-b--", "a---", "ab--"},
		},
		"the first one flushed": {
			func(l *logger) { l.write(0, 0, blocks("a")); l.add(0, 0, Flush, "", ""); l.write(8, 0, blocks("b")) },
			"ab--", []string{"a---", "ab--"},
		},
		"flushed with the second": {
			func(l *logger) { l.write(0, 0, blocks("a")); l.write(8, Flush, blocks("b")) },
			"ab--", []string{"a---", "ab--"},
		},
		"the second forced": {
			func(l *logger) { l.write(0, 0, blocks("a")); l.write(8, FUA, blocks("b")) },
			"ab--", []string{"-b--", "ab--"},
		},
		"torn between blocks": {
			func(l *logger) { l.write(0, 0, blocks("abc")) },
			"abc-", []string{"----", "--c-", "-b--", "-bc-", "a---", "a-c-", "ab--", "abc-"},
		},
		"the same block twice": {
			func(l *logger) { l.write(0, 0, blocks("a")); l.write(0, 0, blocks("b")) },
			"b---", []string{"----", "a---", "b---"},
		},
		"discarded": {
			func(l *logger) {
				l.write(0, 0, blocks("abcd"))
				l.add(0, 0, Flush, "", "")
				l.add(8, 16, Discard, "", "")
			},
			"a--d", []string{"a--d", "abcd"},
		},
		"a mark is no write": {
			func(l *logger) { l.add(0, 8, Mark, "", "born") },
			"----", []string{"----"},
		},
	} {
		l := logger{size: 512}
		c.log(&l)
		entries, err := Parse(l.log())
		if err != nil {
			t.Fatal(err)
		}
		r := NewReplay(entries, NewDisk())
		for range entries {
			r.Step()
		}
		if got := letters(t, r.All(), 4); got != c.all {
			t.Errorf("%s: all that was written: got %s, want %s", name, got, c.all)
		}
		random, found := rand.New(rand.NewPCG(1, 2)), map[string]bool{}
		for range 500 {
			found[letters(t, r.Some(random), 4)] = true
		}
		if got := slices.Sorted(maps.Keys(found)); !slices.Equal(got, c.some) {
			t.Errorf("%s: a cut leaves one of %q, want %q", name, got, c.some)
		}
	}
}

// TestWithinBlocks: writes that begin and end within a block leave the rest as it was, as
// do discards.
func TestWithinBlocks(t *testing.T) {
	l := logger{size: 512}
	l.write(7, 0, strings.Repeat("x", 1024)) // the end of block 0, the start of block 1
	l.add(8, 1, Discard, "", "")
	entries, err := Parse(l.log())
	if err != nil {
		t.Fatal(err)
	}
	before := NewDisk()
	if _, err := before.WriteAt([]byte(blocks("ab")), 0); err != nil {
		t.Fatal(err)
	}
	r := NewReplay(entries, before)
	r.Step()
	r.Step()
	got := make([]byte, 2*Block)
	if _, err := r.All().ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	want := strings.Repeat("a", 7*512) + strings.Repeat("x", 512) + strings.Repeat("\x00", 512) + strings.Repeat("b", 7*512)
	if string(got) != want {
		t.Error("a write and a discard of parts of blocks changed the rest of them")
	}
	if got := letters(t, before, 2); got != "ab" {
		t.Errorf("the disk that the replay began with is changed: got %s, want ab", got)
	}
}

func TestSave(t *testing.T) {
	d := NewDisk()
	if _, err := d.WriteAt([]byte(blocks("abcd")), 0); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "part")
	if err := d.Save(path, Block, 2*Block+512); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := blocks("bcd")[:2*Block+512]; string(got) != want {
		t.Errorf("got %d bytes, which are not blocks 1 to 3", len(got))
	}
}

// TestSum: sums are equal where contents are, however they came about.
func TestSum(t *testing.T) {
	d := NewDisk()
	write := func(text string, at int64) {
		if _, err := d.WriteAt([]byte(text), at); err != nil {
			t.Fatal(err)
		}
	}
	write(blocks("ab"), 0)
	first, inFront := d.Sum(0, 2*Block), d.Sum(0, Block)
	write("x", Block)
	if d.Sum(0, 2*Block) == first {
		t.Error("a byte changed, and the sum did not")
	}
	if d.Sum(0, Block) != inFront {
		t.Error("the sum of a part changed with a byte outside of it")
	}
	write("b", Block)
	write(blocks("\x00"), 0)
	write(blocks("a"), 0)
	if d.Sum(0, 2*Block) != first {
		t.Error("the contents are as they were, and the sum is not")
	}
	write(blocks("b"), 0)
	write(blocks("a"), Block)
	if d.Sum(0, 2*Block) == first {
		t.Error("two blocks changed places, and the sum did not")
	}
}

// FuzzParse: no log is read that cannot be replayed.
func FuzzParse(f *testing.F) {
	l := logger{size: 512}
	l.write(8, 0, blocks("ab"))
	l.add(0, 0, Flush, "", "")
	l.add(0, 0, Mark, "", "born")
	l.add(3, 9, Discard, "", "")
	l.write(0, FUA, blocks("c"))
	f.Add(l.log())
	f.Add(l.log()[:512])
	f.Add((&logger{size: 4096}).log())
	f.Fuzz(func(t *testing.T, log []byte) {
		entries, err := Parse(log)
		if err != nil {
			return
		}
		size := 0
		r := NewReplay(entries, NewDisk())
		for e, more := r.Next(); more; e, more = r.Next() {
			size += len(e.Data)
			r.Step()
		}
		r.Some(rand.New(rand.NewPCG(0, 0)))
		if size > len(log) {
			t.Errorf("%d bytes of data in a log of %d", size, len(log))
		}
	})
}
