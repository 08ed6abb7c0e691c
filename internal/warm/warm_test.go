package warm

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

func TestCodeIsWhatComesFirstAndCannotBeWritten(t *testing.T) {
	const (
		text   = "00400000-00870000 r-xp 00000000 fe:00 1234   /usr/bin/birthmark\n"
		consts = "00870000-00d20000 r--p 00470000 fe:00 1234   /usr/bin/birthmark\n"
		data   = "00d20000-00d81000 rw-p 00920000 fe:00 1234   /usr/bin/birthmark\n"
		heap   = "3f1519800000-3f1519c00000 rw-p 00000000 00:00 0 \n"
		vdso   = "7f0000000000-7f0000002000 r-xp 00000000 00:00 0   [vdso]\n"
	)
	for _, tc := range []struct {
		name, maps string
		begin, end uintptr
	}{
		{"code and constants", text + consts + data + heap + vdso, 0x400000, 0xd20000},
		{"code alone", text + data + heap + vdso, 0x400000, 0x870000},
		{"not what lies elsewhere", text + vdso, 0x400000, 0x870000},
		{"a file cut off in a line", text + consts[:30], 0x400000, 0xd20000},
		{"a file cut off in an address", text + consts[:12], 0x400000, 0x870000},
		{"data first", data + text, 0, 0},
		{"nothing", "", 0, 0},
		{"something else", "processor : 0\n", 0, 0},
		{"no number", "-00870000 r-xp 0\n", 0, 0},
	} {
		if begin, end := code([]byte(tc.maps)); begin != tc.begin || end != tc.end {
			t.Errorf("%s: %#x to %#x, want %#x to %#x", tc.name, begin, end, tc.begin, tc.end)
		}
	}
}

func TestChoiceIsTheWordInBrackets(t *testing.T) {
	for text, want := range map[string]string{
		"always [madvise] never\n": "madvise",
		"[always] madvise never\n": "always",
		"always [madvise":          "",
		"":                         "",
	} {
		if got := choice([]byte(text)); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// The test binary imports the package, so it is warm itself.
func TestAProcessUsesOneProcessorUnlessToldOtherwise(t *testing.T) {
	if os.Getenv("BIRTHMARK_TEST_WARM") != "" {
		os.Stdout.WriteString(strings.Repeat("P", runtime.GOMAXPROCS(0)))
		os.Exit(0)
	}
	for procs, want := range map[string]string{"": "P", "3": "PPP"} {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = []string{"BIRTHMARK_TEST_WARM=1", "GOMAXPROCS=" + procs}
		if out, err := cmd.Output(); err != nil || string(out) != want {
			t.Errorf("GOMAXPROCS=%q: %q, %v; want %q", procs, out, err, want)
		}
	}
}

// Whatever the kernel does with the advice, it has to find the mapping there.
func TestTheCodeOfThisProcessCanBeMappedAtOnce(t *testing.T) {
	begin, end := code(read("/proc/self/maps", make([]byte, 4096)))
	if end <= begin {
		t.Fatalf("code from %#x to %#x", begin, end)
	}
	_, _, err := syscall.Syscall(syscall.SYS_MADVISE, begin, end-begin, populateRead)
	if err != 0 && err != syscall.EINVAL { // EINVAL: before Linux 5.14
		t.Errorf("madvise of %#x to %#x: %v", begin, end, err)
	}
}

func TestTheHeapAsksForAHugePageWhereTheKernelWaitsForThat(t *testing.T) {
	waits := choice(read("/sys/kernel/mm/transparent_hugepage/enabled", make([]byte, 64))) == "madvise"
	if waits { // the runtime may have had room elsewhere when this process began
		growHuge()
	}
	smaps, err := os.ReadFile("/proc/self/smaps") // proc(5): hg is "huge page advised"
	if err != nil {
		t.Fatal(err)
	}
	if asked := strings.Contains(string(smaps), " hg "); asked != waits {
		t.Errorf("asked for: %t, want %t", asked, waits)
	}
}
