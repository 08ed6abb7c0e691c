package store

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// holdFolder names a folder that this program, started by a test, opens a store in
// until its input ends.
const holdFolder = "STORE_TEST_HOLD"

func TestMain(m *testing.M) {
	dir := os.Getenv(holdFolder)
	if dir == "" {
		os.Exit(m.Run())
	}
	s, err := Open[facts](dir)
	if err == nil {
		err = s.Update(set(9))
	}
	fmt.Println(err)
	bufio.NewReader(os.Stdin).ReadByte()
}

func TestTwoProcesses(t *testing.T) {
	dir := t.TempDir()
	other := exec.Command(os.Args[0])
	other.Env = append(os.Environ(), holdFolder+"="+dir)
	stop, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()
	defer stop.Close()
	if said, err := bufio.NewReader(out).ReadString('\n'); said != "<nil>\n" {
		t.Fatalf("the other process said %q (%v)", said, err)
	}
	if _, err := Open[facts](dir); !errors.Is(err, ErrLocked) {
		t.Errorf("Open beside another process: %v, want ErrLocked", err)
	}
	if v, held, err := Read[facts](dir); v.N != 9 || !held || err != nil {
		t.Errorf("Read beside another process: %d, held %v, %v, want 9, held", v.N, held, err)
	}
	// However it ends, the folder is free.
	if err := other.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = other.Wait() // killed, as it says
	if got := mustOpen(t, dir).Get().N; got != 9 {
		t.Errorf("after the other process: %d, want 9", got)
	}
}
