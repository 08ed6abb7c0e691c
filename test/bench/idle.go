package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A rest is what a connected process costs while nothing happens.
type rest struct {
	rss, pss float64 // MiB, at the end
	wakes    float64 // voluntary context switches a minute
	cpu      float64 // ms a minute
	written  float64 // KiB a minute, to disks
}

// rests are those of one program, a rest a round.
type rests struct {
	name  string
	found []rest
}

// best is the least of every quantity, as with times.
func (r *rests) best() rest {
	b := r.found[0]
	for _, o := range r.found {
		b = rest{min(b.rss, o.rss), min(b.pss, o.pss), min(b.wakes, o.wakes), min(b.cpu, o.cpu), min(b.written, o.written)}
	}
	return b
}

// idle lets agent and mosquitto_sub rest side by side.
func (w *world) idle(ctx context.Context, ours, peer *rests, o options) (err error) {
	w.broker.forget()
	a, err := w.startAgent()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.stop()) }()
	if _, err := w.broker.await(ctx, deviceID, 1); err != nil {
		return err
	}
	sub := exec.CommandContext(ctx, "mosquitto_sub", w.mosquitto("-t", "birthmark/v1/d/"+peerID+"/cmd/#")...)
	if err := sub.Start(); err != nil {
		return err
	}
	defer func() {
		_ = sub.Process.Kill() // its readings say whether it was alive
		_ = sub.Wait()
	}()
	both := []struct {
		*rests
		pid    int
		before work
	}{{rests: ours, pid: a.cmd.Process.Pid}, {rests: peer, pid: sub.Process.Pid}}
	if err := pause(ctx, o.settle); err != nil {
		return err
	}
	for i := range both {
		if both[i].before, err = workOf(both[i].pid); err != nil {
			return err
		}
	}
	start := time.Now()
	if err := pause(ctx, o.rest); err != nil {
		return err
	}
	minutes := time.Since(start).Minutes()
	for _, b := range both {
		after, err := workOf(b.pid)
		if err != nil {
			return err
		}
		r := rest{wakes: (after.wakes - b.before.wakes) / minutes, cpu: (after.cpu - b.before.cpu) / minutes,
			written: (after.written - b.before.written) / minutes}
		if r.rss, r.pss, err = memoryOf(b.pid); err != nil {
			return err
		}
		b.found = append(b.found, r)
	}
	return nil
}

func pause(ctx context.Context, long time.Duration) error {
	select {
	case <-time.After(long):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// memoryOf is a process's memory in MiB: all that is mapped in, and its share of it.
func memoryOf(pid int) (rss, pss float64, err error) {
	file := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
	for name, kib := range map[string]*float64{"Rss:": &rss, "Pss:": &pss} {
		if *kib, err = field(file, name); err != nil {
			return 0, 0, err
		}
		*kib /= 1024
	}
	return rss, pss, nil
}

// work is what a process has done so far.
type work struct{ wakes, cpu, written float64 }

func workOf(pid int) (work, error) {
	var sum work
	written, err := field(fmt.Sprintf("/proc/%d/io", pid), "write_bytes:")
	if err != nil {
		return work{}, err
	}
	sum.written = written / 1024
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(tasks) == 0 {
		return work{}, fmt.Errorf("process %d is gone", pid)
	}
	for _, task := range tasks {
		wakes, err := field(filepath.Join(task, "status"), "voluntary_ctxt_switches:")
		if err != nil {
			return work{}, err
		}
		// proc(5): nanoseconds on a processor, nanoseconds waiting for one, turns.
		text, err := os.ReadFile(filepath.Join(task, "schedstat"))
		if err != nil {
			return work{}, err
		}
		first, _, _ := strings.Cut(string(text), " ")
		ns, err := strconv.ParseFloat(first, 64)
		if err != nil {
			return work{}, err
		}
		sum.wakes += wakes
		sum.cpu += ns / 1e6
	}
	return sum, nil
}

// stateSize is what the state of the agent takes on its disk, in MiB.
func (w *world) stateSize() (float64, error) {
	var blocks int64
	err := filepath.WalkDir(w.path("state"), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var s unix.Stat_t
		err = unix.Lstat(path, &s)
		blocks += s.Blocks // of 512 bytes, see stat(2)
		return err
	})
	return float64(blocks) / 2048, err
}

// field is a number in a file of lines "name number".
func field(file, name string) (float64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name {
			return strconv.ParseFloat(f[1], 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, name)
}
