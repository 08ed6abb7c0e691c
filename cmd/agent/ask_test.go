package main

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"birthmark/internal/agent/api"
	"birthmark/internal/config"
)

// TestTheDoctorDoesNotWaitForAnAgentThatHangs puts somebody at an agent's doors who takes
// every connection and says nothing. The device is examined without him, and that is said.
func TestTheDoctorDoesNotWaitForAnAgentThatHangs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, door := range []string{api.Status, api.Control} {
		l, err := net.Listen("unix", filepath.Join(dir, door))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
	conf, err := config.Load(config.Options{Env: []string{
		"BIRTHMARK_DOORS__FOLDER=" + dir,
		"BIRTHMARK_DEVICE__STATE=" + filepath.Join(dir, "state"),
		"BIRTHMARK_TPM__ADDRESS=unix:" + filepath.Join(dir, "no-tpm"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	var notes strings.Builder
	start := time.Now()
	r := examine(t.Context(), conf, &notes)
	if took := time.Since(start); took > statusPatience+doctorPatience/4 {
		t.Errorf("it took %v, want little more than %v: there is nothing else to wait for", took, statusPatience)
	}
	if r.Agent || len(r.Checks) == 0 {
		t.Errorf("examined by the agent %t, %d checks, want a report without it", r.Agent, len(r.Checks))
	}
	if said := notes.String(); strings.Count(said, "\n") != 1 || !strings.Contains(said, "the agent does not answer within 3s") {
		t.Errorf("it said %q, want one line about the agent", said)
	}
}
