package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"birthmark/internal/lab/board"
	"birthmark/internal/sysroot"
)

// A device is a board that runs.
type device struct {
	*board.Board
	off   context.CancelFunc
	ended chan error
}

// An entry is one line of the log of the agent or the installer.
type entry map[string]any

func (e entry) text(key string) string {
	if v, ok := e[key]; ok {
		return fmt.Sprint(v)
	}
	return ""
}

// deviceID is its name for life.
const deviceID = "sensor-1"

// boot makes a board with the first release, the one-time password that the factory
// gave it, and nothing in its memory, and powers it on.
func (s *stage) boot(ctx context.Context) (*device, error) {
	password, err := s.lab.NewPassword("maker", deviceID)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(s.dir, "password")
	if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
		return nil, err
	}
	conf := board.Config{Dir: filepath.Join(s.dir, "board"), DB: s.desk.secureBoot, TPM: s.tpm.Address(), Conf: s.configFile(), Env: []string{
		"BIRTHMARK_DEVICE__ID=" + deviceID,
		"BIRTHMARK_BIRTH__PASSWORD_FILE=" + file,
		"BIRTHMARK_FIRMWARE__SERVER_ANCHORS=" + filepath.Join(s.lab.Dir(), "device", "owner-root.pem"),
		"BIRTHMARK_FIRMWARE__BYTES_PER_SECOND=" + strconv.Itoa(downloadRate),
	}}
	if s.Nonce != "" {
		conf.Env = append(conf.Env, "BIRTHMARK_TELEMETRY__LABELS=nonce="+s.Nonce)
	}
	first, err := s.desk.build(ctx, firstRelease, nil)
	if err != nil {
		return nil, err
	}
	on, off := context.WithCancel(ctx)
	conf.Log = func(program, line string) { s.post(on, func() { s.read(program, line) }) }
	conf.Started = func(start board.Start) { s.post(on, func() { s.started(start) }) }
	conf.Exited = func(program string, code int) {
		s.post(on, func() {
			if program == "agent" {
				s.fault = fmt.Errorf("the agent ended by itself, with exit code %d: %s", code, s.trouble)
			}
		})
	}
	b, err := board.New(conf, first)
	if err != nil {
		off()
		return nil, err
	}
	s.say("factory", "gives the device %s its image, %s, both CAs' addresses and roots, and a one-time password", deviceID, firstRelease)
	s.print("\n")
	s.report.Device = deviceID
	d := &device{b, off, make(chan error, 1)}
	go func() {
		err := b.Run(on)
		s.post(on, func() { s.fault = fmt.Errorf("the board does not run any more: %w", err) })
		d.ended <- err
	}()
	return d, nil
}

func (s *stage) configFile() string { return filepath.Join(s.lab.Dir(), "device", "birthmark.toml") }

// stop powers the device off, in good order.
func (d *device) stop() {
	d.off()
	<-d.ended
}

// post lets something that befell be looked at on the stage.
func (s *stage) post(ctx context.Context, look func()) {
	select {
	case s.events <- look:
	case <-ctx.Done():
	}
}

// follow looks at what befalls until there was enough of it.
func (s *stage) follow(ctx context.Context, what string, enough func() bool) error {
	late := time.After(patience)
	for !enough() {
		select {
		case look := <-s.events:
			if look(); s.fault != nil {
				return s.fault
			}
		case <-late:
			return fmt.Errorf("%s: not within %v: %s", what, patience, s.trouble)
		case <-ctx.Done():
			return fmt.Errorf("stopped before the end: %s", what)
		}
	}
	return nil
}

// watchLife shows a life from blank to the first telemetry, as the device and the
// broker tell it: either may be the first to speak.
func (s *stage) watchLife(ctx context.Context) error {
	return s.follow(ctx, "the first telemetry", func() bool { return s.seen.connected && s.report.Telemetry != nil })
}

// read puts what a program of the device has written on the timeline.
func (s *stage) read(program, line string) {
	var e entry
	switch {
	case program == "health":
		s.health(line)
	case json.Unmarshal([]byte(line), &e) != nil:
		s.trouble = line // its last words
	case program == "installer":
		s.installed(e)
	case e.text("level") != "INFO" && e.text("msg") != sysroot.Played:
		s.trouble = strings.Join(strings.Fields(e.text("msg")+" "+e.text("err")+" "+e.text("next")), " ")
		if !s.updating {
			s.say("device", "trouble: %s", s.trouble)
		}
	default:
		s.show(e)
	}
}

// show puts what the agent logs on the timeline.
func (s *stage) show(e entry) {
	if s.updating {
		s.update(e)
		return
	}
	switch e.text("msg") {
	case "root of trust open":
		s.seen.ek = e.text("ek")
		s.say("device", "boots for the first time, with a TPM %q whose EK is %.16s…", e.text("vendor"), e.text("ek"))
		if e.text("ek_certificate") == "true" {
			s.proved("the chip maker's certificate in the TPM is for that EK")
		}
	case "IDevID is in the root of trust":
		s.say("device", "makes its IDevID key, for life, inside the TPM")
		s.proved("the TPM says of it: %s", e.text("protected"))
	case "LDevID made in the root of trust":
		s.say("device", "makes an LDevID key, for every day, inside the TPM (%s)", e.text("algorithm"))
		s.proved("the TPM says of it: %s", e.text("protected"))
	case "certificate accepted":
		who, what := "owner", "LDevID"
		if e.text("issued_for") == "IDevID" {
			who, what = "maker", "IDevID"
		}
		s.say(who, "issues the %s certificate %s, serial %s, until %.10s", what, e.text("subject"), e.text("serial"), e.text("until"))
		s.proved("what the key in the TPM signs verifies under it, and its chain leads to the %s's root", who)
	case "state changed":
		s.say("device", "was %s, and now is %s", e.text("from"), strings.ToUpper(e.text("to")))
		s.print("\n")
	case "session with the broker":
		s.seen.connected = true
		s.say("device", "is connected to the broker over mutual TLS, session %s", e.text("session"))
		s.proved("its client id is the common name of its certificate, or the broker would not have it")
	}
}

// hear puts what the broker got on the timeline.
func (s *stage) hear(m message) {
	var state online
	if strings.HasSuffix(m.topic, "/state") && json.Unmarshal(m.payload, &state) == nil {
		s.seen.online = state
		if !s.updating {
			s.say("broker", "hears on %s: online %t, session %d", m.topic, state.Online, state.Session)
		}
		return
	}
	if s.updating {
		s.hearUpdate(m)
		return
	}
	s.say("broker", "hears on %s:\n%s", m.topic, m.payload)
	if strings.HasSuffix(m.topic, "/tele/system") && s.report.Telemetry == nil {
		s.report.Topic, s.report.Telemetry = m.topic, m.payload
	}
}

// Online is what a device says of itself when it comes, and its will when it goes.
type online struct {
	Online   bool
	Session  int
	Firmware string `json:"fw"`
	Cert     struct{ Serial string }
}

// watchService shows telemetry until ctx ends.
func (s *stage) watchService(ctx context.Context) error {
	for {
		select {
		case look := <-s.events:
			if look(); s.fault != nil {
				return s.fault
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// ask runs a command on the device to its end, while what befalls is looked at, and
// returns its exit code and its last line.
func (s *stage) ask(ctx context.Context, verb string, args ...string) (exit int, said string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	over := false
	go func() {
		code, line, failed := toEnd(s.device.Command(ctx, verb, args...))
		s.post(ctx, func() { over, exit, said, err = true, code, line, failed })
	}()
	if late := s.follow(ctx, "birthmark "+verb+" "+strings.Join(args, " "), func() bool { return over }); late != nil {
		return 0, "", late
	}
	return exit, said, errors.Join(err, ctx.Err())
}
