package squashfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"

	"github.com/ulikunitz/xz/lzma"
)

var (
	errXZ     = errors.New("it is no xz stream of one block with a CRC-32")
	errXZEnd  = errors.New("the end of its xz stream is damaged")
	errFilter = errors.New("its xz stream has other filters than LZMA2")
	errXZSum  = errors.New("its CRC-32 does not match")
	errChunk  = errors.New("a chunk of its xz stream is damaged")
	errChunks = errors.New("its xz stream has more chunks than are read")
)

// chunkLimit is how many LZMA2 chunks a block may have. Each is at least 64 KiB, packed
// or unpacked, but the last: a block of 1 MiB has 17 or so.
const chunkLimit = 64

// xzMagic begins a stream that is checked by CRC-32 (The .xz File Format 1.1.0, section
// 2.1.1): its flags, and their own CRC-32, are the same in each.
var xzMagic = []byte{0xfd, '7', 'z', 'X', 'Z', 0, 0, 1, 0x69, 0x22, 0xde, 0x36}

// newXZ unpacks an xz stream as the kernel reads it: one block, one filter, CRC-32.
//
// The container and the chunks' sizes are read here, and only what is in the chunks by a
// library. Its own reader of containers takes the size of the dictionary from the stream,
// up to 4 GiB and anew in each block, and it takes properties that LZMA2 does not have,
// with tables of 6 MiB to fill for each chunk of ten bytes.
func newXZ() unpacker {
	var in bytes.Reader
	return func(dst, src []byte) (int, error) {
		header, ok := xzBlockHeader(src)
		if !ok {
			return 0, errXZ
		}
		if err := checkFilter(header); err != nil {
			return 0, err
		}
		body := src[len(xzMagic)+len(header):]
		packed, size, err := measureChunks(body)
		if err != nil {
			return 0, err
		}
		if size > len(dst) {
			return 0, errTooLong
		}
		end, n := body[packed:], 0
		in.Reset(body[:packed])
		z, err := lzma.Reader2Config{DictCap: max(size, lzma.MinDictCap)}.NewReader2(&in)
		if err == nil {
			n, err = readAll(dst, z)
		}
		if err != nil {
			return 0, err
		}
		padding := -packed & 3
		if len(end) < padding+4 || !zeros(end[:padding]) {
			return 0, errXZEnd
		}
		if binary.LittleEndian.Uint32(end[padding:]) != crc32.ChecksumIEEE(dst[:n]) {
			return 0, errXZSum
		}
		if !bytes.Equal(end[padding+4:], xzTail(len(header)+packed+4, n)) {
			return 0, errXZEnd
		}
		return n, nil
	}
}

// measureChunks goes over the LZMA2 chunks at the beginning of b, up to the one that
// says that it is the last, and returns how many bytes they have, packed and unpacked.
func measureChunks(b []byte) (packed, unpacked int, err error) {
	for range chunkLimit {
		c := b[packed:]
		if len(c) > 0 && c[0] == 0 {
			return packed + 1, unpacked, nil
		}
		if len(c) < 6 {
			return 0, 0, errChunk
		}
		size := int(binary.BigEndian.Uint16(c[1:])) + 1
		switch control := c[0]; {
		case control == 1 || control == 2: // stored
			packed += 3 + size
		case control >= 0x80:
			size += int(control&0x1f) << 16
			packed += 5 + int(binary.BigEndian.Uint16(c[3:])) + 1
			if control >= 0xc0 { // with new properties: (pb*5 + lp)*9 + lc
				packed++
				if lc, lp, pb := c[5]%9, c[5]/9%5, c[5]/45; lc+lp > 4 || pb > 4 {
					return 0, 0, errChunk
				}
			}
		default:
			return 0, 0, errChunk
		}
		if unpacked += size; packed > len(b) {
			return 0, 0, errChunk
		}
	}
	return 0, 0, errChunks
}

// xzBlockHeader returns the header of the block that follows the stream's (section 3.1).
func xzBlockHeader(src []byte) ([]byte, bool) {
	rest, ok := bytes.CutPrefix(src, xzMagic)
	if !ok || len(rest) == 0 || rest[0] == 0 {
		return nil, false
	}
	size := 4 * (int(rest[0]) + 1)
	if size > len(rest) {
		return nil, false
	}
	h := rest[:size]
	sum := binary.LittleEndian.Uint32(h[size-4:])
	return h, sum == crc32.ChecksumIEEE(h[:size-4])
}

// checkFilter holds that a block's only filter is LZMA2 (section 5.3.1). The sizes that
// the header may tell, too, are known from the bytes themselves.
func checkFilter(header []byte) error {
	flags, rest := header[1], header[2:len(header)-4]
	if flags&0x3f != 0 {
		return errFilter
	}
	for _, told := range []byte{flags & 0x40, flags & 0x80} {
		if told != 0 {
			_, n := binary.Uvarint(rest)
			if n <= 0 {
				return errXZ
			}
			rest = rest[n:]
		}
	}
	if !bytes.HasPrefix(rest, []byte{0x21, 1}) || len(rest) < 3 || !zeros(rest[3:]) {
		return errFilter
	}
	return nil
}

// xzTail is what follows a stream's only block: the index and the footer (sections 4
// and 2.1.2), which repeat what is known.
func xzTail(unpadded, unpacked int) []byte {
	b := []byte{0, 1}
	b = binary.AppendUvarint(b, uint64(unpadded))
	b = binary.AppendUvarint(b, uint64(unpacked))
	b = append(b, make([]byte, -len(b)&3)...)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	footer := binary.LittleEndian.AppendUint32(nil, uint32(len(b)/4-1))
	footer = append(footer, xzMagic[6:8]...)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(footer))
	return append(append(b, footer...), 'Y', 'Z')
}

func zeros(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }
