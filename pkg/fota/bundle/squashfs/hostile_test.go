package squashfs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"birthmark/pkg/fota/bundle/squashfs"
)

// Positions in the superblock.
const (
	inodeCount = 4
	blockSize  = 12
	fragments  = 16
	compressor = 20
	blockLog   = 22
	major      = 28
	minor      = 30
	rootInode  = 32
	bytesUsed  = 40
	idTable    = 48
	xattrTable = 56
	inodeTable = 64
	dirTable   = 72
	fragTable  = 80
	exports    = 88
)

// Positions in a basic and an extended inode of a file.
const (
	number     = 12
	start      = 16
	fragment   = 20
	offset     = 24
	fileSize   = 28
	list       = 32
	extStart   = 16
	extSize    = 24
	rootBlock  = 16
	rootSize   = 24
	rootOffset = 26
)

// A victim is a file system whose metadata is not packed, and where things are in it.
type victim struct {
	b             []byte
	inode, entry  map[string]int // by name
	root          int            // its inode
	header        int            // of the only run of entries
	fragmentEntry int
}

func (v victim) u16(at int) int          { return int(binary.LittleEndian.Uint16(v.b[at:])) }
func (v victim) u32(at int) int          { return int(binary.LittleEndian.Uint32(v.b[at:])) }
func (v victim) u64(at int) int          { return int(binary.LittleEndian.Uint64(v.b[at:])) }
func (v victim) put16(at int, x uint16)  { binary.LittleEndian.PutUint16(v.b[at:], x) }
func (v victim) put32(at int, x uint32)  { binary.LittleEndian.PutUint32(v.b[at:], x) }
func (v victim) put64(at int, x uint64)  { binary.LittleEndian.PutUint64(v.b[at:], x) }
func (v victim) rename(from, to string)  { copy(v.b[v.entry[from]+8:], to) }
func (v victim) block(table, at int) int { return v.u64(table) + 2 + at }

// dissect finds the parts of a file system that mksquashfs made with -noI, with one
// block of inodes and one of entries.
func dissect(t testing.TB, b []byte) *victim {
	t.Helper()
	v := &victim{b: bytes.Clone(b), inode: map[string]int{}, entry: map[string]int{}}
	v.root = v.block(inodeTable, v.u16(rootInode))
	v.header = v.block(dirTable, v.u16(v.root+rootOffset))
	at := v.header + 12
	for range v.u32(v.header) + 1 {
		end := at + 8 + v.u16(at+6) + 1
		name := string(b[at+8 : end])
		v.entry[name] = at
		v.inode[name] = v.block(inodeTable, v.u16(at))
		at = end
	}
	if v.u32(fragments) > 0 {
		v.fragmentEntry = v.u64(v.u64(fragTable)) + 2
	}
	return v
}

// verdict reads everything in a file system, up to a limit, and returns the code of the
// error: "" if there is none, and the error if it is no FormatError.
func verdict(image io.ReaderAt, size int64) string {
	const limit = 256 << 20 // bytes that are read of one file
	err := func() error {
		f, err := squashfs.Open(image, size)
		if err != nil {
			return err
		}
		for _, file := range f.Files() {
			r, err := f.Open(file.Name)
			if err != nil {
				return err
			}
			if _, err := io.Copy(io.Discard, io.LimitReader(r, limit)); err != nil {
				return err
			}
		}
		return nil
	}()
	var bad *squashfs.FormatError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &bad):
		return bad.Code
	}
	return "no FormatError: " + err.Error()
}

// A crime is what is done to a good file system, and the code with which it is refused.
type crime struct {
	name, code string
	do         func(v *victim)
}

// crimes are done to a file system in blocks of 4 KiB of these files:
//
//	a    10 bytes in the fragment
//	bb   two blocks, and 100 bytes in the fragment
//	cc   two blocks
//	dd   a hole and a block, by an extended inode
//	ee   the same inode
var crimes = []crime{
	{"none", "", func(v *victim) {}},

	{"other magic", "magic", func(v *victim) { v.b[0] = 'x' }},
	{"big-endian", "magic", func(v *victim) { copy(v.b, "sqsh") }},
	{"a file of zeros", "magic", func(v *victim) { clear(v.b) }},
	{"no bytes", "superblock", func(v *victim) { v.b = nil }},
	{"95 bytes", "superblock", func(v *victim) { v.b = v.b[:95] }},
	{"the superblock alone", "superblock", func(v *victim) { v.b = v.b[:96] }},
	{"the last byte is missing", "superblock", func(v *victim) { v.b = v.b[:v.u64(bytesUsed)-1] }},
	{"version 3.0", "version", func(v *victim) { v.put16(major, 3) }},
	{"version 4.1", "version", func(v *victim) { v.put16(minor, 1) }},
	{"lzma", "compressor", func(v *victim) { v.put16(compressor, 2) }},
	{"lzo", "compressor", func(v *victim) { v.put16(compressor, 3) }},
	{"lz4", "compressor", func(v *victim) { v.put16(compressor, 5) }},
	{"no compressor", "compressor", func(v *victim) { v.put16(compressor, 0) }},
	{"an unknown compressor", "compressor", func(v *victim) { v.put16(compressor, 7) }},
	{"blocks of 0 bytes", "superblock", func(v *victim) { v.put32(blockSize, 0); v.put16(blockLog, 0) }},
	{"blocks of 2 KiB", "superblock", func(v *victim) { v.put32(blockSize, 2<<10); v.put16(blockLog, 11) }},
	{"blocks of 2 MiB", "superblock", func(v *victim) { v.put32(blockSize, 2<<20); v.put16(blockLog, 21) }},
	{"blocks of 5000 bytes", "superblock", func(v *victim) { v.put32(blockSize, 5000) }},
	{"block size and its logarithm disagree", "superblock", func(v *victim) { v.put16(blockLog, 13) }},
	{"no inodes", "superblock", func(v *victim) { v.put32(inodeCount, 0) }},
	{"one inode too many", "superblock", func(v *victim) { v.put32(inodeCount, 6) }},
	{"one inode too few", "superblock", func(v *victim) { v.put32(inodeCount, 4) }},
	{"more inodes than are read", "limit", func(v *victim) { v.put32(inodeCount, 1026) }},
	{"2^32-1 inodes", "limit", func(v *victim) { v.put32(inodeCount, math.MaxUint32) }},
	{"more fragments than inodes", "superblock", func(v *victim) { v.put32(fragments, 6) }},
	{"2^32-1 fragments", "superblock", func(v *victim) { v.put32(fragments, math.MaxUint32) }},
	{"used bytes beyond the end", "superblock", func(v *victim) { v.put64(bytesUsed, uint64(len(v.b)+1)) }},
	{"no used bytes", "superblock", func(v *victim) { v.put64(bytesUsed, 0) }},
	{"2^64-1 used bytes", "superblock", func(v *victim) { v.put64(bytesUsed, math.MaxUint64) }},
	{"inodes in the superblock", "superblock", func(v *victim) { v.put64(inodeTable, 95) }},
	{"inodes at 2^63", "superblock", func(v *victim) { v.put64(inodeTable, 1<<63) }},
	{"inodes nowhere", "superblock", func(v *victim) { v.put64(inodeTable, math.MaxUint64) }},
	{"directories before inodes", "superblock", func(v *victim) { v.put64(dirTable, 96) }},
	{"directories where the inodes are", "superblock", func(v *victim) { v.put64(dirTable, uint64(v.u64(inodeTable))) }},
	{"directories at the end", "superblock", func(v *victim) { v.put64(dirTable, uint64(v.u64(bytesUsed))) }},
	{"directories nowhere", "superblock", func(v *victim) { v.put64(dirTable, math.MaxUint64) }},
	{"directories at 2^63", "superblock", func(v *victim) { v.put64(dirTable, 1<<63) }},
	{"fragments before directories", "superblock", func(v *victim) { v.put64(fragTable, 96) }},
	{"fragments behind the end", "superblock", func(v *victim) { v.put64(fragTable, uint64(len(v.b))) }},
	{"fragments nowhere", "superblock", func(v *victim) { v.put64(fragTable, math.MaxUint64) }},
	{"list of fragments across the end", "superblock", func(v *victim) { v.put64(fragTable, uint64(v.u64(bytesUsed)-4)) }},
	{"owners behind the end", "superblock", func(v *victim) { v.put64(idTable, uint64(len(v.b))) }},
	{"owners in the data", "superblock", func(v *victim) { v.put64(idTable, 96) }},
	{"attributes behind the end", "superblock", func(v *victim) { v.put64(xattrTable, math.MaxUint64-1) }},
	{"exports in the superblock", "superblock", func(v *victim) { v.put64(exports, 0) }},

	{"root beyond the table", "inode", func(v *victim) { v.put64(rootInode, 1<<32) }},
	{"root at 2^48-1", "inode", func(v *victim) { v.put64(rootInode, math.MaxUint64) }},
	{"root behind its block", "inode", func(v *victim) { v.put16(rootInode, 8191) }},
	{"root at the last byte", "inode", func(v *victim) { v.put16(rootInode, uint16(v.u16(v.u64(inodeTable))&0x7fff-1)) }},
	{"root is a file", "inode", func(v *victim) { v.put16(v.root, 2) }},
	{"root of no kind", "inode", func(v *victim) { v.put16(v.root, 0) }},
	{"root of 2 bytes", "inode", func(v *victim) { v.put16(v.root+rootSize, 2) }},
	{"root ends in a header", "directory", func(v *victim) { v.put16(v.root+rootSize, 3+11) }},
	{"root ends in an entry", "directory", func(v *victim) { v.put16(v.root+rootSize, 3+12+7) }},
	{"root ends in a name", "directory", func(v *victim) { v.put16(v.root+rootSize, uint16(v.u16(v.root+rootSize)-1)) }},
	{"root goes on behind its end", "directory", func(v *victim) { v.put16(v.root+rootSize, uint16(v.u16(v.root+rootSize)+1)) }},
	{"root larger than the table", "directory", func(v *victim) { v.put16(v.root+rootSize, math.MaxUint16) }},
	{"an empty root, and inodes", "superblock", func(v *victim) { v.put16(v.root+rootSize, 3) }},
	{"root's entries beyond the table", "directory", func(v *victim) { v.put32(v.root+rootBlock, math.MaxUint32) }},
	{"root's entries behind their block", "directory", func(v *victim) { v.put16(v.root+rootOffset, 8000) }},
	{"inodes in no bytes", "inode", func(v *victim) { v.put16(v.u64(inodeTable), 0x8000) }},
	{"inodes in 32767 bytes", "inode", func(v *victim) { v.put16(v.u64(inodeTable), 0xffff) }},
	{"inodes run into directories", "inode", func(v *victim) { v.put16(v.u64(inodeTable), uint16(v.u16(v.u64(inodeTable))+1)) }},
	{"inodes that cannot be unpacked", "inode", func(v *victim) { v.put16(v.u64(inodeTable), uint16(v.u16(v.u64(inodeTable)))&0x7fff) }},
	{"directories that cannot be unpacked", "directory", func(v *victim) { v.put16(v.u64(dirTable), uint16(v.u16(v.u64(dirTable)))&0x7fff) }},

	{"257 entries behind a header", "directory", func(v *victim) { v.put32(v.header, 256) }},
	{"2^32 entries behind a header", "directory", func(v *victim) { v.put32(v.header, math.MaxUint32) }},
	{"more entries than the directory has", "directory", func(v *victim) { v.put32(v.header, 5) }},
	{"inodes of a run beyond the table", "inode", func(v *victim) { v.put32(v.header+4, math.MaxUint32) }},
	{"inodes of a run in the middle of a block", "inode", func(v *victim) { v.put32(v.header+4, 1) }},
	{"other numbers of a run", "inode", func(v *victim) { v.put32(v.header+8, 77) }},
	{"inode behind its block", "inode", func(v *victim) { v.put16(v.entry["bb"], 8191) }},
	{"inode of another file", "inode", func(v *victim) { v.put16(v.entry["bb"], uint16(v.u16(v.entry["a"]))) }},
	{"inode is the root's", "inode", func(v *victim) { v.put16(v.entry["bb"], uint16(v.u16(rootInode))) }},
	{"other number of an entry", "inode", func(v *victim) { v.put16(v.entry["bb"]+2, 77) }},
	{"number 0", "inode", func(v *victim) {
		v.put16(v.entry["bb"]+2, uint16(-v.u32(v.header+8)))
		v.put32(v.inode["bb"]+number, 0)
	}},
	{"name of 256 bytes", "limit", func(v *victim) { v.put16(v.entry["bb"]+6, 255) }},
	{"name of 65536 bytes", "limit", func(v *victim) { v.put16(v.entry["bb"]+6, math.MaxUint16) }},
	{"name longer than the directory", "directory", func(v *victim) { v.put16(v.entry["ee"]+6, 100) }},
	{".", "name", func(v *victim) { v.rename("a", ".") }},
	{"..", "name", func(v *victim) { v.rename("bb", "..") }},
	{"/", "name", func(v *victim) { v.rename("a", "/") }},
	{"b/", "name", func(v *victim) { v.rename("bb", "b/") }},
	{"NUL in a name", "name", func(v *victim) { v.rename("bb", "b\x00") }},
	{"a name twice", "directory", func(v *victim) { v.rename("cc", "bb") }},
	{"names not in order", "directory", func(v *victim) { v.rename("cc", "ab") }},
	{"a folder, by its entry", "kind", func(v *victim) { v.put16(v.entry["bb"]+4, 1) }},
	{"a symbolic link, by its entry", "kind", func(v *victim) { v.put16(v.entry["bb"]+4, 3) }},
	{"nothing, by its entry", "kind", func(v *victim) { v.put16(v.entry["bb"]+4, 0) }},
	{"an extended file, by its entry", "kind", func(v *victim) { v.put16(v.entry["bb"]+4, 9) }},
	{"a folder, by its inode", "inode", func(v *victim) { v.put16(v.inode["bb"], 1) }},
	{"a symbolic link, by its inode", "inode", func(v *victim) { v.put16(v.inode["bb"], 3) }},
	{"a kind that is none, by its inode", "inode", func(v *victim) { v.put16(v.inode["bb"], math.MaxUint16) }},

	{"a file behind the data", "inode", func(v *victim) { v.put32(v.inode["cc"]+start, uint32(v.u64(inodeTable)+1)) }},
	{"a file at 2^32-1", "inode", func(v *victim) { v.put32(v.inode["cc"]+start, math.MaxUint32) }},
	{"a file at 2^64-1", "inode", func(v *victim) { v.put64(v.inode["dd"]+extStart, math.MaxUint64) }},
	{"a file in the superblock", "block", func(v *victim) { v.put32(v.inode["cc"]+start, 0) }},
	{"a file of 2^64-1 bytes", "limit", func(v *victim) { v.put64(v.inode["dd"]+extSize, math.MaxUint64) }},
	{"a file of 2^63 bytes", "limit", func(v *victim) { v.put64(v.inode["dd"]+extSize, 1<<63) }},
	{"a file of more than is read", "limit", func(v *victim) { v.put64(v.inode["dd"]+extSize, 64<<30+1) }},
	{"files of more than is read together", "limit", func(v *victim) { v.put64(v.inode["dd"]+extSize, 32<<30+1) }},
	{"a file larger than its list", "block", func(v *victim) { v.put32(v.inode["cc"]+fileSize, 1<<20) }},
	{"a fragment that is not there", "fragment", func(v *victim) { v.put32(v.inode["a"]+fragment, 1) }},
	{"fragment 2^32-2", "fragment", func(v *victim) { v.put32(v.inode["a"]+fragment, math.MaxUint32-1) }},
	{"a fragment after whole blocks", "fragment", func(v *victim) { v.put32(v.inode["cc"]+fragment, 0) }},
	{"a fragment, and no bytes", "fragment", func(v *victim) { v.put32(v.inode["a"]+fileSize, 0) }},
	{"a tail behind the fragment", "fragment", func(v *victim) { v.put32(v.inode["a"]+offset, 101) }},
	{"a tail across the largest fragment", "fragment", func(v *victim) { v.put32(v.inode["a"]+offset, 4<<10-9) }},
	{"a tail at 2^32-1", "fragment", func(v *victim) { v.put32(v.inode["a"]+offset, math.MaxUint32) }},
	{"fragments in the superblock", "fragment", func(v *victim) { v.put64(v.u64(fragTable), 0) }},
	{"fragments in the list of them", "fragment", func(v *victim) { v.put64(v.u64(fragTable), uint64(v.u64(fragTable))) }},
	{"fragments at 2^64-1", "fragment", func(v *victim) { v.put64(v.u64(fragTable), math.MaxUint64) }},
	{"fragments in no bytes", "fragment", func(v *victim) { v.put16(v.fragmentEntry-2, 0x8000) }},
	{"a table of half a fragment", "fragment", func(v *victim) { v.put16(v.fragmentEntry-2, 0x8008) }},
	{"a fragment in the superblock", "fragment", func(v *victim) { v.put64(v.fragmentEntry, 0) }},
	{"a fragment in the tables", "fragment", func(v *victim) { v.put64(v.fragmentEntry, uint64(v.u64(inodeTable))) }},
	{"a fragment at 2^63", "fragment", func(v *victim) { v.put64(v.fragmentEntry, 1<<63) }},
	{"a fragment at 2^64-1", "fragment", func(v *victim) { v.put64(v.fragmentEntry, math.MaxUint64) }},
	{"a fragment of no bytes", "fragment", func(v *victim) { v.put32(v.fragmentEntry+8, 0) }},
	{"a fragment larger than a block", "fragment", func(v *victim) { v.put32(v.fragmentEntry+8, 1<<24|4097) }},
	{"a fragment of 2^32-1 bytes", "fragment", func(v *victim) { v.put32(v.fragmentEntry+8, math.MaxUint32) }},
	{"a fragment that is too small", "fragment", func(v *victim) { v.put32(v.fragmentEntry+8, 1<<24|109) }},
	{"a fragment that cannot be unpacked", "fragment", func(v *victim) { v.put32(v.fragmentEntry+8, 110) }},

	{"a block that is too small", "block", func(v *victim) { v.put32(v.inode["cc"]+list, 1<<24|4095) }},
	{"a block that is too large", "block", func(v *victim) { v.put32(v.inode["cc"]+list, 1<<24|4097) }},
	{"a block of no bytes", "block", func(v *victim) { v.put32(v.inode["cc"]+list, 1<<24) }},
	{"a block of 2^24-1 bytes", "block", func(v *victim) { v.put32(v.inode["cc"]+list, 1<<24-1) }},
	{"a block with an unknown flag", "block", func(v *victim) { v.put32(v.inode["cc"]+list, 1<<25|4096) }},
	{"a block of 2^32-1 bytes", "block", func(v *victim) { v.put32(v.inode["cc"]+list, math.MaxUint32) }},
	{"a block that cannot be unpacked", "block", func(v *victim) { v.put32(v.inode["cc"]+list, 4096) }},
	{"a block across the end of the data", "block", func(v *victim) { v.put32(v.inode["cc"]+start, uint32(v.u64(inodeTable)-4097)) }},
}

// stored is what crimes are done to.
func stored(t testing.TB) []byte {
	dd := make([]byte, 8<<10)
	copy(dd[4<<10:], noise(4<<10))
	dir := folder(t, map[string][]byte{"a": noise(10), "bb": noise(8<<10 + 100), "cc": noise(8 << 10), "dd": dd})
	if err := os.Link(filepath.Join(dir, "dd"), filepath.Join(dir, "ee")); err != nil {
		t.Fatal(err)
	}
	return mksquashfs(t, dir, "-b", "4096", "-noI", "-noD", "-noF", "-noX", "-all-root", "-no-duplicates")
}

func TestHostileFileSystemsAreRefused(t *testing.T) {
	good := stored(t)
	if len(crimes) < 50 {
		t.Errorf("there are %d crimes, want 50", len(crimes))
	}
	for _, c := range crimes {
		v := dissect(t, good)
		c.do(v)
		if got := verdict(bytes.NewReader(v.b), int64(len(v.b))); got != c.code {
			t.Errorf("%s: got %q, want %q", c.name, got, c.code)
		}
	}
}

func TestOtherThingsThanFilesAreRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(path string) error
	}{
		{"a folder", func(p string) error { return os.Mkdir(p, 0o700) }},
		{"a symbolic link", func(p string) error { return os.Symlink("/etc/hostname", p) }},
		{"a pipe", func(p string) error { return exec.Command("mkfifo", p).Run() }},
	} {
		dir := folder(t, map[string][]byte{"a": nil, "z": nil})
		if err := c.make(filepath.Join(dir, "thing")); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		refusedAs(t, mksquashfs(t, dir), c.name)
	}
	// What only root may make, mksquashfs makes by itself.
	for what, definition := range map[string]string{
		"a block device": "thing b 600 0 0 8 0", "a character device": "thing c 600 0 0 1 3", "a socket": "thing i 600 0 0 s",
		"a folder": "thing d 700 0 0",
	} {
		refusedAs(t, mksquashfs(t, folder(t, map[string][]byte{"a": nil}), "-p", definition), what)
	}
}

// refusedAs holds that an image is refused because of what lies in it.
func refusedAs(t *testing.T, image []byte, what string) {
	t.Helper()
	_, err := squashfs.Open(bytes.NewReader(image), int64(len(image)))
	var bad *squashfs.FormatError
	if want := fmt.Sprintf("%q is %s", "thing", what); !errors.As(err, &bad) || bad.Code != "kind" || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: got %v, want the code kind and %q", what, err, want)
	}
}

func TestOtherCompressorsAreRefused(t *testing.T) {
	dir := folder(t, map[string][]byte{"a": text(1, 10_000)})
	for _, c := range []struct{ args, want string }{
		{"-comp lzo", "packed by lzo"},
		{"-comp lz4", "packed by lz4"},
		{"-comp xz -Xbcj x86,arm", "filters for machine code"},
	} {
		image := mksquashfs(t, dir, strings.Fields(c.args)...)
		_, err := squashfs.Open(bytes.NewReader(image), int64(len(image)))
		var bad *squashfs.FormatError
		if !errors.As(err, &bad) || bad.Code != "compressor" || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want the code compressor and %q", c.args, err, c.want)
		}
	}
}
