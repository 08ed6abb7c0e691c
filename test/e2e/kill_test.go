package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"birthmark/internal/agent/agenttest"
	"birthmark/internal/swtpm/swtpmtest"
	"birthmark/pkg/lifecycle"
)

const (
	killsDefault   = 200 // KILLS in the environment asks for another number
	killsPerDevice = 8   // then the device may live, and the next one is born
	killsInService = 2   // most of a life; what comes before it is of more interest
)

// TestKill kills the real agent with kill -9 at random moments between its start
// and its service, and starts it again. There must never be a second IDevID
// certificate, never a lost certificate, never half a state.
func TestKill(t *testing.T) {
	kills := killsDefault
	if n, err := strconv.Atoi(os.Getenv("KILLS")); err == nil {
		kills = n
	}
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	bench := agenttest.StartLab(t)
	span := measureLife(t, bench)
	t.Logf("blank to telemetry without a kill: %v", span.Round(time.Millisecond))
	states := map[lifecycle.State]int{}
	devices := 0
	for done := 0; done < kills; devices++ {
		id := fmt.Sprintf("kill-%d", devices)
		tpm := swtpmtest.Start(t)
		env := bench.DeviceEnv(t, id, tpm.Address())
		state := stateFolder(env)
		for n, inService := 0, 0; n < killsPerDevice && inService < killsInService; n++ {
			agent := start(t, env, birthmark, "run", "--config", bench.ConfigFile())
			select {
			case <-time.After(time.Duration(random.Int64N(int64(span)))):
			case <-agent.exited:
				t.Fatalf("the agent of %s ended by itself:\n%s", id, &agent.stderr)
			}
			agent.kill()
			done++
			s := agenttest.CheckState(t, state, tpm.Address()).State
			states[s]++
			if s == lifecycle.Operational {
				inService++
			}
		}
		liveOn(t, bench, env, id)
		if s := agenttest.CheckState(t, state, tpm.Address()).State; s != lifecycle.Operational {
			t.Errorf("%s: got state %s at the end, want operational", id, s)
		}
		agenttest.CheckIssued(t, filepath.Join(bench.Dir, "maker"), id)
		agenttest.CheckIssued(t, filepath.Join(bench.Dir, "owner"), id)
		agenttest.CheckAudit(t, state)
		tpm.Kill()
	}
	t.Logf("%d devices, killed in these states: %v", devices, states)
	for _, s := range []lifecycle.State{lifecycle.Blank, lifecycle.Born, lifecycle.Operational} {
		if kills >= killsDefault && states[s] == 0 {
			t.Errorf("no device was killed in state %s: the kills do not cover a life", s)
		}
	}
}

// measureLife is the time from start to telemetry of a device that nobody kills.
func measureLife(t *testing.T, bench *agenttest.Lab) time.Duration {
	t.Helper()
	tpm := swtpmtest.Start(t)
	defer tpm.Kill()
	begin := time.Now()
	liveOn(t, bench, bench.DeviceEnv(t, "kill-none", tpm.Address()), "kill-none")
	return time.Since(begin)
}

// liveOn lets the agent run until the broker has heard of the device.
func liveOn(t *testing.T, bench *agenttest.Lab, env []string, id string) {
	t.Helper()
	live(t, birthmark, bench, env, id)
}

// live is liveOn for an agent that was built in another way.
func live(t *testing.T, program string, bench *agenttest.Lab, env []string, id string) {
	t.Helper()
	agent := start(t, env, program, "run", "--config", bench.ConfigFile())
	select {
	case <-bench.InService(id):
	case <-agent.exited:
		t.Fatalf("the agent of %s ended by itself:\n%s", id, &agent.stderr)
	case <-time.After(patience):
		t.Fatalf("no telemetry of %s within %v:\n%s", id, patience, &agent.stderr)
	}
	agent.kill()
}

func stateFolder(env []string) string {
	for _, e := range env {
		const key = "BIRTHMARK_DEVICE__STATE="
		if len(e) > len(key) && e[:len(key)] == key {
			return e[len(key):]
		}
	}
	return ""
}
