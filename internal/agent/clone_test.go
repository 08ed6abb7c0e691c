package agent_test

import (
	"bytes"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"birthmark/internal/agent/agenttest"
	"birthmark/internal/config"
)

// TestSuspectedCloneIsTold has somebody who ends each session of a device, as a
// broker does when another client comes with the same id.
func TestSuspectedCloneIsTold(t *testing.T) {
	p := newPatient(t, agenttest.StartLab(t), "dev-clone")
	p.cfg.Broker.ReconnectWindow = config.Duration(time.Millisecond)
	between, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer between.Close()
	broker, err := url.Parse(p.cfg.Broker.URLs[0])
	if err != nil {
		t.Fatal(err)
	}
	p.cfg.Broker.URLs[0] = broker.Scheme + "://" + between.Addr().String()
	connections := make(chan net.Conn, 10)
	go func() {
		for {
			c, err := between.Accept()
			if err != nil {
				return
			}
			connections <- c
			go forward(c, broker.Host)
		}
	}()
	p.start()
	<-connections // the knock, which the device ends itself
	for range 3 {
		p.log.await(t, "session with the broker")
		(<-connections).Close()
	}
	p.log.await(t, "connection to the broker lost")
	p.stop()
	for _, name := range []string{"audit.log", "outbox/outbox.log"} {
		text, err := os.ReadFile(filepath.Join(p.cfg.Device.State, name))
		if n := bytes.Count(text, []byte("clone-suspected")); err != nil || n == 0 {
			t.Errorf("%s does not tell of a suspected clone: %v\n%s", name, err, text)
		}
	}
}
