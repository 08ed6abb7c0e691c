// Package warm makes the start of a process cheap. A main package imports it for its
// effect:
//
//	import _ "birthmark/internal/warm"
//
// The first use of a page of memory is a fault: a trap into the kernel and, in many
// virtual machines, one into the host as well. A start of a few milliseconds is mostly
// that. There are fewer of them with
//
//	code, constants   mapped at once: nearly all are needed at any start, and a cold
//	                  file is read from its disk in one go
//	heap              in a huge page, where the kernel gives one to those who ask; most
//	                  kernels give one unasked
//	one processor     no thread is made and woken for what one can do after another;
//	                  GOMAXPROCS in the environment says otherwise
//
// It does so before most of the program is initialised, since Go goes by the order of
// import paths and this package needs nothing but syscall. What the kernel does not
// know, or refuses, stays as it is. docs/decisions/005-a-start-without-faults.md has
// the figures.
package warm

import (
	"runtime"
	"syscall"
	"unsafe"
)

const (
	populateRead = 22       // MADV_POPULATE_READ, Linux 5.14; syscall has no name for it
	hugePage     = 2 << 20  // bytes; where they have another size, the kernel refuses this
	large        = 64 << 10 // bytes of an object that the heap gives pages of its own
)

func init() {
	if n, _ := syscall.Getenv("GOMAXPROCS"); n == "" {
		runtime.GOMAXPROCS(1)
	}
	var text [4096]byte // lines enough
	if begin, end := code(read("/proc/self/maps", text[:])); begin < end {
		advise(begin, end-begin, populateRead)
	}
	if choice(read("/sys/kernel/mm/transparent_hugepage/enabled", text[:])) == "madvise" {
		growHuge()
	}
}

// growHuge lets the heap go on in a huge page. One is given at the first touch of the
// whole of it, so what is left of the memory before the next one is passed over, by an
// object that is never touched and soon collected. Where the runtime has room elsewhere,
// which is rare, nothing is done.
func growHuge() {
	at := allocate(large)
	for range 2 { // the first object may have found a gap behind the others
		next := at&^(hugePage-1) + hugePage
		size := next - at + large
		if at = allocate(size); at < next && at+size > next {
			advise(next, hugePage, syscall.MADV_HUGEPAGE)
			return
		}
		at += size
	}
}

// allocate is where the heap puts an object of that size.
//
//go:noinline
func allocate(size uintptr) uintptr {
	return uintptr(unsafe.Pointer(unsafe.SliceData(make([]byte, size))))
}

// advise is madvise(2). Its errors mean that things stay as they were.
func advise(at, size, advice uintptr) {
	_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, at, size, advice)
}

// read is the beginning of a file, as much as fits.
func read(path string, text []byte) []byte {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer syscall.Close(fd)
	n, err := syscall.Read(fd, text)
	if err != nil {
		return nil
	}
	return text[:n]
}

// code is where the program's code and constants are, by /proc/self/maps (proc(5)): the
// mappings that come first and cannot be written to, without a gap. A file that is not
// understood has none.
//
//	00400000-00870000 r-xp 00000000 fe:00 1234   /usr/bin/birthmark
//	00870000-00d20000 r--p 00470000 fe:00 1234   /usr/bin/birthmark
//	00d20000-00d81000 rw-p 00920000 fe:00 1234   /usr/bin/birthmark
func code(maps []byte) (begin, end uintptr) {
	for {
		from, rest, ok := number(maps, '-')
		to, rest, ok2 := number(rest, ' ')
		if !ok || !ok2 || len(rest) < 2 || rest[0] != 'r' || rest[1] == 'w' || (end != 0 && from != end) {
			return begin, end
		}
		if end == 0 {
			begin = from
		}
		end = to
		for len(rest) > 0 && rest[0] != '\n' {
			rest = rest[1:]
		}
		if len(rest) == 0 {
			return begin, end
		}
		maps = rest[1:]
	}
}

// number reads a hexadecimal number and the character behind it. Not with strconv, which
// would be initialised before this.
func number(text []byte, behind byte) (n uintptr, rest []byte, ok bool) {
	for i, c := range text {
		switch {
		case '0' <= c && c <= '9':
			n = n<<4 | uintptr(c-'0')
		case 'a' <= c && c <= 'f':
			n = n<<4 | uintptr(c-'a'+10)
		default:
			return n, text[i+1:], i > 0 && c == behind
		}
	}
	return 0, nil, false
}

// choice is the word in brackets: "always [madvise] never".
func choice(text []byte) string {
	for i, c := range text {
		if c != '[' {
			continue
		}
		for j, c := range text[i:] {
			if c == ']' {
				return string(text[i+1 : i+j])
			}
		}
	}
	return ""
}
