package sysroot

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// What is asked for below the folder, and nowhere else, is what the variable says when the
// program starts.
func TestTheVariableMovesAllOfTheDevice(t *testing.T) {
	if os.Getenv("TELL") != "" {
		fmt.Println("told", Dir(), Path("/proc/uptime"), Device("/dev/tpmrm0"))
		return
	}
	for folder, want := range map[string]string{
		"":           "told / /proc/uptime /dev/tpmrm0",
		"/":          "told / /proc/uptime /dev/tpmrm0",
		"/tmp/board": "told /tmp/board /tmp/board/proc/uptime unix:/tmp/board/dev/tpmrm0",
	} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), "TELL=1", Variable+"="+folder)
		said, err := cmd.CombinedOutput()
		if got, _, _ := strings.Cut(string(said), "\n"); err != nil || got != want {
			t.Errorf("%s=%q: got %q, %v, want %q", Variable, folder, said, err, want)
		}
	}
}
