package main

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"birthmark/internal/agent/agenttest"
	"birthmark/internal/lab"
	"birthmark/internal/lab/est"
	"birthmark/internal/swtpm"
	"birthmark/pkg/lifecycle"
	"birthmark/test/qemu/machine"
)

// A moment is one at which the power fails: some time after something was seen.
type moment struct {
	name  string
	seen  func(v *victim) bool
	later time.Duration // at most
}

// moments are those of one device's life. A start takes some 20 s, what follows a request
// until the next one some tenths of a second, more on a machine that does much else.
var moments = []moment{
	{"in the first start", (*victim).started, 12 * time.Second},
	{"when it asks the maker", func(v *victim) bool { return v.asked(lab.Maker) }, time.Second},
	{"when it asks the owner", func(v *victim) bool { return v.asked(lab.Owner) }, time.Second},
	{"in service", (*victim).spoke, 3 * time.Second},
	{"in a later start", (*victim).started, 12 * time.Second},
	{"in service again", (*victim).spoke, 3 * time.Second},
}

// powerCuts is how many there are; CUTS in the environment asks for another number.
const powerCuts = 12

// TestPowerCuts pulls the mains of devices at random moments of their lives. Whenever that
// is, what is on the disk is true of the TPM; and the device comes up again, goes on, and
// has one certificate of each CA in the end.
//
// What the guest wrote by then is on its disk, in the order of the writes: the host does
// not lose power. Disks that lose what they were not told to flush are the business of
// TestEveryWriteOfAFirstBoot.
func TestPowerCuts(t *testing.T) {
	t.Parallel()
	random, cuts := seeded(t), fromEnvironment("CUTS", powerCuts)
	w := newWatchedWorld(t, nil)
	states, done := map[lifecycle.State]int{}, 0
	for n := 1; done < cuts; n++ {
		v := newVictim(w, fmt.Sprintf("device-%d", n))
		for _, m := range moments[:min(len(moments), cuts-done)] {
			v.await(m.seen)
			chance := random.Float64()
			wait := time.Duration(chance * chance * float64(m.later)) // rather soon than late
			<-time.After(wait)
			if err := v.Cut(); err != nil {
				t.Fatal(err)
			}
			state := v.look()
			t.Logf("%s, cut %s + %v: its state is %s", v.id, m.name, wait.Round(time.Millisecond), state)
			states[state]++
			done++
			v.powerOn()
		}
		v.await((*victim).spoke)
		v.hasOneOfEach()
		if err := v.Cut(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d cuts, in these states: %v", done, states)
}

// fromEnvironment is a number that somebody may want to be another one.
func fromEnvironment(name string, usual int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return usual
}

// seeded is chance that can be had again: SEED in the environment.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// A watched world knows what was asked of its CAs, too.
type watched struct {
	*world
	mu     sync.Mutex
	askers map[[2]string]int // by CA and common name
}

// newWatchedWorld is newWorld, in which asked, if it is set, is told of every request for
// a certificate before that is answered.
func newWatchedWorld(t *testing.T, asked func(whose string, csr []byte)) *watched {
	t.Helper()
	w := &watched{world: &world{T: t, news: make(chan struct{}, 1)}, askers: map[[2]string]int{}}
	l, err := lab.Up(t.Context(), lab.Options{
		Dir: filepath.Join(t.TempDir(), "lab"), Hosts: []string{machine.Host}, Heard: w.hear,
		EST: func(whose string, conf *est.Config) {
			conf.Hold = func(csr *x509.CertificateRequest) time.Duration {
				if asked != nil {
					asked(whose, csr.Raw)
				}
				w.mu.Lock()
				defer w.mu.Unlock()
				w.askers[[2]string{whose, csr.Subject.CommonName}]++
				return 0
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Lab = l
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// A victim is a device whose power fails.
type victim struct {
	device
	id      string
	w       *watched
	offline offline
	starts  int            // on the console, when the power went on
	asks    map[string]int // the requests until then
}

func newVictim(w *watched, id string) *victim {
	w.Helper()
	v := &victim{id: id, w: w, offline: newOffline(w.T), asks: map[string]int{}}
	v.device = powerOn(w.T, machine.Config{Files: w.birth(id)})
	return v
}

func (v *victim) powerOn() {
	v.Helper()
	v.starts = v.countStarts()
	v.w.mu.Lock()
	for _, whose := range []string{lab.Maker, lab.Owner} {
		v.asks[whose] = v.w.askers[[2]string{whose, v.id}]
	}
	v.w.mu.Unlock()
	v.w.forget()
	if err := v.PowerOn(v.Context()); err != nil {
		v.Fatal(err)
	}
}

// What may be seen since the power is on. A device that speaks asks nobody any more.

func (v *victim) started() bool { return v.countStarts() > v.starts }

func (v *victim) asked(whose string) bool {
	v.w.mu.Lock()
	defer v.w.mu.Unlock()
	return v.w.askers[[2]string{whose, v.id}] > v.asks[whose] || v.spoke()
}

func (v *victim) spoke() bool {
	v.w.world.mu.Lock()
	defer v.w.world.mu.Unlock()
	for _, m := range v.w.heard {
		if strings.HasSuffix(m.topic, "/d/"+v.id+"/tele/system") {
			return true
		}
	}
	return false
}

func (v *victim) countStarts() int {
	return strings.Count(v.Console(), "initrd: the root file system is")
}

// await waits until something is seen.
func (v *victim) await(seen func(*victim) bool) {
	v.Helper()
	late := time.After(bootPatience + patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !seen(v) {
		select {
		case <-tick.C:
		case <-late:
			v.Fatalf("%s does not come up, or does not go on, within %v", v.id, bootPatience+patience)
		}
	}
}

// look tells the state on the disk, having held it against the TPM.
func (v *victim) look() lifecycle.State {
	v.Helper()
	d, err := v.offline.read(v.Disk())
	if err != nil {
		v.Fatal(err)
	}
	found, err := v.offline.look(d)
	if err == nil {
		err = found.openAudit()
	}
	if err != nil {
		v.Fatal(err)
	}
	if found.state == nil {
		return lifecycle.Blank
	}
	tpm, err := swtpm.Start(v.Context(), v.TPM())
	if err != nil {
		v.Fatal(err)
	}
	defer tpm.Kill()
	return agenttest.CheckState(v, found.dir, tpm.Address()).State
}

// hasOneOfEach: each CA issued one certificate for the device, and that is the one it has.
func (v *victim) hasOneOfEach() {
	v.Helper()
	v.ready()
	is := v.identity()
	for whose, serial := range map[string]string{lab.Maker: is.idevid, lab.Owner: is.ldevid} {
		text, err := os.ReadFile(filepath.Join(v.w.Dir(), whose, "issued.jsonl"))
		if err != nil {
			v.Fatal(err)
		}
		var issued []string
		for line := range strings.Lines(string(text)) {
			var r struct{ Subject, Serial string }
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				v.Fatal(err)
			}
			if r.Subject == "CN="+v.id {
				issued = append(issued, r.Serial)
			}
		}
		if len(issued) != 1 || !sameNumber(issued[0], serial) {
			v.Errorf("the %s issued the certificates %q for %s, which has %s; want that one alone", whose, issued, v.id, serial)
		}
	}
}

// sameNumber compares numbers in hex, in small letters or large, with zeros in front or
// without.
func sameNumber(a, b string) bool {
	x, hexA := new(big.Int).SetString(a, 16)
	y, hexB := new(big.Int).SetString(b, 16)
	return hexA && hexB && x.Cmp(y) == 0
}
