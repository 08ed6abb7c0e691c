package agent_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"birthmark/internal/agent/agenttest"
	"birthmark/internal/promises"
)

// TestEST keeps the rows of docs/est.md that are about what a device remembers.
func TestEST(t *testing.T) {
	promises.Keep(t, "est.md", map[int]func(*testing.T){
		20: proofAfterALostAnswer,
		33: func(t *testing.T) { laterOverARestart(t, nil) },
		38: ownersTemplate,
		57: keyAndCertificateTogether,
	})
}

// keyAndCertificateTogether cuts the power on both sides of the first write of the
// state file that follows each answer of a CA.
func keyAndCertificateTogether(t *testing.T) {
	bench := agenttest.StartLab(t)
	whole := &life{t: t, bench: bench, id: "dev-whole", cutAt: -1}
	whole.live()
	for _, answer := range []string{"after est: ask the maker", "after est: ask the owner"} {
		for _, side := range []string{"before", "after"} {
			answered := slices.Index(whole.seen, answer)
			written := slices.IndexFunc(whole.seen[max(answered, 0):], func(name string) bool { return name == side+" store: write" })
			if answered < 0 || written < 0 {
				t.Fatalf("no write follows %q in %q", answer, whole.seen)
			}
			w := &life{t: t, bench: bench, id: fmt.Sprintf("dev-%s-%s", side, answer[strings.LastIndexByte(answer, ' ')+1:]), cutAt: answered + written}
			w.live() // which holds what is remembered against the TPM, at every boot
			if w.where != side+" store: write" {
				t.Errorf("the power was cut %q, want %s the write that follows %q", w.where, side, answer)
			}
		}
	}
}
