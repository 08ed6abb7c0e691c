package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"birthmark/internal/agent"
	"birthmark/internal/agent/agenttest"
	"birthmark/internal/lab"
	"birthmark/internal/swtpm"
	"birthmark/pkg/lifecycle"
	"birthmark/test/qemu/machine"
	"birthmark/test/qemu/writelog"
)

// losses is how many disks that have lost some of their cache are made of each flush;
// LOSSES in the environment asks for another number.
const losses = 24

const faultsTold = 10 // then it is clear enough

// TestEveryWriteOfAFirstBoot logs every write to the disk of a device, from its making to
// its service and a restart of the agent, and cuts the power behind each: there is a
// partition table, the file system is one that the device starts from, and what the agent
// has said is in there, whole. The same holds for a disk that loses any part of what it
// was not told to flush.
func TestEveryWriteOfAFirstBoot(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	l := recordLife(t)
	start := time.Now()
	behind, lossy, faulty, blank, states := 0, 0, 0, 0, map[string]bool{}
	for c := range l.cuts(l.writes, random, fromEnvironment("LOSSES", losses)) {
		found, err := l.try(c)
		if err != nil {
			t.Errorf("power cut %v: %v", c, err)
			if faulty++; faulty == faultsTold {
				t.FailNow()
			}
			continue
		}
		if c.lossy {
			lossy++
		} else {
			behind++
		}
		if found.state == nil {
			blank++
		} else if !states[string(found.state)] {
			states[string(found.state)] = true
			agenttest.CheckState(t, found.dir, l.tpm.Address())
		}
	}
	t.Logf("%d entries in the log; %d power cuts behind a write, %d with writes lost; without a state %d, different states %d; %.1f s",
		len(l.writes), behind, lossy, blank, len(states), time.Since(start).Seconds())
	// Blank with a TPM, born, a request to the owner, enrolled, operational.
	if len(states) < 5 {
		t.Errorf("%d different states are found in a whole life, want 5 at least", len(states))
	}

	// To see that it would show: from the first mark on, the disk is not told to flush.
	idle, marked, faults, lost := slices.Clone(l.writes), false, 0, 0
	for i, e := range idle {
		if marked = marked || e.At == markAt; marked {
			idle[i].Flags &^= writelog.Flush
		}
	}
	for c := range l.cuts(idle, random, 1) {
		if !c.lossy {
			continue
		}
		_, err := l.try(c)
		if err != nil {
			faults++
		}
		if errors.Is(err, errLost) {
			lost++
		}
	}
	t.Logf("without flushes %d faults, %d of them something that the agent had said", faults, lost)
	if lost == 0 {
		t.Error("without flushes nothing is lost that the agent had said")
	}
}

// markAt is a place on the disk that belongs to no partition. What is written there is a
// mark in the log.
const markAt = 64 * 512

// A life is what was written in one, and what of it the agent told.
type life struct {
	offline
	before *writelog.Disk // as the factory made it
	writes []writelog.Entry
	tpm    *swtpm.TPM // at the end

	device   agent.Device // at the end
	audit    []byte
	requests []request // to the CAs
}

// A request to a CA came when so many writes were in the log.
type request struct {
	writes uint64
	csr    []byte
	answer lifecycle.State // the state that the certificate makes
}

func recordLife(t *testing.T) *life {
	l := &life{offline: newOffline(t), before: writelog.NewDisk()}
	if err := l.readTables(l.before, img.Disk); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(l.dir, "log")
	if err := os.WriteFile(log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWatchedWorld(t, func(whose string, csr []byte) {
		answer := lifecycle.Born
		if whose == lab.Owner {
			answer = lifecycle.Enrolled
		}
		// Each flush is in the log, and counted there, before the agent hears of it.
		n, err := writelog.Count(log)
		if err != nil {
			t.Error(err)
		}
		l.requests = append(l.requests, request{n, csr, answer})
	})
	d := powerOn(t, machine.Config{Files: w.birth("device-1"), Log: log})
	d.ready()
	// What the agent says of a state comes after the write that made it durable, and the
	// mark after that.
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
	d.do("systemctl restart birthmark-agent")
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
	if l.writes, err = writelog.Parse(text); err != nil {
		t.Fatal(err)
	}
	r := writelog.NewReplay(l.writes, l.before)
	for range l.writes {
		r.Step()
	}
	end, err := l.look(r.All())
	if err != nil {
		t.Fatal(err)
	}
	l.device, l.audit = end.device, end.audit
	if l.device.State != lifecycle.Operational || len(l.requests) != 2 {
		t.Fatalf("at the end the state is %s, after %d requests, want operational after 2", l.device.State, len(l.requests))
	}
	if l.tpm, err = swtpm.Start(t.Context(), d.TPM()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.tpm.Kill)
	return l
}

// A cut is what a disk may hold when the power has failed.
type cut struct {
	disk  *writelog.Disk // until the next cut
	said  said
	lossy bool
	n, of int // writes
}

// What the agent had said last, to its log and to a CA.
type said struct {
	state   lifecycle.State
	request request
}

func (c cut) String() string {
	where := "behind"
	if c.lossy {
		where = "with writes lost before"
	}
	return fmt.Sprintf("%s write %d of %d, when the agent had said that it is %s", where, c.n, c.of, c.said.state)
}

// cuts are those behind each of some writes, and some before each of the life's own
// flushes. What was there already, with the same said, is left out.
func (l *life) cuts(writes []writelog.Entry, random *rand.Rand, losses int) iter.Seq[cut] {
	return func(yield func(cut) bool) {
		type key struct {
			sum      uint64
			state    lifecycle.State
			requests int
		}
		had := map[key]bool{}
		now, requests := said{}, 0
		once := func(c cut) bool {
			k := key{c.disk.Sum(0, markAt) ^ c.disk.Sum(markAt+writelog.Block, l.size), now.state, requests}
			if had[k] {
				return true
			}
			had[k] = true
			return yield(c)
		}
		r := writelog.NewReplay(writes, l.before)
		for n, e := range l.writes {
			for requests < len(l.requests) && l.requests[requests].writes <= uint64(n) {
				now.request = l.requests[requests]
				requests++
			}
			if e.Flags&writelog.Flush != 0 {
				for range losses {
					if !once(cut{r.Some(random), now, true, n + 1, len(writes)}) {
						return
					}
				}
			}
			r.Step()
			if e.At == markAt {
				_, state, _ := strings.Cut(string(e.Data), " to=")
				state, _, _ = strings.Cut(state, " ")
				now.state = lifecycle.State(state)
			}
			if !once(cut{r.All(), now, false, n + 1, len(writes)}) {
				return
			}
		}
	}
}

// try starts a device, so to say, from what a cut leaves.
func (l *life) try(c cut) (wreck, error) {
	found, err := l.look(c.disk)
	if err != nil {
		return wreck{}, err
	}
	return found, l.judge(found, c.said)
}

// errLost: what the agent had said is not on the disk.
var errLost = errors.New("it is lost")

// judge holds what is found against what the agent had said, and what came of it.
func (l *life) judge(w wreck, said said) error {
	steps := []lifecycle.State{lifecycle.Blank, lifecycle.Born, lifecycle.Enrolled, lifecycle.Operational}
	is, was := slices.Index(steps, w.device.State), slices.Index(steps, said.state)
	if is < was {
		return fmt.Errorf("the state is %s: %w", w.device.State, errLost)
	}
	if r := said.request; is < slices.Index(steps, r.answer) && !bytes.Equal(w.device.Asking.CSR, r.csr) {
		return fmt.Errorf("the request for the state %s: %w", r.answer, errLost)
	}
	birth, owner := "", ""
	if is >= 1 {
		birth = l.device.Birth.Chain
	}
	if is >= 2 {
		owner = l.device.Owner.Chain
	}
	if w.device.Birth.Chain != birth || w.device.Owner.Chain != owner {
		return fmt.Errorf("the device is %s, and its certificates are not those that it has at the end", w.device.State)
	}
	return l.judgeAudit(w, steps[max(0, was-1)])
}

// judgeAudit holds the audit log against the one at the end. It has been told of the state
// before the one that the agent spoke of last, since it is told after.
func (l *life) judgeAudit(w wreck, last lifecycle.State) error {
	whole := w.audit[:bytes.LastIndexByte(w.audit, '\n')+1] // what is behind is torn
	if !bytes.HasPrefix(l.audit, whole) {
		return errors.New("the audit log is not the start of the one at the end")
	}
	told := last == lifecycle.Blank
	for line := range bytes.Lines(whole) {
		var e struct {
			Event string
			Attrs struct{ To lifecycle.State }
		}
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("audit log: %w", err)
		}
		told = told || e.Event == "state" && e.Attrs.To == last
	}
	if !told {
		return fmt.Errorf("the audit log does not say that the device is %s: %w", last, errLost)
	}
	return w.openAudit()
}
