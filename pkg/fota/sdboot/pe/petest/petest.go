// Package petest makes small programs for UEFI, for tests of what reads them. They are
// right in all that package pe looks at; nothing would run them.
package petest

import "encoding/binary"

// Where things are in a program.
const (
	HeaderAt    = 0x40
	OptionalAt  = HeaderAt + 24
	SecurityAt  = OptionalAt + 112 + 4*8
	TableAt     = OptionalAt + 112 + 16*8
	HeadersSize = 0x200
)

// A Section has a name and what is in it, at most 4 KiB.
type Section struct{ Name, Text string }

// Program is a program of some sections, in the file in multiples of 512 bytes, and
// loaded to 0x1000, 0x2000 and so on. There is room for five.
func Program(sections ...Section) []byte {
	le := binary.LittleEndian
	b := make([]byte, HeadersSize)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], HeaderAt)
	copy(b[HeaderAt:], "PE\x00\x00")
	le.PutUint16(b[HeaderAt+4:], 0x8664)
	le.PutUint16(b[HeaderAt+6:], uint16(len(sections)))
	le.PutUint16(b[HeaderAt+20:], 112+16*8)
	o := b[OptionalAt:]
	le.PutUint16(o, 0x20b)
	le.PutUint32(o[56:], uint32(0x1000*(len(sections)+1))) // in memory
	le.PutUint32(o[60:], HeadersSize)
	le.PutUint32(o[64:], 0x12345678) // check sum
	le.PutUint16(o[68:], 10)
	le.PutUint32(o[108:], 16)
	for i, s := range sections {
		text := append([]byte(s.Text), make([]byte, -len(s.Text)&511)...)
		h := b[TableAt+40*i:]
		copy(h[:8], s.Name)
		for j, v := range []int{len(s.Text), 0x1000 * (i + 1), len(text), len(b)} {
			le.PutUint32(h[8+4*j:], uint32(v))
		}
		b = append(b, text...)
	}
	return b
}

// UKI is a unified kernel image of a version.
func UKI(version string) []byte {
	return Program(
		Section{".osrel", "ID=test\nIMAGE_ID=test\nIMAGE_VERSION=" + version + "\n"},
		Section{".cmdline", "init=/sbin/init panic=1"},
		Section{".linux", "the kernel of " + version},
	)
}
