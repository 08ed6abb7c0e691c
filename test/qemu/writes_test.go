package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"birthmark/internal/agent"
	"birthmark/internal/agent/agenttest"
	"birthmark/internal/swtpm"
	"birthmark/pkg/audit"
	"birthmark/pkg/lifecycle"
	"birthmark/pkg/store"
	"birthmark/test/qemu/machine"
	"birthmark/test/qemu/writelog"
)

// somePerFlush is how many disks that lost their cache are made of each flush; SOME in
// the environment asks for another number.
const somePerFlush = 24

// TestEveryWriteOfTheFirstBoot records every write to the disk of a device from its
// making to its service, and cuts the power behind each: there is a partition table, the
// file system is such that the device starts from it, and what the agent once said is in
// there, whole. The same before each flush for a disk that has lost any part of what was
// not flushed.
func TestEveryWriteOfTheFirstBoot(t *testing.T) {
	random := newRandom(t)
	record := recordFirstBoot(t)
	some := fromEnvironment("SOME", somePerFlush)

	tried := map[uint64]bool{}
	states := map[string]bool{}
	cuts, lost, blank := 0, 0, 0
	try := func(d *writelog.Disk, where string) {
		w, err := record.look(d)
		if err == nil {
			err = record.judge(w)
		}
		if err != nil {
			t.Errorf("power cut %s: %v", where, err)
			return
		}
		if w.state == nil {
			blank++
		} else if !states[string(w.state)] {
			states[string(w.state)] = true
			agenttest.CheckState(t, w.dir, record.tpm.Address())
		}
	}
	r := writelog.NewReplay(record.writes, record.before)
	for n := 0; ; n++ {
		e, more := r.Next()
		if !more || e.Flags&writelog.Flush != 0 {
			for range some {
				d := r.Some(random)
				if sum := d.Sum(0, diskEnd); !tried[sum] {
					tried[sum] = true
					lost++
					try(d, fmt.Sprintf("before write %d of %d, with some of the last %d lost", n, len(record.writes), r.Volatile()))
				}
			}
		}
		if !more {
			break
		}
		r.Step()
		record.acknowledge(e)
		if sum := r.All().Sum(0, diskEnd); !tried[sum] {
			tried[sum] = true
			cuts++
			try(r.All(), fmt.Sprintf("behind write %d of %d", n+1, len(record.writes)))
		}
	}
	t.Logf("%d entries in the log; power cut behind a write: %d, with some writes lost: %d; without a state: %d, different states: %d",
		len(record.writes), cuts, lost, blank, len(states))
	if len(states) < len(steps) {
		t.Errorf("%d different states were seen, which cannot be a whole life", len(states))
	}
}

// TestReplayFindsWhatIsNotFlushed: with flushes that do nothing the same judge finds what is lost.
func (record *firstBoot) withoutFlushes() []writelog.Entry { return nil }

// diskEnd is behind all disks.
const diskEnd = 1 << 40

// steps are the states in the order in which they come.
var steps = []lifecycle.State{lifecycle.Blank, lifecycle.Born, lifecycle.Enrolled, lifecycle.Operational}

// A firstBoot is what is known of one.
type firstBoot struct {
	before  *writelog.Disk // the start of it, as the factory made it
	writes  []writelog.Entry
	tpm     *swtpm.TPM
	device  agent.Device // at the end
	audit   []byte       // at the end
	scratch string

	said lifecycle.State // what the agent has said so far, by the marks
	all  bool            // its whole audit log, too
}

// markAt is a place on the disk that belongs to no partition. What is written there is a
// mark in the log.
const markAt = 64 * 512

func recordFirstBoot(t *testing.T) *firstBoot {
	record := &firstBoot{scratch: t.TempDir(), before: writelog.NewDisk()}
	log := filepath.Join(record.scratch, "log")
	if err := os.WriteFile(log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	d := powerOn(t, machine.Config{Files: w.birth("device-1"), Log: log})
	d.ready()
	// A line of the agent's comes after what it tells of, and is in the log after that.
	d.do(fmt.Sprintf(`cat >/run/mark <<'END'
printf %%-512s "$*" | dd of=/dev/vda bs=512 seek=%d oflag=direct iflag=fullblock status=none
END
cat >/run/marks <<'END'
journalctl -u birthmark-agent -f -n all -o cat | while read -r line; do
	case $line in "state changed "*) sh /run/mark "$line" ;; esac
done
END
setsid sh /run/marks >/dev/null 2>&1 &`, markAt/512))
	const spoke = "/d/device-1/tele/system"
	w.hears(spoke)
	d.do("sh /run/mark heard && systemctl restart birthmark-agent")
	w.forget()
	w.hears(spoke)
	d.do("sync")
	if err := d.Cut(); err != nil {
		t.Fatal(err)
	}

	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if record.writes, err = writelog.Parse(text); err != nil {
		t.Fatal(err)
	}
	factory, err := os.Open(img.Disk)
	if err != nil {
		t.Fatal(err)
	}
	defer factory.Close()
	for _, at := range []int64{0, img.Size() - tableSize} {
		table := make([]byte, tableSize)
		if _, err := factory.ReadAt(table, at); err != nil {
			t.Fatal(err)
		}
		if _, err := record.before.WriteAt(table, at); err != nil {
			t.Fatal(err)
		}
	}
	if record.tpm, err = swtpm.Start(t.Context(), d.TPM()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(record.tpm.Kill)
	return record
}
