package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"birthmark/internal/lab/board"
	"birthmark/internal/lab/sign"
	"birthmark/pkg/fota"
)

var (
	firstRelease = fota.Version{Major: 1, Security: 1}
	nextRelease  = fota.Version{Major: 1, Minor: 1, Security: 2}
	oldRelease   = fota.Version{Major: 1, Patch: 9, Security: 2}
	badRelease   = fota.Version{Major: 1, Minor: 2, Security: 2}
)

// firmware shows an update that goes well, bundles that are refused, and a release that
// is not good.
func (s *stage) firmware(ctx context.Context) error {
	s.updating = true
	defer func() { s.updating = false }()
	before := s.seen.online
	s.print("\nAn update of the firmware, %s to %s, on a board in a folder: firmware, boot loader and kernel are\n"+
		"played, the agent and the installer are not:\n\n", firstRelease, nextRelease)
	if err := s.goodUpdate(ctx, before); err != nil {
		return err
	}
	s.print("\nFour bundles that must be refused:\n\n")
	if err := s.refusedBundles(ctx); err != nil {
		return err
	}
	s.print("\nA release that is signed, and does not work:\n\n")
	return s.badUpdate(ctx, before)
}

// ship builds and signs a release, and says so.
func (s *stage) ship(ctx context.Context, v fota.Version, more map[string]board.File) (name string, err error) {
	i, err := s.desk.build(ctx, v, more)
	if err != nil {
		return "", err
	}
	name = v.String() + ".raucb"
	record, err := s.desk.ship(ctx, i, s.desk.signer, name)
	if err != nil {
		return "", err
	}
	s.say("maker", "signs %s with rauc bundle, as %q: %d bytes", name, record.Signer.Subject, record.Bundle.Size)
	return name, nil
}

// install asks the device for a bundle of the server, and to restart for it.
func (s *stage) install(ctx context.Context, name string) (exit int, said string, err error) {
	return s.ask(ctx, "firmware", "install", s.desk.url+name, "--reboot")
}

func (s *stage) goodUpdate(ctx context.Context, before online) error {
	name, err := s.ship(ctx, nextRelease, nil)
	if err != nil {
		return err
	}
	s.say("lab", "has it at %s, for who has a certificate of the owner", s.desk.url)
	if exit, said, err := s.install(ctx, name); err != nil || exit != 0 {
		return errors.Join(err, fmt.Errorf("the device did not install %s: exit code %d, %s", name, exit, said))
	}
	if who := s.desk.client.Load(); who == nil || *who != deviceID {
		return fmt.Errorf("the bundle was fetched by %v, want %s", who, deviceID)
	}
	if err := s.settled(ctx, nextRelease); err != nil {
		return err
	}
	if last := s.seen.updates[len(s.seen.updates)-1]; last.Outcome != "installed" {
		return fmt.Errorf("the broker heard of %s that it is %s", nextRelease, last)
	}
	if want := fmt.Sprint(nextRelease.Security); s.seen.floor != want {
		return fmt.Errorf("the floor is %q, want %s", s.seen.floor, want)
	}
	return errors.Join(s.wantStarts(2), s.sameDevice(ctx, nextRelease, before))
}

// settled waits until the broker has heard how an update ended.
func (s *stage) settled(ctx context.Context, v fota.Version) error {
	return s.follow(ctx, "the end of the update to "+v.String(), func() bool {
		return slices.ContainsFunc(s.seen.updates, func(u updated) bool { return u.Version == v.String() && u.Phase == "settled" })
	})
}

// sameDevice holds that a release runs, by what the broker heard and the device says, with
// the identity of before.
func (s *stage) sameDevice(ctx context.Context, v fota.Version, before online) error {
	err := s.follow(ctx, v.String()+" at the broker", func() bool { return s.seen.online.Online && s.seen.online.Firmware == v.String() })
	if err != nil {
		return err
	}
	after := s.seen.online
	s.say("broker", "has the device online, with the firmware %s", after.Firmware)
	if after.Cert.Serial != before.Cert.Serial || after.Cert.Serial == "" || s.seen.ek != s.seen.ekNow {
		return fmt.Errorf("the device has another identity: certificate %s, EK %s; it had %s, %s", after.Cert.Serial, s.seen.ekNow, before.Cert.Serial, s.seen.ek)
	}
	s.proved("the same TPM, and the same certificate, serial %s", after.Cert.Serial)
	if said, err := s.running(ctx); err != nil || said != v.String() {
		return errors.Join(err, fmt.Errorf("birthmark firmware status says that %q runs, want %s", said, v))
	}
	entries, err := s.device.Entries()
	if err != nil || !slices.Contains(entries, fmt.Sprintf("%s_%s+3.efi", product, v)) {
		return errors.Join(err, fmt.Errorf("%s is not blessed: there are %q", v, entries))
	}
	return nil
}

// running is what runs, as the device says.
func (s *stage) running(ctx context.Context) (string, error) {
	text, err := s.device.Command(ctx, "firmware", "status", "--json").Output()
	var said struct{ Running string }
	if err == nil {
		err = json.Unmarshal(text, &said)
	}
	return said.Running, err
}

// refusedBundles lays out bundles that are wrong, each in its way.
func (s *stage) refusedBundles(ctx context.Context) error {
	good := nextRelease.String() + ".raucb"
	next := nextRelease
	next.Patch = 1
	i, err := s.desk.build(ctx, next, nil)
	if err != nil {
		return err
	}
	old, err := s.desk.build(ctx, oldRelease, nil)
	if err != nil {
		return err
	}
	foreign, err := sign.Lab(filepath.Join(s.dir, "foreign"))
	if err != nil {
		return err
	}
	_, errForeign := s.desk.ship(ctx, i, foreign, "foreign.raucb")
	_, errOld := s.desk.ship(ctx, old, s.desk.signer, "old.raucb")
	_, errNext := s.desk.ship(ctx, i, s.desk.signer, "next.raucb")
	if err := errors.Join(errForeign, errOld, errNext,
		s.desk.spoil(good, "truncated.raucb", func(b []byte) []byte { return b[:len(b)/2] }),
		s.desk.spoil("next.raucb", "tampered.raucb", func(b []byte) []byte { b[len(b)/2] ^= 1; return b }),
	); err != nil {
		return err
	}
	before, err := s.device.Entries()
	if err != nil {
		return err
	}
	for _, r := range []struct {
		tried, name string
		want        string // stages at which it is refused
	}{
		{"one of which half has arrived", "truncated.raucb", "container: "},
		{"one that somebody else has signed", "foreign.raucb", "chain: "},
		{fmt.Sprintf("one that is older than what runs, %s", oldRelease), "old.raucb", "policy: "},
		{"one in which one bit is another", "tampered.raucb", "payload: "},
	} {
		exit, said, err := s.install(ctx, r.name)
		if err != nil {
			return fmt.Errorf("cannot try %s: %w", r.tried, err)
		}
		s.report.Refusals = append(s.report.Refusals, Refusal{r.tried, exit, said})
		s.say("refused", "%s: exit code %d\n%s", r.tried, exit, said)
		if exit != 1 || !strings.HasPrefix(said, "birthmark: "+r.want) {
			return fmt.Errorf("%s was not refused as it must be, with exit code 1 and %q", r.tried, r.want)
		}
		// Of what was there, only the release to fall back to may be gone: its slot was
		// written to.
		after, err := s.device.Entries()
		if err != nil || slices.ContainsFunc(after, func(e string) bool { return !slices.Contains(before, e) }) {
			return errors.Join(err, fmt.Errorf("after %s there is %q, and was %q", r.tried, after, before))
		}
	}
	if said, err := s.running(ctx); err != nil || said != nextRelease.String() {
		return errors.Join(err, fmt.Errorf("after all this %q runs, want %s", said, nextRelease))
	}
	s.proved("after all four %s runs, nothing was added to what can be started, and the device was not restarted", nextRelease)
	return s.wantStarts(2)
}

// complaint is what the health check of the bad release writes.
const complaint = "the pump does not answer"

func (s *stage) badUpdate(ctx context.Context, before online) error {
	name, err := s.ship(ctx, badRelease, map[string]board.File{
		"etc/birthmark/health.d/10-pump": {Text: []byte("#!/bin/sh\necho " + complaint + "\nexit 1\n"), Mode: 0o755}})
	if err != nil {
		return err
	}
	if exit, said, err := s.install(ctx, name); err != nil || exit != 0 {
		return errors.Join(err, fmt.Errorf("the device did not install %s: exit code %d, %s", name, exit, said))
	}
	if err := s.settled(ctx, badRelease); err != nil {
		return err
	}
	last := s.seen.updates[len(s.seen.updates)-1]
	if last.Outcome != "rolled-back" || !strings.Contains(last.Why.Reason, complaint) {
		return fmt.Errorf("the broker heard of %s that it is %s", badRelease, last)
	}
	return errors.Join(s.wantStarts(6), s.sameDevice(ctx, nextRelease, before))
}

// wantStarts holds how often the board was started in all.
func (s *stage) wantStarts(n int) error {
	if s.seen.starts != n {
		return fmt.Errorf("the board was started %d times, want %d", s.seen.starts, n)
	}
	return nil
}

// Updated is what the owner is told of an update.
type updated struct {
	Phase, Version, Outcome string
	Why                     struct{ Stage, Reason string }
}

func (u updated) String() string {
	text := u.Version + " " + u.Phase
	if u.Outcome != "" {
		text += ", " + u.Outcome
	}
	if u.Why.Reason != "" {
		text += ":\n"
		if u.Why.Stage != "" {
			text += u.Why.Stage + ": "
		}
		text += u.Why.Reason
	}
	return text
}

// started puts a start of the board on the timeline.
func (s *stage) started(start board.Start) {
	s.seen.starts++
	if !s.updating {
		return
	}
	if start.Err != nil {
		s.say("board", "starts %s: %v", start.Entry, start.Err)
		return
	}
	s.say("board", "starts %s, and with it %s", start.Entry, start.Slot)
	if !s.seen.verified {
		s.seen.verified = true
		s.proved("the firmware has found the key in db that signed the one, and the kernel every hash of the other")
	}
}

// update puts what the agent logs of an update on the timeline.
func (s *stage) update(e entry) {
	now := e.text("phase") + " " + e.text("version")
	switch {
	case e.text("msg") == "root of trust open":
		s.seen.ekNow = e.text("ek")
	case e.text("msg") != "firmware update" || now == s.seen.phase:
	case e.text("phase") == "writing":
		s.say("device", "has verified who signed %s, and that it wants it, and writes it", e.text("version"))
	case e.text("phase") == "trial":
		s.say("device", "has %s on trial", e.text("version"))
	}
	if e.text("msg") == "firmware update" {
		s.seen.phase = now
	}
}

// installed puts what the installer logs on the timeline.
func (s *stage) installed(e entry) {
	switch {
	case e.text("msg") == "the floor was raised":
		s.seen.floor = e.text("floor")
		if s.seen.floor == fmt.Sprint(nextRelease.Security) {
			s.say("device", "has found it good, and raises the floor in its TPM to %s: no older security version runs again", s.seen.floor)
		}
	case !s.updating || e.text("msg") != "a request was fulfilled":
	case e.text("verb") == "install":
		s.say("device", "has it in the other slot: its installer has verified every byte, written it and read it back")
	case e.text("verb") == "arm":
		s.say("device", "has three tries for it, and restarts")
	}
}

// health puts what the health checks say on the timeline.
func (s *stage) health(line string) {
	if s.updating && strings.Contains(line, "check") { // or nobody has asked
		s.say("device", "says of its health: %s", strings.TrimPrefix(line, "birthmark: "))
	}
}

// hearUpdate puts what the broker heard of an update on the timeline.
func (s *stage) hearUpdate(m message) {
	var event struct {
		Type string
		Data json.RawMessage
	}
	if json.Unmarshal(m.payload, &event) != nil {
		return
	}
	switch event.Type {
	case "birthmark.firmware-progress":
		var p struct{ Done, Total int64 }
		if json.Unmarshal(event.Data, &p) == nil && p.Total > 0 {
			s.say("broker", "hears on %s: %d %%, %d of %d bytes", m.topic, 100*p.Done/p.Total, p.Done, p.Total)
		}
	case "birthmark.firmware":
		var u updated
		if json.Unmarshal(event.Data, &u) != nil || u.Phase == "" {
			return
		}
		if n := len(s.seen.updates); n > 0 && s.seen.updates[n-1] == u {
			return
		}
		s.seen.updates = append(s.seen.updates, u)
		s.say("broker", "hears on %s: %s", m.topic, u)
	}
}
