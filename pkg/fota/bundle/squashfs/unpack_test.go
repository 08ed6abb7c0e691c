package squashfs

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// pack returns b as a writer packs it.
func pack(t testing.TB, b []byte, open func(w io.Writer) (io.WriteCloser, error)) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := open(&out)
	if err == nil {
		_, err = w.Write(b)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func packGzip(t testing.TB, b []byte) []byte {
	return pack(t, b, func(w io.Writer) (io.WriteCloser, error) { return zlib.NewWriter(w), nil })
}

func packXZ(t testing.TB, b []byte, c xz.WriterConfig) []byte {
	return pack(t, b, func(w io.Writer) (io.WriteCloser, error) { return c.NewWriter(w) })
}

func packZstd(t testing.TB, b []byte, options ...zstd.EOption) []byte {
	return pack(t, b, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w, options...) })
}

var goodXZ = xz.WriterConfig{CheckSum: xz.CRC32, DictCap: 1 << 20}

// chunks is an xz stream of LZMA2 chunks whose block unpacks to text.
func chunks(b []byte, text string) []byte {
	header := []byte{2, 0, 0x21, 1, 16, 0, 0, 0}
	header = binary.LittleEndian.AppendUint32(header, crc32.ChecksumIEEE(header))
	out := append(append(bytes.Clone(xzMagic), header...), b...)
	out = append(out, make([]byte, -len(b)&3)...)
	out = binary.LittleEndian.AppendUint32(out, crc32.ChecksumIEEE([]byte(text)))
	return append(out, xzTail(len(header)+len(b)+4, len(text))...)
}

// mended is an xz stream of which byte at of the block's header is x, with the
// header's checksum that belongs to it.
func mended(stream []byte, at int, x byte) []byte {
	b := bytes.Clone(stream)
	header := b[len(xzMagic):][:4*(int(b[len(xzMagic)])+1)]
	header[at] = x
	binary.LittleEndian.PutUint32(header[len(header)-4:], crc32.ChecksumIEEE(header[:len(header)-4]))
	return b
}

func flipped(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[(len(b)+at)%len(b)] ^= 1
	return b
}

func TestUnpackersTakeNoMoreThanTheyShould(t *testing.T) {
	const size = 1000
	good := []byte(strings.Repeat("0123456789", size/10))
	bomb := make([]byte, 16<<20)
	gzip, xzGood, zst := packGzip(t, good), packXZ(t, good, goodXZ), packZstd(t, good)
	stored := append(append([]byte{1, byte((size - 1) >> 8), byte((size - 1) & 0xff)}, good...), 0)
	var crumbs []byte // chunks of one byte each
	for i := range good {
		crumbs = append(crumbs, byte(1+min(i, 1)), 0, 0, good[i])
	}
	// The first chunk of xzGood begins behind its headers; its sixth byte is its properties.
	properties := len(xzMagic) + 4*(int(xzGood[len(xzMagic)])+1) + 5
	wide := bytes.Clone(xzGood)
	wide[properties] = 8 + 9*4 // lc 8, lp 4: a table of 6 MiB

	for _, c := range []struct {
		name   string
		unpack unpacker
		src    []byte
		want   error // nil: good; errAny: the library's
	}{
		{"gzip", newGzip(), gzip, nil},
		{"gzip, nothing", newGzip(), nil, errAny},
		{"gzip, cut off", newGzip(), gzip[:len(gzip)-1], errAny},
		{"gzip, other checksum", newGzip(), flipped(gzip, -1), errAny},
		{"gzip, a byte behind the end", newGzip(), append(bytes.Clone(gzip), 0), errTrailing},
		{"gzip, one byte more", newGzip(), packGzip(t, append(bytes.Clone(good), 'x')), errTooLong},
		{"gzip, a bomb", newGzip(), packGzip(t, bomb), errTooLong},
		{"gzip, a dictionary", newGzip(), append([]byte{0x78, 0xbb}, gzip[2:]...), errAny},

		{"zstd", newZstd(), zst, nil},
		{"zstd, cut off", newZstd(), zst[:len(zst)-1], errAny},
		{"zstd, other checksum", newZstd(), flipped(zst, -1), errAny},
		{"zstd, a byte behind the end", newZstd(), append(bytes.Clone(zst), 0), errAny},
		{"zstd, one byte more", newZstd(), packZstd(t, append(bytes.Clone(good), 'x')), errAny},
		{"zstd, twice", newZstd(), append(bytes.Clone(zst), zst...), errAny},
		{"zstd, a bomb", newZstd(), packZstd(t, bomb), errAny},
		{"zstd, a window of 2 MiB", newZstd(), packZstd(t, bomb[:3<<20], zstd.WithWindowSize(2<<20)), zstd.ErrWindowSizeExceeded},
		{"zstd, a bomb of unknown size", newZstd(), unsized(t, bomb), errAny},

		{"xz", newXZ(), xzGood, nil},
		{"xz, stored", newXZ(), chunks(stored, string(good)), nil},
		{"xz, a dictionary of 4 GiB", newXZ(), mended(xzGood, 4, 40), nil}, // only said to be
		{"xz, nothing", newXZ(), nil, errXZ},
		{"xz, only the magic", newXZ(), xzMagic, errXZ},
		{"xz, cut off", newXZ(), xzGood[:len(xzGood)-1], errXZEnd},
		{"xz, other footer", newXZ(), flipped(xzGood, -1), errXZEnd},
		{"xz, a byte behind the end", newXZ(), append(bytes.Clone(xzGood), 0), errXZEnd},
		{"xz, twice", newXZ(), append(bytes.Clone(xzGood), xzGood...), errXZEnd},
		{"xz, SHA-256", newXZ(), packXZ(t, good, xz.WriterConfig{CheckSum: xz.SHA256}), errXZ},
		{"xz, no checksum", newXZ(), packXZ(t, good, xz.WriterConfig{NoCheckSum: true}), errXZ},
		{"xz, two blocks", newXZ(), packXZ(t, good, xz.WriterConfig{CheckSum: xz.CRC32, BlockSize: size / 2}), errXZEnd},
		{"xz, other checksum of the header", newXZ(), flipped(xzGood, len(xzMagic)+1), errXZ},
		{"xz, two filters", newXZ(), mended(xzGood, 1, 1), errFilter},
		{"xz, a filter for x86", newXZ(), mended(xzGood, 2, 4), errFilter},
		{"xz, other contents", newXZ(), chunks(stored, strings.Repeat("x", size)), errXZSum},
		{"xz, one byte more", newXZ(), packXZ(t, append(bytes.Clone(good), 'x'), goodXZ), errTooLong},
		{"xz, a bomb", newXZ(), packXZ(t, bomb, goodXZ), errTooLong},
		{"xz, a chunk of each byte", newXZ(), chunks(append(crumbs, 0), string(good)), errChunks},
		{"xz, properties that LZMA2 has not", newXZ(), wide, errChunk},
		{"xz, a chunk of no kind", newXZ(), chunks(append([]byte{3}, stored[1:]...), string(good)), errChunk},
		{"xz, a chunk behind the end", newXZ(), chunks([]byte{1, 0xff, 0xff, 'x', 0, 0}, "x"), errChunk},
		{"xz, no last chunk", newXZ(), chunks(stored[:len(stored)-1], string(good)), errAny},
	} {
		dst := make([]byte, size, 2*size)
		n, err := c.unpack(dst, c.src)
		switch {
		case c.want == nil && (err != nil || !bytes.Equal(dst[:n], good)):
			t.Errorf("%s: got %d bytes, %v, want what went in", c.name, n, err)
		case c.want == errAny && err == nil, c.want != nil && c.want != errAny && !errors.Is(err, c.want):
			t.Errorf("%s: got %d bytes, %v, want the error %v", c.name, n, err, c.want)
		case len(bytes.Trim(dst[size:cap(dst)], "\x00")) > 0:
			t.Errorf("%s: there is something behind the end of what it may fill", c.name)
		}
	}
}

var errAny = errors.New("any error")

// unsized packs b with a window that is allowed, and without its size in the header.
func unsized(t testing.TB, b []byte) []byte {
	return pack(t, b, func(w io.Writer) (io.WriteCloser, error) {
		z, err := zstd.NewWriter(w, zstd.WithWindowSize(1<<20))
		if err == nil {
			err = z.Flush() // now it cannot know the size
		}
		return z, err
	})
}

// FuzzUnpack gives the libraries what they would see of a hostile block. The checksums
// of xz, which would keep nearly all of it from its library, are made good.
func FuzzUnpack(f *testing.F) {
	good := []byte(strings.Repeat("0123456789", 100))
	xzGood := packXZ(f, good, goodXZ)
	begin := len(xzMagic) + 4*(int(xzGood[len(xzMagic)])+1)
	f.Add(byte(0), packGzip(f, good))
	f.Add(byte(1), xzGood[begin:])
	f.Add(byte(2), packZstd(f, good))
	unpackers := []unpacker{newGzip(), newXZ(), newZstd()}
	f.Fuzz(func(t *testing.T, which byte, src []byte) {
		i := int(which) % len(unpackers)
		if i == 1 {
			src = chunks(src, "")
		}
		const size = 4 << 10
		dst := make([]byte, size, 2*size)
		if n, err := unpackers[i](dst, src); err == nil && n > size {
			t.Errorf("got %d bytes, want at most %d", n, size)
		}
		if len(bytes.Trim(dst[size:cap(dst)], "\x00")) > 0 {
			t.Error("there is something behind the end of what it may fill")
		}
	})
}
