// Package pe reads programs for UEFI firmware, such as unified kernel images, as far as
// an updater has to understand them: what is in which section, which bytes a signature
// is about, and which signatures there are. It verifies none.
//
//	f, err := pe.Parse(file, size)
//	line, ok := f.Section(".cmdline")
//	digest, err := f.Digest()
//	for _, message := range f.Signatures() {
//
// The formats are Microsoft's "PE Format" and "Windows Authenticode Portable Executable
// Signature Format", as UEFI 2.10, 32.2.4, uses them. All numbers are little-endian:
//
//	DOS header | PE header | data directories | section table | sections | rest | signatures
//
// # Strictness
//
// Readers of PE differ where a file is odd, and there bytes hide that run and were not
// hashed. So what firmware and signers might see in two ways is refused here: sections
// that overlap, in the file or in memory; gaps between them; two of one name; sizes that
// are not exactly those of the format; anything behind the signatures. Of what is left
// every byte is signed but the three holes that [File.Digest] names.
//
// What is read: PE32+, an EFI application, for x86-64 or arm64. What is not looked at:
// relocations, the symbol table, times, subsystem versions.
//
// # Hostile bytes
//
// Memory is some ten KiB, and what the signatures take, however large the file: no count
// or size in it is believed before it was held against a limit and against the file.
//
// # Errors
//
// A [*FormatError] means that these bytes will never be read. Every other error is the
// reader's own.
package pe

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// What is read at the most.
const (
	SizeLimit = 256 << 20 // bytes of a file

	sectionLimit    = 96        // sections; what Windows loads
	headerLimit     = 64 << 10  // bytes of all headers, and where the PE header is
	directoryLimit  = 16        // data directories; the format's
	signaturesLimit = 128 << 10 // bytes of all signatures
	signatureLimit  = 8         // signatures
)

// The format's sizes in bytes, and its numbers.
const (
	dosSize       = 0x40
	coffSize      = 24  // of the PE header: "PE\0\0", and the COFF file header
	optionalSize  = 112 // of the optional header, without data directories
	directorySize = 8
	sectionSize   = 40

	securityEntry  = 4 // the data directory of the signatures
	efiApplication = 10
	pe32plus       = 0x20b
)

// A Machine is what a program runs on.
type Machine uint16

const (
	AMD64 Machine = 0x8664
	ARM64 Machine = 0xaa64
)

// A FormatError says why a file is not read: it is damaged, it is hostile, or it has
// what this package does not read.
type FormatError struct {
	// Code is a word that stays the same over releases:
	//
	//	magic      it is no PE32+
	//	kind       it is for another machine, or no EFI application
	//	limit      it has more of something than is read
	//	header     its headers contradict themselves or the file
	//	section    its sections do
	//	signature  its signatures are not as they have to be
	Code string
	Err  error // the reason, for people
}

func (e *FormatError) Error() string { return e.Err.Error() }

func (e *FormatError) Unwrap() error { return e.Err }

// bad returns a *FormatError, its reason formatted as by fmt.Errorf.
func bad(code, format string, args ...any) error {
	return &FormatError{Code: code, Err: fmt.Errorf(format, args...)}
}

// A File is a program whose headers and signatures were read.
type File struct {
	Machine Machine

	r          io.ReaderAt
	end        int64 // of what is signed
	sections   []section
	signatures [][]byte

	// Where the holes are in what is signed.
	checksumAt, securityAt int64
}

// A section is a span of the file that is loaded to an address.
type section struct {
	name         string
	at, raw      int64 // in the file, with padding
	address, mem int64 // in memory
}

// Parse reads the headers of the program in the first size bytes of r, and its
// signatures. It does not read what is in the sections.
func Parse(r io.ReaderAt, size int64) (*File, error) {
	if size > SizeLimit {
		return nil, bad("limit", "it has %d bytes, limit %d", size, SizeLimit)
	}
	f := &File{r: r, end: size}
	h, err := f.readHeaders()
	if err != nil {
		return nil, err
	}
	if err := f.readSignatures(h.security, size); err != nil {
		return nil, err
	}
	if err := f.readSections(h); err != nil {
		return nil, err
	}
	return f, nil
}

// headers are what the other parts stand on.
type headers struct {
	table    int64 // where the section table is
	count    int   // sections
	size     int64 // of all headers
	image    int64 // in memory
	security [2]uint32
}

func (f *File) readHeaders() (h headers, err error) {
	le := binary.LittleEndian
	dos, err := f.read(0, dosSize)
	if err != nil {
		return h, err
	}
	if string(dos[:2]) != "MZ" {
		return h, bad("magic", "it does not begin as a program")
	}
	at := int64(le.Uint32(dos[0x3c:]))
	if at < dosSize || at > headerLimit {
		return h, bad("header", "its PE header is at %d, want %d to %d", at, dosSize, headerLimit)
	}
	b, err := f.read(at, coffSize+optionalSize)
	if err != nil {
		return h, err
	}
	coff, optional := b[:coffSize], b[coffSize:]
	if string(coff[:4]) != "PE\x00\x00" || le.Uint16(optional) != pe32plus {
		return h, bad("magic", "it is no PE32+ program")
	}
	f.Machine = Machine(le.Uint16(coff[4:]))
	if f.Machine != AMD64 && f.Machine != ARM64 {
		return h, bad("kind", "it is for machine %#04x, want x86-64 or arm64", uint16(f.Machine))
	}
	if s := le.Uint16(optional[68:]); s != efiApplication {
		return h, bad("kind", "its subsystem is %d, want an EFI application, %d", s, efiApplication)
	}
	if h.count = int(le.Uint16(coff[6:])); h.count == 0 || h.count > sectionLimit {
		return h, bad("limit", "it has %d sections, want 1 to %d", h.count, sectionLimit)
	}
	directories := le.Uint32(optional[108:])
	if directories <= securityEntry || directories > directoryLimit {
		return h, bad("header", "it has %d data directories, want %d to %d", directories, securityEntry+1, directoryLimit)
	}
	if got, want := int64(le.Uint16(coff[20:])), optionalSize+directorySize*int64(directories); got != want {
		return h, bad("header", "its optional header has %d bytes, with %d data directories want %d", got, directories, want)
	}
	f.checksumAt = at + coffSize + 64
	f.securityAt = at + coffSize + optionalSize + securityEntry*directorySize
	entry, err := f.read(f.securityAt, directorySize)
	if err != nil {
		return h, err
	}
	h.security = [2]uint32{le.Uint32(entry), le.Uint32(entry[4:])}
	h.table = at + coffSize + optionalSize + directorySize*int64(directories)
	h.image, h.size = int64(le.Uint32(optional[56:])), int64(le.Uint32(optional[60:]))
	if end := h.table + int64(h.count)*sectionSize; h.size < end || h.size > headerLimit || h.size > f.end {
		return h, bad("header", "its headers have %d bytes, they need %d", h.size, end)
	}
	return h, nil
}

// readSections reads the section table. What it points to has to follow the headers
// without a gap, in any order.
func (f *File) readSections(h headers) error {
	le := binary.LittleEndian
	b, err := f.read(h.table, h.count*sectionSize)
	if err != nil {
		return err
	}
	for ; len(b) > 0; b = b[sectionSize:] {
		name, err := sectionName(b[:8])
		if err != nil {
			return err
		}
		s := section{name: name,
			mem: int64(le.Uint32(b[8:])), address: int64(le.Uint32(b[12:])),
			raw: int64(le.Uint32(b[16:])), at: int64(le.Uint32(b[20:]))}
		switch {
		case slices.ContainsFunc(f.sections, func(o section) bool { return o.name == name }):
			return bad("section", "section %s is there twice", name)
		case s.mem == 0:
			return bad("section", "section %s takes no memory", name)
		}
		f.sections = append(f.sections, s)
	}
	inFile := slices.SortedFunc(slices.Values(f.sections), func(a, b section) int { return cmp.Compare(a.at, b.at) })
	end := h.size
	for _, s := range inFile {
		if s.raw == 0 {
			continue // it is zeros in memory, wherever it points to
		}
		if s.at != end {
			return bad("section", "section %s begins at %d, and what is before it ends at %d", s.name, s.at, end)
		}
		end += s.raw
	}
	if end > f.end {
		return bad("section", "its sections end at %d, and it at %d", end, f.end)
	}
	inMemory := slices.SortedFunc(slices.Values(f.sections), func(a, b section) int { return cmp.Compare(a.address, b.address) })
	end = h.size // the headers are loaded too
	for _, s := range inMemory {
		if s.address < end {
			return bad("section", "section %s is loaded to %#x, and what is before it ends at %#x", s.name, s.address, end)
		}
		end = s.address + s.mem
	}
	if end > h.image {
		return bad("section", "its sections end at %#x in memory, and it at %#x", end, h.image)
	}
	return nil
}

func sectionName(field []byte) (string, error) {
	n := len(field)
	for n > 0 && field[n-1] == 0 {
		n--
	}
	for _, c := range field[:n] {
		if c <= ' ' || c > '~' {
			return "", bad("section", "a section has the name %q", field)
		}
	}
	if n == 0 {
		return "", bad("section", "a section has no name")
	}
	return string(field[:n]), nil
}

// Section is what is in the section of a name, without the padding in the file. More
// of it may be in memory, as zeros. It reports whether there is such a section.
func (f *File) Section(name string) (*io.SectionReader, bool) {
	for _, s := range f.sections {
		if s.name == name {
			return io.NewSectionReader(f.r, s.at, min(s.raw, s.mem)), true
		}
	}
	return nil, false
}

// Sections are the names of all sections, in the order of the table.
func (f *File) Sections() []string {
	names := make([]string, len(f.sections))
	for i, s := range f.sections {
		names[i] = s.name
	}
	return names
}

// read reads n bytes, a number that was held against a limit.
func (f *File) read(at int64, n int) ([]byte, error) {
	if at+int64(n) > f.end {
		return nil, bad("header", "it ends within its headers")
	}
	b := make([]byte, n)
	if n, err := f.r.ReadAt(b, at); n < len(b) {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF // it was said to be longer
		}
		return nil, err
	}
	return b, nil
}
