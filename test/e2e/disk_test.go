package e2e

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"birthmark/internal/agent/agenttest"
	"birthmark/internal/swtpm/swtpmtest"
)

// TestFullDisk puts the state folder of a new device on a disk without room, in a
// mount namespace of its own. The agent must say so, not end, and get into service
// once there is room, without a restart.
func TestFullDisk(t *testing.T) {
	const script = `
		mount -t tmpfs -o size=256k,mode=700 tmpfs "$STATE"
		dd if=/dev/zero of="$STATE/ballast" bs=4k status=none 2>/dev/null || true
		"$AGENT" run --config "$CONFIG" &
		read -r # until the agent has said it
		rm "$STATE/ballast"
		wait`
	bench := agenttest.StartLab(t)
	env := bench.DeviceEnv(t, "dev-full", swtpmtest.Start(t).Address())
	state := stateFolder(env)
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(need(t, "unshare"), "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "bash", "-euc", script)
	cmd.Env = append(append(os.Environ(), env...), "STATE="+state, "AGENT="+birthmark, "CONFIG="+bench.ConfigFile())
	room, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 1)
	exited := make(chan struct{})
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // the agent goes with it
		<-exited
	})
	go func() {
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if strings.Contains(lines.Text(), "no room") {
				select {
				case said <- lines.Text():
				default:
				}
			}
		}
		_ = cmd.Wait() // it was killed
		close(exited)
	}()
	select {
	case line := <-said:
		if !strings.Contains(line, "make room on the disk") {
			t.Errorf("the agent said %q, want what to do", line)
		}
	case <-time.After(patience):
		t.Fatal("the agent does not say that the disk is full")
	}
	select {
	case <-bench.InService("dev-full"):
		t.Fatal("the device is in service without having remembered anything")
	default:
	}
	if _, err := room.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-bench.InService("dev-full"):
	case <-time.After(patience):
		t.Fatalf("not in service within %v of there being room", patience)
	}
}
