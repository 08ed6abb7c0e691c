// Package writelog reads the log of all writes to a disk, and knows what a power cut at
// any moment may leave of them.
//
// [Parse] reads a log. The format is that of Linux' dm-log-writes, which QEMU's driver
// blklogwrites writes, too: a sector with a head, then for each request a sector that
// tells what it is, and its data. Numbers are of 8 bytes, little-endian.
//
//	head      magic "rhswfsj", version 1, number of entries, sector size (4 bytes)
//	entry     first sector, number of sectors, flags, bytes of text behind these (a mark)
//
// Entries are in the order in which the disk was done with the requests. A [Replay] goes
// through them, one at a time. At each it tells what the disk holds if nothing is lost
// ([Replay.All]), and what it may hold if it loses its volatile cache ([Replay.Some]):
// what was written before the last flush, what was forced to the medium, and any part of
// the rest, in blocks of 4096 bytes, which a disk is trusted to write whole or not at all.
//
// A write that ends while a flush is on its way is taken for flushed, though the flush may
// have been before it. So the model forgives a little: a program that did not wait for its
// write, but for somebody else's flush.
package writelog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
)

// Limits of a log.
const (
	entriesLimit = 1 << 20
	sizeLimit    = 1 << 30 // bytes
	sectorLimit  = 64 << 10
	diskLimit    = 1 << 42 // bytes of the disk whose log it is
)

// sector is the unit of entries of whatever sector size.
const sector = 512

const (
	magic   = 0x6a736677736872
	version = 1
)

// Flags tell what an entry is besides a write.
type Flags uint64

const (
	Flush    Flags = 1 << iota // what was written before is on the medium
	FUA                        // so is this write (forced unit access)
	Discard                    // reads as zeros from now on
	Mark                       // somebody's note in the log
	Meta                       // a write of a file system's own; says nothing here
	allFlags = Meta<<1 - 1
)

// An Entry is one request.
type Entry struct {
	At    int64 // bytes from the disk's start
	Size  int64 // bytes of the disk
	Flags Flags
	Data  []byte // what was written, or the text of a mark
}

// Count is the number of entries in the log that a file holds now, while it is written.
func Count(path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	head := make([]byte, 24)
	if _, err := f.ReadAt(head, 0); err != nil {
		return 0, fmt.Errorf("cannot read the head of %s: %w", path, err)
	}
	return binary.LittleEndian.Uint64(head[16:]), nil
}

// Parse reads a log. Data of the entries are parts of log.
func Parse(log []byte) ([]Entry, error) {
	entries, err := parse(log)
	if err != nil {
		return nil, fmt.Errorf("cannot read the log of writes: %w", err)
	}
	return entries, nil
}

func parse(log []byte) ([]Entry, error) {
	number := func(b []byte, n int) uint64 { return binary.LittleEndian.Uint64(b[8*n:]) }
	if len(log) > sizeLimit {
		return nil, fmt.Errorf("%d bytes, limit %d", len(log), sizeLimit)
	}
	if len(log) < sector || number(log, 0) != magic || number(log, 1) != version {
		return nil, errors.New("it has no head of version 1")
	}
	count, size := number(log, 2), int64(binary.LittleEndian.Uint32(log[24:]))
	if size < sector || size > sectorLimit || size&(size-1) != 0 {
		return nil, fmt.Errorf("sectors of %d bytes", size)
	}
	if count > entriesLimit {
		return nil, fmt.Errorf("%d entries, limit %d", count, entriesLimit)
	}
	var entries []Entry
	rest := log[min(size, int64(len(log))):]
	for n := range count {
		if int64(len(rest)) < size {
			return nil, fmt.Errorf("it ends before entry %d of %d", n+1, count)
		}
		head := rest[:size]
		rest = rest[size:]
		first, sectors, flags, text := number(head, 0), number(head, 1), Flags(number(head, 2)), number(head, 3)
		if first > uint64(diskLimit/size) || sectors > uint64(diskLimit/size) || flags&^allFlags != 0 {
			return nil, fmt.Errorf("entry %d is none: sector %d, %d sectors, flags %#x", n+1, first, sectors, flags)
		}
		e := Entry{At: int64(first) * size, Size: int64(sectors) * size, Flags: flags}
		switch {
		case flags&Mark != 0:
			if text > uint64(size)-32 {
				return nil, fmt.Errorf("mark %d of %d bytes", n+1, text)
			}
			e.Size, e.Data = 0, head[32:32+text]
		case flags&Discard == 0:
			if e.Size > int64(len(rest)) {
				return nil, fmt.Errorf("it ends within entry %d of %d", n+1, count)
			}
			e.Data, rest = rest[:e.Size], rest[e.Size:]
		}
		entries = append(entries, e)
	}
	return entries, nil
}
