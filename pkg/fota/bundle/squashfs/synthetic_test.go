package squashfs_test

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"testing"

	"birthmark/pkg/fota/bundle/squashfs"
)

// A synthetic file system has what mksquashfs would not make, or only of much input.
// It is said to be packed by gzip, in blocks of 1 MiB.
type synthetic struct {
	count  int    // of inodes
	inodes []byte // the table, unpacked
	root   int    // where the root's inode stands in it
	dir    []byte // the table of directories, unpacked
	packed []byte // the table of inodes as it is written, if not nil
}

// bytes is the file system. No metadata is packed.
func (s synthetic) bytes() []byte {
	inodes := s.packed
	if inodes == nil {
		inodes = metadata(s.inodes)
	}
	dir := metadata(s.dir)
	b := make([]byte, 96, 96+len(inodes)+len(dir)+1)
	b = append(append(append(b, inodes...), dir...), 0)
	v := victim{b: b}
	copy(b, "hsqs")
	v.put32(inodeCount, uint32(s.count))
	v.put32(blockSize, 1<<20)
	v.put16(blockLog, 20)
	v.put16(compressor, 1)
	v.put16(major, 4)
	v.put64(rootInode, uint64(s.root/8192*8194)<<16|uint64(s.root%8192))
	v.put64(bytesUsed, uint64(len(b)))
	v.put64(inodeTable, 96)
	v.put64(dirTable, uint64(96+len(inodes)))
	for _, table := range []int{idTable, xattrTable, exports, fragTable} {
		v.put64(table, 1<<64-1)
	}
	return b
}

// metadata stores b in blocks.
func metadata(b []byte) []byte {
	var out []byte
	for len(b) > 0 {
		n := min(len(b), 8192)
		out = binary.LittleEndian.AppendUint16(out, uint16(n)|0x8000)
		out = append(out, b[:n]...)
		b = b[n:]
	}
	return out
}

// le is numbers, one behind another.
func le(numbers ...any) []byte {
	var b []byte
	for _, n := range numbers {
		b, _ = binary.Append(b, binary.LittleEndian, n) // fixed sizes only
	}
	return b
}

// hole is the inode of a file that is one hole, with n sizes of blocks behind it.
func hole(number uint32, size uint64, n int) []byte {
	head := le([4]uint16{9}, uint32(0), number, uint64(96), size, uint64(0), uint32(1), ^uint32(0), uint32(0), ^uint32(0))
	return append(head, make([]byte, 4*n)...)
}

// rootOf is the inode of a root folder of n bytes of entries.
func rootOf(number uint32, n int) []byte {
	return le([4]uint16{8}, uint32(0), number, uint32(2), uint32(n+3), uint32(0), uint32(1), uint16(0), uint16(0), ^uint32(0))
}

// entry is a run of one entry of a directory: the file of that number, whose inode
// stands there in the table.
func entry(name string, number uint32, at int) []byte {
	head := le(uint32(0), uint32(at/8192*8194), number, uint16(at%8192), int16(0), uint16(2), uint16(len(name)-1))
	return append(head, name...)
}

// oneHole is a file system of a file that is a hole, with as many sizes of blocks as
// it should have, less missing.
func oneHole(size uint64, missing int) []byte {
	dir := entry("large", 1, 40)
	inodes := append(rootOf(2, len(dir)), hole(1, size, int((size+1<<20-1)>>20)-missing)...)
	return synthetic{count: 2, inodes: inodes, dir: dir}.bytes()
}

// links is a file system of n names of two inodes in two blocks of metadata, by turns.
func links(n int) []byte {
	first, second := hole(1, 0, 0), hole(2, 0, 0)
	first = append(first, make([]byte, 8192-len(first))...)
	var dir []byte
	for i := range n {
		dir = append(dir, entry(fmt.Sprintf("%04d", i), uint32(1+i%2), i%2*8192)...)
	}
	inodes := append(first, second...)
	return synthetic{count: 3, root: len(inodes), inodes: append(inodes, rootOf(3, len(dir))...), dir: dir}.bytes()
}

// bigInodes is a file system whose inodes unpack to more than a block of metadata.
func bigInodes() []byte {
	var z bytes.Buffer
	w := zlib.NewWriter(&z)
	_, err := w.Write(make([]byte, 4<<20))
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err) // a bytes.Buffer takes all
	}
	return synthetic{count: 1, packed: append(le(uint16(z.Len())), z.Bytes()...), dir: []byte{0}}.bytes()
}

var syntheticCrimes = map[string]struct {
	image []byte
	code  string
}{
	"few links":                              {links(200), ""},
	"blocks of inodes by turns":              {links(1024), "limit"},
	"more names than are read":               {linksOfOne(1025), "limit"},
	"as many names as are read":              {linksOfOne(1024), ""},
	"a list of blocks with all it needs":     {oneHole(100<<20, 0), ""},
	"a list of blocks that ends early":       {oneHole(100<<20, 1), "inode"},
	"a list of 65536 blocks that is empty":   {oneHole(64<<30, 64<<10), "inode"},
	"a file of one byte more than is read":   {oneHole(64<<30+1, 0), "limit"},
	"inodes that unpack to more than may be": {bigInodes(), "inode"},
	"a block of inodes that is not full":     {shortBlock(), "inode"},
}

// shortBlock is a file system with an inode across two blocks, the first not full.
func shortBlock() []byte {
	dir := entry("a", 1, 40)
	inodes := append(rootOf(2, len(dir)), hole(1, 0, 0)...)
	return synthetic{count: 2, packed: append(metadata(inodes[:60]), metadata(inodes[60:])...), dir: dir}.bytes()
}

// linksOfOne is a file system of n names of one inode.
func linksOfOne(n int) []byte {
	var dir []byte
	for i := range n {
		dir = append(dir, entry(fmt.Sprintf("%04d", i), 1, 0)...)
	}
	inodes := hole(1, 0, 0)
	return synthetic{count: 2, root: len(inodes), inodes: append(inodes, rootOf(2, len(dir))...), dir: dir}.bytes()
}

func TestLimitsOfMetadata(t *testing.T) {
	for name, c := range syntheticCrimes {
		if got := verdict(bytes.NewReader(c.image), int64(len(c.image))); got != c.code {
			t.Errorf("%s: got %q, want %q", name, got, c.code)
		}
	}
}

// TestReadsAFileOfMoreThan4GiB holds that no number is too small for it.
func TestReadsAFileOfMoreThan4GiB(t *testing.T) {
	const size = 5<<30 + 12345
	f := open(t, oneHole(size, 0))
	if want := (squashfs.File{Name: "large", Size: size}); len(f.Files()) != 1 || f.Files()[0] != want {
		t.Errorf("got %v, want %v", f.Files(), want)
	}
	r, err := f.Open("large")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, r); n != size || err != nil {
		t.Errorf("got %d bytes, %v, want %d", n, err, int64(size))
	}
}

// TestANameMayHave255Bytes holds the limit of names from inside.
func TestANameMayHave255Bytes(t *testing.T) {
	name := strings.Repeat("n", 255)
	if got := read(t, open(t, mksquashfs(t, folder(t, map[string][]byte{name: {'x'}}))), name); string(got) != "x" {
		t.Errorf("got %q, want %q", got, "x")
	}
}
