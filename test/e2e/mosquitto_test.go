package e2e

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"birthmark/internal/agent/agenttest"
	"birthmark/internal/lab"
	"birthmark/internal/swtpm/swtpmtest"
)

// TestMosquitto takes a device from blank to telemetry with Debian's mosquitto as
// its owner's broker, configured by birthmark-lab; an operator's mosquitto_sub
// hears it. Then the broker is killed, and the device comes back by itself.
func TestMosquitto(t *testing.T) {
	bench := agenttest.StartLab(t, func(o *lab.Options) { o.NoBroker = true })
	must(t, nil, birthmarkLab, "mosquitto", "--dir", bench.Dir)
	serve := func() *process {
		p := start(t, nil, need(t, "mosquitto"), "-c", filepath.Join(bench.Dir, "mosquitto", "mosquitto.conf"))
		p.awaitPort(t, brokerAddress(bench))
		return p
	}
	broker := serve()
	first := subscribe(t, bench, "birthmark/v1/d/+/#")

	const id = "dev-mosquitto"
	env := bench.DeviceEnv(t, id, swtpmtest.Start(t).Address())
	agent := start(t, append(env, "BIRTHMARK_BROKER__RECONNECT_WINDOW=1s"), birthmark, "run", "--config", bench.ConfigFile())
	heard := first.until(t, "/tele/system")
	for _, topic := range []string{"birthmark/v1/d/" + id + "/state", "birthmark/v1/d/" + id + "/evt/enrolled"} {
		if heard[topic] == nil {
			t.Errorf("the operator heard nothing on %s before the first telemetry", topic)
		}
	}
	if s := heard["birthmark/v1/d/"+id+"/state"]; s["online"] != true {
		t.Errorf("the device's state says %v, want online", s)
	}

	first.stop()
	broker.kill()
	serve()
	again := subscribe(t, bench, "birthmark/v1/d/"+id+"/state")
	for {
		state := again.until(t, "/state")["birthmark/v1/d/"+id+"/state"]
		if state["online"] == true && state["session"].(float64) > 1 {
			break
		}
	}
	select {
	case <-agent.exited:
		t.Errorf("the agent ended by itself:\n%s", &agent.stderr)
	default:
	}
}

func brokerAddress(bench *agenttest.Lab) string {
	return strings.TrimPrefix(bench.BrokerURL(), "mqtts://")
}

// A subscription is an operator's mosquitto_sub.
type subscription struct {
	lines chan string
	stop  func() // mosquitto lets in one session a name
}

func subscribe(t *testing.T, bench *agenttest.Lab, filter string) *subscription {
	t.Helper()
	operator := func(name string) string { return filepath.Join(bench.Dir, "operator", name) }
	host, port, _ := strings.Cut(brokerAddress(bench), ":")
	cmd := exec.Command(need(t, "mosquitto_sub"), "-h", host, "-p", port, "-t", filter, "-q", "1", "-v", "-i", "operator",
		"--cafile", operator("ca.pem"), "--cert", operator("cert.pem"), "--key", operator("key.pem"))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &subscription{lines: make(chan string, 1000)}
	done := make(chan struct{})
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			s.lines <- lines.Text()
		}
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait() // it was killed
		close(done)
	}()
	s.stop = func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		<-done
	}
	t.Cleanup(s.stop)
	return s
}

// until is the last message on every topic up to the first that ends in suffix.
func (s *subscription) until(t *testing.T, suffix string) map[string]map[string]any {
	t.Helper()
	heard := map[string]map[string]any{}
	late := time.After(patience)
	for {
		select {
		case line := <-s.lines:
			topic, payload, _ := strings.Cut(line, " ")
			var m map[string]any
			if err := json.Unmarshal([]byte(payload), &m); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			heard[topic] = m
			if strings.HasSuffix(topic, suffix) {
				return heard
			}
		case <-late:
			t.Fatalf("nothing on %s within %v; heard %v", suffix, patience, heard)
		}
	}
}
