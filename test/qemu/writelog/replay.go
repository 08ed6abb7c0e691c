package writelog

import (
	"errors"
	"hash/maphash"
	"io"
	"maps"
	"math/rand/v2"
	"os"
)

// Block is the number of bytes that a disk writes whole, or not at all.
const Block = 4096

// A Disk is what a disk holds: zeros where nothing is known.
type Disk struct{ blocks map[int64]*[Block]byte } // by their numbers; shared, never changed

// NewDisk is a disk of zeros.
func NewDisk() *Disk { return &Disk{map[int64]*[Block]byte{}} }

func (d *Disk) clone() *Disk { return &Disk{maps.Clone(d.blocks)} }

// WriteAt writes, as [io.WriterAt] has it.
func (d *Disk) WriteAt(data []byte, at int64) (int, error) {
	for n := 0; n < len(data); {
		block, within := (at+int64(n))/Block, (at+int64(n))%Block
		changed := new([Block]byte)
		if old := d.blocks[block]; old != nil {
			*changed = *old
		}
		n += copy(changed[within:], data[n:])
		if d.blocks[block] = changed; *changed == [Block]byte{} {
			delete(d.blocks, block)
		}
	}
	return len(data), nil
}

// ReadAt reads, as [io.ReaderAt] has it, without an end.
func (d *Disk) ReadAt(data []byte, at int64) (int, error) {
	for n := 0; n < len(data); {
		block, within := (at+int64(n))/Block, (at+int64(n))%Block
		read := data[n:min(len(data), n+int(Block-within))]
		clear(read)
		if b := d.blocks[block]; b != nil {
			copy(read, b[within:])
		}
		n += len(read)
	}
	return len(data), nil
}

var (
	_ io.WriterAt = (*Disk)(nil)
	_ io.ReaderAt = (*Disk)(nil)
)

// Save writes a part of the disk, such as a partition that starts at a block, to a new
// sparse file.
func (d *Disk) Save(path string, start, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	for block, data := range d.blocks {
		if at := block*Block - start; err == nil && at >= 0 && at < size {
			_, err = f.WriteAt(data[:min(Block, size-at)], at)
		}
	}
	return errors.Join(err, f.Close())
}

// Sum tells different contents of a part of the disk apart, in this process.
func (d *Disk) Sum(start, size int64) (sum uint64) {
	for block, data := range d.blocks {
		if at := block*Block - start; at >= 0 && at < size {
			h := maphash.Hash{}
			h.SetSeed(seed)
			maphash.WriteComparable(&h, block)
			_, _ = h.Write(data[:]) // never fails
			sum ^= h.Sum64()
		}
	}
	return sum
}

var seed = maphash.MakeSeed()

// discard makes zeros of a range.
func (d *Disk) discard(at, size int64) {
	for block, data := range d.blocks {
		from, to := max(at-block*Block, 0), min(at+size-block*Block, Block)
		switch {
		case from >= to:
		case to-from == Block:
			delete(d.blocks, block)
		default:
			changed := *data
			clear(changed[from:to])
			d.blocks[block] = &changed
		}
	}
}

// do does the part of an entry that wanted has.
func (d *Disk) do(e Entry, wanted func() bool) {
	if e.Flags&Mark != 0 || e.Size == 0 {
		return
	}
	if e.Flags&Discard != 0 {
		if wanted() {
			d.discard(e.At, e.Size)
		}
		return
	}
	for n := int64(0); n < e.Size; {
		size := min(e.Size-n, Block-(e.At+n)%Block)
		if wanted() {
			_, _ = d.WriteAt(e.Data[n:n+size], e.At+n) // in memory
		}
		n += size
	}
}

func always() bool { return true }

// A Replay goes through a log.
type Replay struct {
	entries []Entry
	next    int
	all     *Disk
	durable *Disk
	pending []Entry // since durable
}

// NewReplay begins with what the disk held before the first entry.
func NewReplay(entries []Entry, before *Disk) *Replay {
	return &Replay{entries: entries, all: before.clone(), durable: before.clone()}
}

// Next is the entry that Step does, false at the end.
func (r *Replay) Next() (Entry, bool) {
	if r.next == len(r.entries) {
		return Entry{}, false
	}
	return r.entries[r.next], true
}

// Step does the next entry.
func (r *Replay) Step() {
	e := r.entries[r.next]
	r.next++
	if e.Flags&Flush != 0 {
		for _, p := range r.pending {
			r.durable.do(p, always)
		}
		r.pending = nil
	}
	r.all.do(e, always)
	r.pending = append(r.pending, e)
}

// Volatile is the number of writes that may be lost.
func (r *Replay) Volatile() (n int) {
	for _, e := range r.pending {
		if e.Size > 0 && e.Flags&FUA == 0 {
			n++
		}
	}
	return n
}

// All is the disk with all that was written. It changes with the next Step.
func (r *Replay) All() *Disk { return r.all }

// Some is a disk that has lost what it could and what random says: half of the writes in a
// random choice, a quarter of them in parts.
func (r *Replay) Some(random *rand.Rand) *Disk {
	d := r.durable.clone()
	toss := func() bool { return random.Uint32()&1 == 0 }
	for _, e := range r.pending {
		switch {
		case e.Flags&FUA != 0:
			d.do(e, always)
		case random.Uint32()%4 == 0:
			d.do(e, toss)
		case toss():
			d.do(e, always)
		}
	}
	return d
}
