package agent_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"birthmark/internal/agent"
	"birthmark/internal/agent/agenttest"
	"birthmark/internal/config"
	"birthmark/internal/swtpm"
	"birthmark/internal/swtpm/swtpmtest"
)

// cutPower is what a power cut panics with.
type cutPower string

// bootLimit is more than any boot of TestLife needs; reaching it is a failure.
const bootLimit = 30 * time.Second

// TestLife takes a device from blank to its first telemetry, against a real TPM,
// EST server and broker, once for every write of the state file and every
// outside effect, cutting the power of device and TPM there. Whatever happens,
// the device gets into service, with one IDevID certificate and one LDevID
// certificate from its CAs, and what its state claims is true at every boot.
func TestLife(t *testing.T) {
	bench := agenttest.StartLab(t)
	cuts := map[string]int{}
	for n := 0; ; n++ {
		w := &life{t: t, bench: bench, id: fmt.Sprintf("dev-%d", n), cutAt: n}
		w.live()
		if w.where == "" {
			break
		}
		cuts[w.where]++
	}
	total := 0
	for _, where := range slices.Sorted(maps.Keys(cuts)) {
		t.Logf("%4d × %s", cuts[where], where)
		total += cuts[where]
	}
	t.Logf("%d power cuts", total)
	for _, effect := range agent.Effects {
		for _, side := range []string{"before ", "after "} {
			if cuts[side+effect] == 0 {
				t.Errorf("the power was never cut %s%s", side, effect)
			}
		}
	}
}

// A life is one device's, with one power cut in it.
type life struct {
	t     *testing.T
	bench *agenttest.Lab
	id    string
	cutAt int    // which effect loses its power
	cutOn string // or by its name, once

	n     int      // effects so far
	seen  []string // their names
	where string   // what was cut; "" when life was over before
	tpm   *swtpm.TPM
	cfg   *config.Config
}

func (w *life) live() {
	w.tpm = swtpmtest.Start(w.t)
	w.cfg = w.bench.Device(w.t, w.id, w.tpm.Address())
	inService := w.bench.InService(w.id)
	for boot := 0; !w.boot(inService); boot++ {
		if boot == 3 {
			w.t.Fatalf("%s: not in service after %d boots, cut %q", w.id, boot, w.where)
		}
		w.tpm.Kill()
		restarted, err := swtpm.Start(w.t.Context(), w.tpm.Dir())
		if err != nil {
			w.t.Fatal(err)
		}
		w.tpm = restarted
		agenttest.CheckState(w.t, w.cfg.Device.State, w.tpm.Address())
	}
	agenttest.CheckState(w.t, w.cfg.Device.State, w.tpm.Address())
	agenttest.CheckIssued(w.t, filepath.Join(w.bench.Dir, "maker"), w.id)
	agenttest.CheckIssued(w.t, filepath.Join(w.bench.Dir, "owner"), w.id)
	agenttest.CheckAudit(w.t, w.cfg.Device.State)
	w.tpm.Kill()
	if w.t.Failed() {
		w.t.FailNow()
	}
}

// boot runs the agent until the broker has its telemetry, or the power is cut.
func (w *life) boot(inService <-chan struct{}) (done bool) {
	a, err := agent.New(w.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		w.t.Fatalf("%s, cut %q: %v", w.id, w.where, err)
	}
	a.SetCut(w.effect)
	defer func() {
		switch r := recover().(type) {
		case nil:
		case cutPower:
			a.Die()
		default:
			panic(r)
		}
	}()
	ctx, cancel := context.WithTimeout(w.t.Context(), bootLimit)
	defer cancel()
	go func() {
		select {
		case <-inService:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := a.Run(ctx); err != nil {
		w.t.Fatalf("%s, cut %q: %v", w.id, w.where, err)
	}
	if ctx.Err() == context.DeadlineExceeded {
		w.t.Fatalf("%s, cut %q: no telemetry within %v", w.id, w.where, bootLimit)
	}
	if err := a.Close(); err != nil {
		w.t.Fatalf("%s, cut %q: %v", w.id, w.where, err)
	}
	return true
}

func (w *life) effect(name string) {
	w.seen = append(w.seen, name)
	if w.n++; w.n-1 == w.cutAt || w.where == "" && name == w.cutOn {
		w.where = name
		panic(cutPower(name))
	}
}
