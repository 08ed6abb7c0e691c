package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"
	"unicode/utf16"

	"birthmark/test/qemu/writelog"
)

const tableSize = 1 << 20 // more than a table and its copy have at either end of a disk

// partition returns where one with a name is on a disk of some size, 0 and 0 if there is
// none of that name. Linux and the firmware take the copy of the table at the end when
// the one in front is damaged (UEFI 2.10, section 5.3.2).
func partition(d *writelog.Disk, diskSize int64, name string) (start, size int64, err error) {
	for _, at := range []int64{1, diskSize/512 - 1} {
		var entries []byte
		if entries, err = readTable(d, at); err == nil {
			for e := range chunks(entries, 128) {
				var letters []uint16
				for c := range chunks(e[56:], 2) {
					letters = append(letters, binary.LittleEndian.Uint16(c))
				}
				if strings.TrimRight(string(utf16.Decode(letters)), "\x00") == name {
					first, last := binary.LittleEndian.Uint64(e[32:]), binary.LittleEndian.Uint64(e[40:])
					return int64(first) * 512, int64(last-first+1) * 512, nil
				}
			}
			return 0, 0, nil
		}
	}
	return 0, 0, err
}

// chunks are those of n bytes in text.
func chunks(text []byte, n int) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for ; len(text) >= n && yield(text[:n]); text = text[n:] {
		}
	}
}

// readTable reads the entries of a GPT whose head is in a sector.
func readTable(d *writelog.Disk, sector int64) ([]byte, error) {
	head := make([]byte, 512)
	if _, err := d.ReadAt(head, sector*512); err != nil {
		return nil, err
	}
	if string(head[:8]) != "EFI PART" {
		return nil, fmt.Errorf("no partition table in sector %d", sector)
	}
	number := func(at int) uint32 { return binary.LittleEndian.Uint32(head[at:]) }
	size, sum, count, each, sumOfEntries := number(12), number(16), number(80), number(84), number(88)
	if size != 92 || count > 128 || each != 128 {
		return nil, fmt.Errorf("the partition table in sector %d has %d entries of %d bytes and a head of %d", sector, count, each, size)
	}
	clear(head[16:20])
	entries := make([]byte, count*each)
	if _, err := d.ReadAt(entries, int64(binary.LittleEndian.Uint64(head[72:]))*512); err != nil {
		return nil, err
	}
	if crc32.ChecksumIEEE(head[:size]) != sum || crc32.ChecksumIEEE(entries) != sumOfEntries {
		return nil, errors.New("the partition table is damaged")
	}
	return entries, nil
}

// TestTable: partition reads what sfdisk wrote, in front or at the end.
func TestTable(t *testing.T) {
	t.Parallel()
	o := newOffline(t)
	for name, wanted := range map[string]bool{"root-a": true, "data": false} {
		for _, front := range []bool{true, false} {
			d := writelog.NewDisk()
			if err := o.readTables(d, img.Disk); err != nil {
				t.Fatal(err)
			}
			if !front {
				if _, err := d.WriteAt([]byte{1}, 600); err != nil { // the head is up to 604
					t.Fatal(err)
				}
			}
			start, length, err := partition(d, o.size, name)
			if err != nil || (length > 0) != wanted || wanted && start != 129<<20 {
				t.Errorf("%s: got %d bytes at %d, %v; wanted it: %t", name, length, start, err, wanted)
			}
		}
	}
	if _, _, err := partition(writelog.NewDisk(), o.size, "data"); err == nil {
		t.Error("a disk of zeros has a partition table")
	}
}
