// Package installer is the root side of an update: what may write a slot of the disk
// and say what starts next, behind a socket that only the agent's user and root may use.
//
// The agent has the network and no rights, the installer has rights and no network. It
// is the client of a source of bytes that it does not believe: the agent says where a
// bundle is, and is asked for its bytes; who signed them, whether this device wants
// them, and what they do to the disk is found out here, from what only root can write.
// What the agent has verified before, it has verified for itself.
//
// # Conversation
//
// A [Server] is started by systemd when somebody connects, and ends when nobody has come
// for a while. A connection is for one request, a line of JSON of at most 4 KiB:
//
//	{"verb":"status"}                        →  {"status":{"version":"0.4.0","protocol":1,…}}
//	{"verb":"install","size":138384}         →  …  {"written":{"version":"1.1.0+sv2","root":"5f…"}}
//	{"verb":"install"}, and a descriptor     →  …  {"written":{…}}
//	{"verb":"arm","version":"1.1.0+sv2"}     →  {"done":"arm"}
//	{"verb":"bless"}                         →  {"done":"bless"}
//	{"verb":"cancel"}                        →  {"done":"cancel"}
//	{"verb":"permit"}, and a descriptor      →  {"done":"permit"}
//
// A request ends with one of these lines, or with one of
//
//	{"refused":{"stage":"policy","code":"downgrade","reason":"…"}}    a [fota.Refusal]
//	{"busy":"install"}                                                [ErrBusy]
//	{"error":"…"}                                                     trouble: it may go well another time
//
// While a bundle is installed the installer asks for bytes, at most 1 MiB at once, and
// tells how far it is. The peer replies to each ask, and says nothing else:
//
//	{"read":{"offset":4096,"length":131072}}  →  {"length":131072} and 131072 bytes, or {"error":"…"}
//	{"progress":{"done":131072,"total":1048576}}
//
// The descriptor (SCM_RIGHTS, unix(7)) is of a regular file that was opened for reading;
// its size is taken, and nothing is asked.
//
// # What is promised
//
// There is one install at a time; who asks for another is told. Status is answered
// meanwhile. A peer who hangs up, speaks without being asked, replies with something
// else than he was asked for, or too slowly, ends his install.
//
// A bundle is verified once, while it is used: [bundle.Open] and [bundle.Bundle.CopyImage]
// hash what they read before they use it. Anchors, issuing CAs and CRLs are files in the
// folders of [Server.Trust], read for each install: anchors.pem and signing-cas.pem of the
// first that has them, crls.pem of all, since a CRL can only take away. Who has none of one
// of them trusts nobody. What must be remembered is in the folder
// [Server.State], on the medium before it is needed: the number of the newest CRL of each
// CA, below which none is accepted again, and which release the last install has
// finished. A file there that is damaged is set aside, and told in the status.
//
// Arm arms nothing but the release that the last install has finished. Whatever begins to
// write a slot makes that "none" first.
//
// The floor under security versions is a counter of [Server.Chip], and nobody's word. It
// goes up to what runs, after Bless has made that what the device starts from now on, and
// never before, so it is not above what runs unless somebody else moved it, or the boot
// loader fell back to an older release: such a device goes on as it is, and installs
// nothing below the floor. The counter moves between two writes of what is remembered, one
// that says where to and one that says that it is there; what was cut off in between is
// done when the next Server starts, or at the next bless. A chip that was cleared, or set
// back, gets back what is remembered, or what runs if that is higher. While the chip cannot be asked, or is
// another one, nothing is installed or armed; bless still blesses.
//
// A release that is older than what runs is taken if the owner has signed a permit for it
// ([permit.Permit]), and not below the floor. The installer keeps the last one, and verifies
// it each time by the files in the folder owner of each in [Server.Trust].
//
// The peer is who the kernel says (SO_PEERCRED), so a Server must not be in a user
// namespace of its own. A line that has a member which is not known, or one twice, is
// refused; a peer who may not ask is told so before anything of his is read.
package installer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"birthmark/pkg/clock"
	"birthmark/pkg/fota"
	"birthmark/pkg/rot"
	"birthmark/pkg/store"
)

// Protocol is the version of what is spoken at the socket.
const Protocol = 1

// connectionsLimit is how many connections are served at once; others wait.
const connectionsLimit = 8

// A Server answers the agent.
type Server struct {
	Version string        // of this program
	Users   []uint32      // who may ask, besides root
	Idle    time.Duration // Serve ends when nobody has come for so long
	Log     *slog.Logger

	Boot  fota.Installer // nil if the device has no boot loader that it could be for
	Trust []string       // folders with anchors.pem, signing-cas.pem and crls.pem
	Grace time.Duration  // that a CRL is good for longer than it says
	Clock *clock.Clock
	State string // the folder of what is remembered; nobody else's
	// Chip opens what holds the floor; known is who did so before, the zero Identity if
	// nobody. Its errors are those of package rot. Nil where there is nothing to be lost,
	// as in a demonstration: then the floor is remembered only.
	Chip func(ctx context.Context, known rot.Identity) (Chip, error)

	memory *store.Store[memory] // nil if it cannot be used
	floor  floor                // of who has Boot
	hear   func(ctx context.Context, p *peer, size int64) *remote

	mu     sync.Mutex   // for what follows, and for Boot while doing is nil
	doing  *Doing       // what has Boot for itself; nil if nothing has
	device *fota.Status // as it was when Boot was asked last
}

// Serve answers at l until nobody has come for a while or ctx ends; both are no error.
// It closes l, and may be called once.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer s.remember()()
	s.catchUp(ctx)
	serving, cancel := context.WithCancel(ctx)
	var answering sync.WaitGroup
	defer answering.Wait()
	defer cancel()
	places := make(chan struct{}, connectionsLimit)
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		if err := l.SetDeadline(time.Now().Add(s.Idle)); err != nil && ctx.Err() == nil {
			return err
		}
		c, err := l.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded) && len(places) > 1:
			<-places // somebody is still here
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return fmt.Errorf("cannot take a connection: %w", err)
		}
		answering.Go(func() {
			defer func() { <-places }()
			s.answer(serving, c)
		})
	}
}

// answer serves one connection.
func (s *Server) answer(ctx context.Context, c *net.UnixConn) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	p, err := newPeer(c)
	if err != nil {
		s.Log.Warn("a request was not answered", "err", err)
		return
	}
	defer p.inbox.close()
	last, err := s.decide(ctx, p)
	if err != nil {
		s.Log.Warn("a request was refused", "user", p.uid, "err", err)
		last = failed(err)
	}
	if err := p.tell(last); err != nil && ctx.Err() == nil {
		s.Log.Warn("an answer was not taken", "user", p.uid, "err", err)
	}
}

// errNoLoader is for good, as a refusal is.
var errNoLoader = fota.Refuse(fota.StageBoot, "loader", "this device has no boot loader that this version can handle")

// decide reads the request of who may make one, does it, and returns the last line.
func (s *Server) decide(ctx context.Context, p *peer) (answer, error) {
	if !s.may(p.uid) {
		return answer{}, fmt.Errorf("user %d may not ask", p.uid)
	}
	r, file, err := p.request()
	if err != nil {
		return answer{}, err
	}
	if file != nil {
		defer file.Close()
	}
	do := map[string]func() (answer, error){
		"install": func() (answer, error) { return s.install(ctx, p, r, file) },
		"arm":     func() (answer, error) { return answer{Done: r.verb}, s.arm(ctx, *r.version) },
		"bless":   func() (answer, error) { return answer{Done: r.verb}, s.bless(ctx) },
		"permit":  func() (answer, error) { return answer{Done: r.verb}, s.takePermit(ctx, file) },
		"cancel":  func() (answer, error) { return answer{Done: r.verb}, s.cancel(ctx) },
	}[r.verb]
	switch {
	case r.verb == "status":
		return answer{Status: s.status(ctx)}, nil
	case do == nil:
		return answer{}, fmt.Errorf("no verb %.20q is known", r.verb)
	case s.Boot == nil:
		return answer{}, errNoLoader
	}
	if err := s.begin(r.verb); err != nil {
		return answer{}, err
	}
	defer s.end()
	last, err := do()
	if err == nil {
		s.Log.Info("a request was fulfilled", "user", p.uid, "verb", r.verb)
	}
	return last, err
}

// may says whether a user may ask.
func (s *Server) may(uid uint32) bool { return uid == 0 || slices.Contains(s.Users, uid) }

// ErrBusy: something else is being done, and only status is answered.
var ErrBusy = errors.New("the installer is busy")

type busyError struct{ verb string }

func (e *busyError) Error() string        { return ErrBusy.Error() + " with " + e.verb }
func (e *busyError) Is(target error) bool { return target == ErrBusy }

// begin takes Boot for a verb that changes something, until end.
func (s *Server) begin(verb string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.doing != nil {
		return &busyError{s.doing.Verb}
	}
	s.doing = &Doing{Verb: verb}
	return nil
}

func (s *Server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doing = nil
}

// look asks Boot, and how high the floor is, for whoever has Boot.
func (s *Server) look(ctx context.Context) (fota.Status, error) {
	device, err := s.Boot.Status(ctx)
	if err != nil {
		return device, fmt.Errorf("cannot tell how things are: %w", err)
	}
	if err := s.stand(ctx, &device); err != nil && !errors.Is(err, rot.ErrCleared) {
		return device, err
	}
	s.allow(&device)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.device = &device
	return device, nil
}

// status never fails: what cannot be told is a note.
func (s *Server) status(ctx context.Context) *Status {
	st := &Status{Version: s.Version, Protocol: Protocol}
	note := func(text string) {
		if len(st.Notes) < notesLimit {
			st.Notes = append(st.Notes, printable(text))
		}
	}
	if s.memory == nil {
		note("nothing can be remembered: see the log")
	} else {
		if staged := s.memory.Get().Staged; staged != nil {
			st.Staged = &staged.Release
		}
		if damaged := s.memory.Damaged(); damaged != "" {
			note("what was remembered is damaged, and was set aside as " + damaged)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.Boot == nil:
		note(errNoLoader.Error())
	case s.doing != nil:
		doing := *s.doing
		st.Doing = &doing
	default:
		device, err := s.Boot.Status(ctx)
		if err != nil {
			note("cannot tell how things are: " + err.Error())
			s.device = nil
			break
		}
		err = s.stand(ctx, &device)
		s.allow(&device)
		device.Notes = append(s.floorNotes(device, err), device.Notes...)
		s.device = &device
	}
	if s.device != nil {
		device := *s.device
		device.Notes = nil
		for _, text := range s.device.Notes {
			note(text)
		}
		st.Device = &device
	}
	return st
}

// arm lets the next starts try what install has finished, and nothing else.
func (s *Server) arm(ctx context.Context, v fota.Version) error {
	if s.memory == nil {
		return errForgetful
	}
	staged := s.memory.Get().Staged
	if staged == nil || staged.Manifest == nil || staged.Version != v {
		return fota.Refuse(fota.StageBoot, "staged", "%v is not what was installed last", v)
	}
	device, err := s.look(ctx)
	if err != nil {
		return err
	}
	if o := device.Other; o.Version != v || o.Mark != fota.Staged && o.Mark != fota.Armed {
		return fota.Refuse(fota.StageBoot, "staged", "%v was installed, but is not ready to start any more", v)
	}
	// The floor may have gone up since, and the owner's permit be over.
	if err := device.Policy().Check(staged.Manifest); err != nil {
		return err
	}
	return s.Boot.Arm(ctx, staged.Manifest)
}

// cancel takes back what install and arm did.
func (s *Server) cancel(ctx context.Context) error {
	var err error
	if s.memory != nil {
		err = s.memory.Update(func(m *memory) error { m.Staged = nil; return nil })
	}
	return errors.Join(err, s.Boot.Cancel(ctx))
}

// progressEvery is how often, at most, a peer is told how far an install is.
const progressEvery = time.Second / 2

// progress tells status, and the peer, how far an install is.
func (s *Server) progress(p *peer) func(done, total int64) {
	var next time.Time
	return func(done, total int64) {
		s.mu.Lock()
		s.doing.Done, s.doing.Total = done, total
		now := time.Now()
		tell := done == total || now.After(next)
		if tell {
			next = now.Add(progressEvery)
		}
		s.mu.Unlock()
		if tell {
			_ = p.tell(answer{Progress: &progress{done, total}}) // who is gone is noticed otherwise
		}
	}
}
