// Package demo shows the main job before somebody's eyes, on one machine: a TPM is
// made, a maker's CA, an owner's CA and a broker come up, and a device is born,
// enrols and speaks. Its firmware is updated; bundles that it must not take are offered to
// it, and a release that does not work. Then three things are tried that must fail.
//
// Nothing is acted. The device is the real agent and the real installer in processes of
// their own, on a board in a folder (package board); its TPM is swtpm, and what is printed
// comes from its log, from the CAs and from the broker. What has to have happened is held
// against what these said, not against what was done here. Everything lives in one
// temporary folder, which is removed at the end, and listens on free ports of the
// loopback interface.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"birthmark/internal/lab"
	"birthmark/internal/swtpm"
)

// patience is how long the device may take for each thing, such as from its start to its
// first telemetry. On an idle machine that is a second, and what takes longest is six.
const patience = 90 * time.Second

// Options say what to show.
type Options struct {
	Agent     string    // the device binary
	Out       io.Writer // the timeline, for people
	Once      bool      // end after the refusals, do not wait for ctx
	JSON      string    // file for the Report; "" for none
	BrokerLog string    // file for a copy of the broker's own log; "" for none
	Nonce     string    // comes back in the telemetry, as label "nonce"; "" for none
}

// A Report is what was shown, for programs.
type Report struct {
	OK        bool            `json:"ok"`
	Error     string          `json:"error,omitempty"`
	Seconds   float64         `json:"seconds"`
	Device    string          `json:"device,omitempty"`
	Steps     []Step          `json:"steps"`
	Topic     string          `json:"topic,omitempty"`     // of the first telemetry
	Telemetry json.RawMessage `json:"telemetry,omitempty"` // as the broker got it
	Refusals  []Refusal       `json:"refusals"`
}

// A Step is one line of the timeline.
type Step struct {
	At     float64 `json:"at"`  // seconds since the start
	Who    string  `json:"who"` // factory, lab, device, board, maker, owner, broker, refused
	What   string  `json:"what"`
	Proved string  `json:"proved,omitempty"`
}

// A Refusal is something that had to fail: bundles first.
type Refusal struct {
	Tried string `json:"tried"`
	Exit  int    `json:"exit"` // of the agent
	Said  string `json:"said"` // its one line
}

// A stage is where the demonstration takes place.
type stage struct {
	Options
	dir    string // temporary
	start  time.Time
	report Report

	lab           *lab.Lab
	desk          *desk
	tpm, otherTPM *swtpm.TPM
	device        *device

	events chan func() // what befell, to be looked at one after another
	// What follows is for who looks at events, and for who waits for them.
	seen     seen
	updating bool   // an update is shown
	trouble  string // the last that was logged
	fault    error  // the demonstration cannot go on
}

// Seen is what the device and the broker have said so far.
type seen struct {
	connected bool
	online    online    // the last that the broker heard
	ek, ekNow string    // of the TPM, at the first start and at the last
	updates   []updated // as the broker heard of them
	starts    int       // of the board
	floor     string    // as the installer raised it last
	verified  bool      // it was said what a start means
	phase     string    // of the update, as it was logged last
}

// A message was published by a device.
type message struct {
	client, topic string
	payload       []byte
}

// Run shows everything. It returns nil when all went as it must and, unless o.Once,
// ctx has ended.
func Run(ctx context.Context, o Options) (err error) {
	dir, err := os.MkdirTemp("", "birthmark-demo-")
	if err != nil {
		return fmt.Errorf("cannot make a folder for the demonstration: %w", err)
	}
	s := &stage{Options: o, dir: dir, start: time.Now(), events: make(chan func(), 64)}
	s.report.Steps, s.report.Refusals = []Step{}, []Refusal{}
	defer func() { err = errors.Join(err, s.tearDown(err)) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.print("Birthmark: a device is born, enrols and speaks. All of it is on this machine.\n\n")
	if err := s.build(ctx); err != nil {
		return err
	}
	if s.device, err = s.boot(ctx); err != nil {
		return err
	}
	defer s.device.stop()
	if err := s.watchLife(ctx); err != nil {
		return err
	}
	if err := s.firmware(ctx); err != nil {
		return err
	}
	s.print("\nThree things that must fail:\n\n")
	if err := s.refusals(ctx); err != nil {
		return err
	}
	s.print("\nShown in %.1f s.\n", time.Since(s.start).Seconds())
	if s.Once {
		return nil
	}
	s.print("The device stays in service; its telemetry, as the broker gets it, follows. Ctrl-C ends it.\n\n")
	return s.watchService(ctx)
}

// build makes two TPMs, one for the device and one for a thief, and brings the lab up.
func (s *stage) build(ctx context.Context) error {
	var all sync.WaitGroup
	errs := make([]error, 2)
	tpms := make([]*swtpm.TPM, 2)
	for i, name := range []string{"tpm", "other-tpm"} {
		all.Go(func() { tpms[i], errs[i] = powerOn(ctx, filepath.Join(s.dir, name)) })
	}
	all.Wait()
	s.tpm, s.otherTPM = tpms[0], tpms[1]
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.say("factory", "makes two TPMs (swtpm), each with a certified endorsement key (EK): the device's, and a thief's")
	var err error
	s.lab, err = lab.Up(ctx, lab.Options{Dir: filepath.Join(s.dir, "lab"), Heard: func(client, topic string, payload []byte) {
		s.post(ctx, func() { s.hear(message{client, topic, payload}) })
	}})
	if err != nil {
		return err
	}
	if s.desk, err = openDesk(s.lab, filepath.Join(s.dir, "desk"), s.Agent); err != nil {
		return err
	}
	s.say("lab", "has the maker's CA at %s,\nthe owner's CA at %s, the owner's broker at %s", s.lab.MakerURL(), s.lab.OwnerURL(), s.lab.BrokerURL())
	return nil
}

func powerOn(ctx context.Context, dir string) (*swtpm.TPM, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	if err := swtpm.Manufacture(ctx, dir); err != nil {
		return nil, err
	}
	return swtpm.Start(ctx, dir)
}

// tearDown ends what build began, and writes the report of a demonstration that
// ended with err.
func (s *stage) tearDown(err error) error {
	var errs []error
	if s.desk != nil {
		errs = append(errs, s.desk.close())
	}
	if s.lab != nil {
		errs = append(errs, s.lab.Close())
		if s.BrokerLog != "" {
			errs = append(errs, copyFile(s.lab.BrokerLog(), s.BrokerLog))
		}
	}
	for _, t := range []*swtpm.TPM{s.tpm, s.otherTPM} {
		if t != nil {
			t.Kill()
		}
	}
	errs = append(errs, os.RemoveAll(s.dir))
	if s.JSON != "" {
		s.report.OK, s.report.Seconds = err == nil, time.Since(s.start).Seconds()
		if err != nil {
			s.report.Error = err.Error()
		}
		text, jsonErr := json.MarshalIndent(s.report, "", "  ")
		if jsonErr == nil {
			jsonErr = os.WriteFile(s.JSON, append(text, '\n'), 0o644)
		}
		errs = append(errs, jsonErr)
	}
	return errors.Join(errs...)
}

func copyFile(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o644)
}

// say adds a step to the timeline: what happens and, after a line feed, the words of
// whom it is about.
func (s *stage) say(who, format string, args ...any) {
	step := Step{At: math.Round(time.Since(s.start).Seconds()*1000) / 1000, Who: who, What: fmt.Sprintf(format, args...)}
	s.report.Steps = append(s.report.Steps, step)
	what, words, _ := strings.Cut(step.What, "\n")
	s.print("%6.2f s  %-8s %s\n", step.At, who, what)
	s.indented(words)
}

// proved adds to the last step what is known for sure by it.
func (s *stage) proved(format string, args ...any) {
	last := &s.report.Steps[len(s.report.Steps)-1]
	last.Proved = fmt.Sprintf(format, args...)
	s.indented("✓ " + last.Proved)
}

// indented writes text below a step, in lines that fit a terminal.
func (s *stage) indented(text string) {
	const indent, width = 19, 100
	for text != "" {
		line := text
		if len(line) > width {
			line = line[:width]
			if at := strings.LastIndexAny(line, " ,"); at > 0 {
				line = line[:at+1]
			}
		}
		s.print("%*s%s\n", indent, "", strings.TrimSpace(line))
		text = text[len(line):]
	}
}

// print writes for people; a terminal that is gone ends the demonstration by its signal.
func (s *stage) print(format string, args ...any) { fmt.Fprintf(s.Out, format, args...) }
