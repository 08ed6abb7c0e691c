package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"birthmark/internal/agent"
	"birthmark/internal/agent/api"
	"birthmark/internal/agent/update"
)

// checks makes a folder of scripts.
func checks(t *testing.T, scripts map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, script := range scripts {
		mode := os.FileMode(0o755)
		if strings.HasPrefix(script, "not executable") {
			mode = 0o644
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestChecksOfHealth(t *testing.T) {
	trace := filepath.Join(t.TempDir(), "trace")
	mark := func(name string) string { return fmt.Sprintf("echo -n %s >> %s", name, trace) }
	for _, c := range []struct {
		name    string
		scripts map[string]string
		ran     string
		want    string // in the error; "" for a good boot
	}{
		{"in the order of their names", map[string]string{"20-b": mark("b"), "10-a": mark("a"), "30-c": mark("c")}, "abc", ""},
		{"the first bad one is the reason, and the last to run", map[string]string{"10-a": mark("a"), "20-b": mark("b") + "; echo the modem; echo is gone >&2; exit 3", "30-c": mark("c")}, "ab",
			"check 20-b: exit status 3: the modem is gone"},
		{"what is no check is passed over", map[string]string{".a": "exit 1", "b~": "exit 1", "c": "not executable", "d": mark("d")}, "d", ""},
		{"one that is killed", map[string]string{"a": "kill -9 $$"}, "", "check a: signal: killed"},
		{"one that does nothing", map[string]string{"a": ""}, "", ""},
		{"output is cut, and does nothing to a terminal", map[string]string{"a": "printf 'x\\033[31m'; head -c 1000000 /dev/zero | tr '\\0' y; exit 1"}, "", "x [31myyy"},
		{"no check is a good boot", nil, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			os.Remove(trace) // of the case before
			err := runChecks(t.Context(), checks(t, c.scripts), slog.New(slog.DiscardHandler))
			ran, _ := os.ReadFile(trace)
			if string(ran) != c.ran {
				t.Errorf("ran %q, want %q", ran, c.ran)
			}
			if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || len(err.Error()) > 2*checkOutput || strings.ContainsRune(err.Error(), 0x1b)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	if err := runChecks(t.Context(), filepath.Join(t.TempDir(), "none"), slog.New(slog.DiscardHandler)); err != nil {
		t.Errorf("without a folder: %v", err)
	}
}

// TestACheckThatHangsIsEnded: with all that it has started.
func TestACheckThatHangsIsEnded(t *testing.T) {
	dir := checks(t, map[string]string{"a": "sleep 3600 & echo waiting; wait"})
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(200*time.Millisecond, func() { cancel(fmt.Errorf("it took more than a moment")) })
	began := time.Now()
	err := runChecks(ctx, dir, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "it took more than a moment") || time.Since(began) > time.Minute {
		t.Errorf("after %v: %v, want that it took more than a moment", time.Since(began), err)
	}
	// A child that holds the output does not hold us.
	dir = checks(t, map[string]string{"a": "sleep 3600 & exit 0"})
	if err := runChecks(t.Context(), dir, slog.New(slog.DiscardHandler)); err != nil || time.Since(began) > time.Minute {
		t.Errorf("after %v: %v, want a good check", time.Since(began), err)
	}
}

// TestHealthTellsTheAgent runs the verb beside an agent that says what it says.
func TestHealthTellsTheAgent(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "run")
	conf := filepath.Join(t.TempDir(), "birthmark.toml")
	write(t, conf, "[doors]\nfolder = \""+folder+"\"\n")
	health := func() (string, error) {
		var out strings.Builder
		c := command()
		c.SetArgs([]string{"health", "--config", conf})
		c.SetOut(&out)
		c.SetErr(&out)
		c.SilenceUsage, c.SilenceErrors = true, true
		err := c.ExecuteContext(t.Context())
		return out.String(), err
	}
	if out, err := health(); err != nil || !strings.Contains(out, "no firmware is on trial") {
		t.Errorf("where no agent is: %q, %v", out, err)
	}
	var looks atomic.Int32
	var phase atomic.Value
	phase.Store(update.Armed)
	verdicts := make(chan api.Verdict, 1)
	doors, err := api.Open(folder, nil, api.Agent{
		Status: func() any {
			s := agent.Status{Live: &agent.Live{}, Update: &agent.UpdateSummary{Phase: phase.Load().(update.Phase)}}
			s.Live.Update.Looked = looks.Add(1) > 1 // at first nobody knows
			return s
		},
		Judge: func(v api.Verdict) error {
			if phase.Load() != update.Trial {
				return &api.Refusal{Status: 409, Reason: "no firmware is on trial"}
			}
			verdicts <- v
			return nil
		},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer doors.Close()
	if out, err := health(); err != nil || looks.Load() != 2 || !strings.Contains(out, "no firmware is on trial") {
		t.Errorf("armed, and not started yet: %q, %v, after %d looks; want a good boot after 2", out, err, looks.Load())
	}
	phase.Store(update.Trial)
	old := checksFolder
	t.Cleanup(func() { checksFolder = old })
	checksFolder = checks(t, map[string]string{"10-a": "exit 0"})
	if out, err := health(); err != nil || !strings.Contains(out, "all checks") {
		t.Errorf("a good boot: %q, %v", out, err)
	}
	if v := <-verdicts; v.Unwell != "" {
		t.Errorf("of a good boot the agent was told %q", v.Unwell)
	}
	checksFolder = checks(t, map[string]string{"10-a": "echo no modem; exit 1"})
	if out, err := health(); err == nil || exitCode(err) != 1 {
		t.Errorf("a bad boot: %q, %v, exit code %d; want 1", out, err, exitCode(err))
	}
	if v := <-verdicts; v.Unwell != "check 10-a: exit status 1: no modem" {
		t.Errorf("of a bad boot the agent was told %q", v.Unwell)
	}
}
