package main

import (
	"encoding/json"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"birthmark/internal/metrics/metricstest"
)

// patience is how long a script waits for what a device does.
const patience = 30 * time.Second

// An ear hears what devices say to the broker.
type ear struct {
	mu    sync.Mutex
	heard map[string]chan struct{} // by topic; closed at its first message
}

func (e *ear) topic(name string) chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.heard == nil {
		e.heard = map[string]chan struct{}{}
	}
	if e.heard[name] == nil {
		e.heard[name] = make(chan struct{})
	}
	return e.heard[name]
}

func (e *ear) hear(_, topic string, _ []byte) {
	c := e.topic(topic)
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-c:
	default:
		close(c)
	}
}

// await waits for the first message on a topic.
func (e *ear) await(ts *testscript.TestScript, _ bool, args []string) {
	select {
	case <-e.topic(args[0]):
	case <-time.After(patience):
		ts.Fatalf("nothing was heard on %s", args[0])
	}
}

// asked waits until the device has asked at $LATER.
func asked(ts *testscript.TestScript, _ bool, _ []string) {
	select {
	case <-ts.Value(laterKey).(*later).asked:
	case <-time.After(patience):
		ts.Fatalf("nobody asked")
	}
}

// prometheus holds a file, or stdout, against the text format.
func prometheus(ts *testscript.TestScript, _ bool, args []string) {
	values, err := metricstest.Parse([]byte(ts.ReadFile(args[0])))
	ts.Check(err)
	for _, series := range args[1:] {
		if _, ok := values[series]; !ok {
			ts.Fatalf("there is no %s", series)
		}
	}
}

// secrets writes what nobody else may see of a device, a line each, for grep: the
// password in a file, and the key files and the request in its state.
func secrets(ts *testscript.TestScript, _ bool, args []string) {
	var state struct {
		Owner, Asking struct{ Key, CSR string }
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &state))
	all := strings.Fields(ts.ReadFile(args[1]))
	for _, text := range []string{state.Owner.Key, state.Asking.Key, state.Asking.CSR} {
		for _, line := range strings.Fields(text) {
			if len(line) >= 40 { // of base64
				all = append(all, line[:40])
			}
		}
	}
	if len(all) < 3 {
		ts.Fatalf("only %d secrets in %s: is there a key?", len(all), args[0])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte(strings.Join(all, "\n")+"\n"), 0o600))
}
