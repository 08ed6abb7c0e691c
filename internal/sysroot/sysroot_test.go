package sysroot

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Whoever asks for the place of a file or a device is told one below the folder that the
// variable names when the program starts; a folder without an absolute path is refused.
func TestTheVariableMovesFilesAndDevices(t *testing.T) {
	if os.Getenv("TELL") != "" {
		if err := Check(); err != nil {
			fmt.Println("refused:", err)
			return
		}
		fmt.Println("told", Dir(), Path("/proc/uptime"), Device("/dev/tpmrm0"))
		return
	}
	for folder, want := range map[string]string{
		"":           "told / /proc/uptime /dev/tpmrm0",
		"/":          "told / /proc/uptime /dev/tpmrm0",
		"/tmp/board": "told /tmp/board /tmp/board/proc/uptime unix:/tmp/board/dev/tpmrm0",
		"board":      `refused: BIRTHMARK_ROOT is "board", which is no absolute path`,
		".":          `refused: BIRTHMARK_ROOT is ".", which is no absolute path`,
	} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), "TELL=1", Variable+"="+folder)
		said, err := cmd.CombinedOutput()
		if got, _, _ := strings.Cut(string(said), "\n"); err != nil || got != want {
			t.Errorf("%s=%q: got %q, %v, want %q", Variable, folder, said, err, want)
		}
	}
}
