// Bench measures birthmark beside other people's programs that do the same, in one
// run on one machine, and holds the figures against docs/numbers.md. `make bench`
// starts it; exit code 1 says that a limit is exceeded, 2 that it could not measure.
//
//	start-to-publish-ratio  `birthmark run`, key in the TPM      mosquitto_pub, key in a file
//	enrolment-ratio         `birthmark enroll`, key in the TPM   openssl and curl, key in a file
//	agent-memory-idle       `birthmark run` at rest              mosquitto_sub (shown)
//	disk-written-idle       the same
//	disk-state              its state, after all that
//	start-to-ready          `birthmark run`, to READY=1 for its service manager
//	tpm-commands-message    the TPM of `birthmark run` while it sends telemetry
//	device-binary-size      bin/birthmark
//	bundle-verify-ratio     `birthmark firmware verify`          openssl dgst -sha256
//	bundle-install-ratio-…  `birthmark installer`                rauc extract
//	bundle-policy-time      `birthmark firmware verify`, which refuses
//	bundle-fetched-ratio    what a server sends for an install
//	installer-memory        `birthmark installer`, in all of these, and with 512 MiB and 5 GiB
//
// What else docs/numbers.md names is looked for among what the module's Go benchmarks
// report; a limit that nothing measures yet is said, and no fault.
//
// All take their turns in the same seconds: ours, peer, ours, peer, for some rounds, of
// which the best counts, so that a ratio holds on a slow or busy machine too. A time
// alone says little: none is asserted anywhere. How each figure is taken, and what was
// done to be fair, is in docs/bench.md, whose tables -write renews.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const (
	exitExceeded = 1
	exitFailed   = 2
)

// options are how much is done.
type options struct {
	agent      string        // the device binary
	rounds     int           // of everything
	publishes  int           // turns of a lane in a round
	enrolments int           // the same
	rest       time.Duration // how long it is idle in a round
	settle     time.Duration // how long a process is left alone before that
	readings   int           // telemetry during which the TPM is listened to
	benchmarks bool          // run the Go benchmarks as well
	unit       string        // of the installer, a file
	image      int64         // bytes of the image in bundles
	half       int64         // bytes of one for which only memory is measured
	sparse     int64         // the same, almost all holes
}

func main() {
	o := options{publishes: 15, enrolments: 4, settle: 5 * time.Second, readings: 3, benchmarks: true,
		image: 256 << 20, half: 512 << 20, sparse: 5 << 30}
	flag.StringVar(&o.agent, "agent", "bin/birthmark", "the device `binary`")
	flag.StringVar(&o.unit, "unit", "packaging/systemd/birthmark-installer.service", "the installer's unit `file`")
	flag.IntVar(&o.rounds, "rounds", 3, "`number` of rounds, of which the best counts")
	flag.DurationVar(&o.rest, "rest", 20*time.Second, "how long the agent is idle in a round")
	table := flag.String("limits", "docs/numbers.md", "Markdown `file` with the table of limits")
	page := flag.String("write", "", "Markdown `file` whose tables are renewed")
	flag.Parse()
	if flag.NArg() > 0 || o.rounds < 1 {
		flag.Usage()
		os.Exit(exitFailed)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	exceeded, err := bench(ctx, o, *table, *page)
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(exitFailed)
	case exceeded > 0:
		os.Exit(exitExceeded)
	}
}

// bench measures, prints and returns how many limits are exceeded.
func bench(ctx context.Context, o options, table, page string) (exceeded int, err error) {
	f, err := os.Open(table)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	limits, err := readLimits(f)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", table, err)
	}
	m, err := measure(ctx, o)
	if err != nil {
		return 0, err
	}
	about, err := describe(ctx, o.agent)
	if err != nil {
		return 0, err
	}
	text, exceeded := report(about, limits, m)
	fmt.Print(text)
	if page != "" {
		err = renew(page, text)
	}
	return exceeded, err
}

// A measurement is all that was found out.
type measurement struct {
	figures    figures
	publishing []*lane
	enrolling  []*lane
	resting    []*rests
	firmware   []contest
}

// figures are what was measured, by the names of docs/numbers.md.
type figures map[string][]float64

func (f figures) add(name string, value float64) { f[name] = append(f[name], value) }

// measure does everything, in rounds.
func measure(ctx context.Context, o options) (_ *measurement, err error) {
	w, err := newWorld(ctx, o.agent)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	m := &measurement{figures: figures{}, publishing: w.publishing(), enrolling: w.enrolling(),
		resting: []*rests{{name: "birthmark run"}, {name: "mosquitto_sub"}}}
	fmt.Fprintln(os.Stderr, "making bundles")
	f, err := w.makeFirmware(ctx, o)
	if err != nil {
		return nil, err
	}
	m.firmware = f.contests()
	ready := &lane{name: "birthmark run, without network", once: w.agentReady}
	for round := range o.rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d: publish", round+1, o.rounds)
		if err := race(ctx, o.publishes, m.publishing); err != nil {
			return nil, err
		}
		fmt.Fprint(os.Stderr, ", start")
		if err := race(ctx, o.publishes, []*lane{ready}); err != nil {
			return nil, err
		}
		fmt.Fprint(os.Stderr, ", enrol")
		if err := race(ctx, o.enrolments, m.enrolling); err != nil {
			return nil, err
		}
		fmt.Fprint(os.Stderr, ", firmware")
		if err := f.round(ctx, m); err != nil {
			return nil, err
		}
		fmt.Fprint(os.Stderr, ", rest")
		if err := w.idle(ctx, m.resting[0], m.resting[1], o); err != nil {
			return nil, err
		}
		if o.benchmarks {
			fmt.Fprint(os.Stderr, ", Go benchmarks")
			if err := goBenchmarks(ctx, m.figures); err != nil {
				return nil, err
			}
		}
		fmt.Fprintln(os.Stderr)
	}
	commands, err := w.commandsOfMessages(ctx, o.readings)
	if err != nil {
		return nil, err
	}
	m.figures.add("tpm-commands-message", commands)
	fmt.Fprintln(os.Stderr, "large images")
	if err := f.finish(ctx, w, o, m.figures); err != nil {
		return nil, err
	}
	info, err := os.Stat(o.agent)
	if err != nil {
		return nil, err
	}
	m.figures.add("device-binary-size", float64(info.Size()))
	m.figures.add("start-to-publish-ratio", m.publishing[0].ratio(m.publishing[1]))
	for _, c := range m.firmware {
		m.figures.add(c.figure, c.lanes[0].ratio(c.lanes[1]))
	}
	m.figures.add("start-to-ready", ready.best().Seconds())
	m.figures.add("enrolment-ratio", m.enrolling[0].ratio(m.enrolling[1]))
	atRest := m.resting[0].best()
	m.figures.add("agent-memory-idle", atRest.rss)
	m.figures.add("disk-written-idle", atRest.written*24*60)
	size, err := w.stateSize()
	if err != nil {
		return nil, err
	}
	m.figures.add("disk-state", size)
	return m, nil
}
