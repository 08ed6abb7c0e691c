package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"
)

// Limits of a file system that is read.
const (
	clustersLimit = 1 << 20
	fileLimit     = 64 << 20 // bytes
	folderLimit   = 1 << 20  // bytes
)

// A volume is a FAT32 file system ("FAT: General Overview of On-Disk Format", Microsoft,
// 1.03), as it is: chains of clusters are followed as far as they go.
type volume struct {
	r       io.ReaderAt
	fat     []byte // the first of them, which firmware reads
	data    int64  // where cluster 2 begins
	cluster int64  // bytes
	root    uint32
}

func open(r io.ReaderAt) (*volume, error) {
	head := make([]byte, 512)
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, err
	}
	short := func(at int) int64 { return int64(binary.LittleEndian.Uint16(head[at:])) }
	long := func(at int) int64 { return int64(binary.LittleEndian.Uint32(head[at:])) }
	sector, perCluster, reserved, fats, fatSize := short(11), int64(head[13]), short(14), int64(head[16]), long(36)
	if head[510] != 0x55 || head[511] != 0xaa || sector != 512 || perCluster == 0 || fats == 0 || short(17) != 0 || fatSize == 0 ||
		fatSize*sector > 4*clustersLimit {
		return nil, errors.New("it is no FAT32")
	}
	v := &volume{r: r, fat: make([]byte, fatSize*sector), data: (reserved + fats*fatSize) * sector, cluster: perCluster * sector, root: uint32(long(44))}
	_, err := r.ReadAt(v.fat, reserved*sector)
	return v, err
}

// next is the cluster behind another; false at the end of a chain, be it marked or not.
func (v *volume) next(cluster uint32) (uint32, bool) {
	at := 4 * int64(cluster)
	if at+4 > int64(len(v.fat)) {
		return 0, false
	}
	n := binary.LittleEndian.Uint32(v.fat[at:]) & 0x0fffffff
	return n, n >= 2 && n < 0x0ffffff7 && 4*int64(n) < int64(len(v.fat))
}

// chain reads a chain from its first cluster on, up to some bytes.
func (v *volume) chain(first uint32, limit int64) ([]byte, error) {
	if first < 2 || 4*int64(first) >= int64(len(v.fat)) {
		return nil, fmt.Errorf("something begins in cluster %d", first)
	}
	var text []byte
	for c, more := first, true; more && int64(len(text)) < limit; {
		// What lies in a row is read at once.
		n, from := int64(1), c
		for c, more = v.next(c); more && c == from+uint32(n) && int64(len(text))+n*v.cluster < limit; c, more = v.next(c) {
			n++
		}
		part := make([]byte, n*v.cluster)
		if _, err := v.r.ReadAt(part, v.data+(int64(from)-2)*v.cluster); err != nil {
			return nil, err
		}
		text = append(text, part...)
	}
	return text, nil
}

// A file is an entry of a folder.
type file struct {
	name   string
	folder bool
	first  uint32 // cluster
	size   int64
}

// read is what there is of a file.
func (v *volume) read(f file) []byte {
	text, err := v.chain(f.first, min(f.size, fileLimit))
	if err != nil {
		return nil
	}
	return text[:min(int64(len(text)), f.size)]
}

// folder lists a folder, by its path. Case does not matter.
func (v *volume) folder(path ...string) ([]file, error) {
	files, err := v.list(v.root)
	for _, name := range path {
		found := file{}
		for _, f := range files {
			if f.folder && strings.EqualFold(f.name, name) {
				found = f
			}
		}
		if err == nil && !found.folder {
			err = fmt.Errorf("there is no folder %s", name)
		}
		if err != nil {
			return nil, err
		}
		files, err = v.list(found.first)
	}
	return files, err
}

const (
	entrySize = 32

	isFolder, isVolume, isLong = 0x10, 0x08, 0x0f // attributes
)

func (v *volume) list(first uint32) (files []file, err error) {
	text, err := v.chain(first, folderLimit)
	if err != nil {
		return nil, err
	}
	var long []uint16 // the name that belongs to the next entry, so far
	var sum byte      // of the short name that it has to have
	for ; len(text) >= entrySize && text[0] != 0; text = text[entrySize:] {
		e := text[:entrySize]
		switch {
		case e[0] == 0xe5: // removed
			long = nil
		case e[11] == isLong:
			if e[0]&0x40 != 0 { // the last part comes first
				long, sum = nil, e[13]
			}
			long = append(letters(e), long...)
		case e[11]&isVolume != 0:
			long = nil
		default:
			f := file{name: shortName(e), folder: e[11]&isFolder != 0, size: int64(binary.LittleEndian.Uint32(e[28:]))}
			f.first = uint32(binary.LittleEndian.Uint16(e[20:]))<<16 | uint32(binary.LittleEndian.Uint16(e[26:]))
			if len(long) > 0 && sum == checksum(e[:11]) {
				f.name = string(utf16.Decode(long))
			}
			long = nil
			files = append(files, f)
		}
	}
	return files, nil
}

// letters are those of a part of a long name.
func letters(e []byte) (part []uint16) {
	for _, span := range [][2]int{{1, 11}, {14, 26}, {28, 32}} {
		for at := span[0]; at < span[1]; at += 2 {
			c := binary.LittleEndian.Uint16(e[at:])
			if c == 0 {
				return part
			}
			part = append(part, c)
		}
	}
	return part
}

// checksum is that of a short name, which the parts of its long one bear.
func checksum(short []byte) (sum byte) {
	for _, c := range short {
		sum = sum>>1 | sum<<7
		sum += c
	}
	return sum
}

func shortName(e []byte) string {
	name, extension := strings.TrimRight(string(e[:8]), " "), strings.TrimRight(string(e[8:11]), " ")
	if extension != "" {
		name += "." + extension
	}
	return name
}
