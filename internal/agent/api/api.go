// Package api is the doors of a device: Unix sockets at which the agent answers
// programs that run beside it, in HTTP/1.1 and JSON.
//
//	status.sock      everybody                  GET  /v1/status
//	control.sock     group birthmark-admin      GET  /v1/status
//	                                            GET  /v1/metrics
//	                                            GET  /v1/doctor
//	                                            POST /v1/firmware/install
//	                                            POST /v1/firmware/verdict
//	telemetry.sock   group birthmark-telemetry  POST /v1/tele/NAME
//	                                            POST /v1/tele/NAME?durable
//
// Who may come in is decided by the file of the socket alone, its group and its
// mode. The user at the other end is not asked for: in a user namespace of its own
// (PrivateUsers= of systemd) the agent sees strangers only. Where a group does not
// exist, or the agent may not give a file to it, the socket is for the agent's own
// user, and for root. A service manager can make the sockets instead, with the groups
// that it is told, and give them to the agent. docs/decisions/004-a-door-for-everybody.md says why status has
// a socket of its own.
//
// # Messages of local programs
//
// POST /v1/tele/NAME takes one JSON object, at most 16 KiB and 16 levels deep,
// without a member "seq", and puts it on the way to the owner's broker as telemetry
// of that NAME: 1 to 64 of A-Z a-z 0-9 _ -, but not "system", which is the agent's
// own. With ?durable it is on disk before the answer. Answers:
//
//	202  taken
//	400  not such an object, or not such a name
//	413  larger than that
//	429  too many: 10 a second, of which 1 durable, after a burst; Retry-After says when
//	507  no room: on disk, for more durable messages, or for one more name
//
// # Orders
//
// POST /v1/firmware/install takes an [Install], as `birthmark firmware install` sends it,
// and POST /v1/firmware/verdict a [Verdict], as `birthmark health` does: one JSON object
// of at most 8 KiB, without a member that is not known. 202 says that it is taken, and
// what is going on is part of the status; an answer that says no is a [Refusal]. It comes
// within 15 s.
//
// Everything else that goes wrong is answered like a web server would, with an
// object {"error": "…"} from us or with plain text from net/http.
//
// # Bounds
//
// A door serves 16 connections at a time; further ones wait in the kernel's queue,
// which has an end, too. A connection carries one request, which must be there
// within 5 s, and is over within half a minute. A header has at most 8 KiB. So whoever may
// come in can keep others waiting, at this one door, and cannot make the agent
// large or slow.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"birthmark/internal/metrics"
)

// The names of the sockets.
const (
	Status    = "status.sock"
	Control   = "control.sock"
	Telemetry = "telemetry.sock"
)

// An Agent is who is behind the doors. Its methods may be called at the same time.
type Agent struct {
	Status  func() any                // becomes JSON
	Doctor  func(context.Context) any // the same; may take some seconds
	Metrics func() ([]byte, error)    // text for Prometheus
	Tell    func(Message) error       // its errors: ErrNoRoom, or any other
	// Install and Judge take orders, or say why not, as a *Refusal. Install tells the
	// version of the bundle.
	Install func(context.Context, Install) (string, error)
	Judge   func(Verdict) error
}

// A Message comes from a local program.
type Message struct {
	Name    string
	Object  []byte // JSON
	Durable bool
}

// ErrNoRoom is what Agent.Tell returns when it has no room for a message.
var ErrNoRoom = errors.New("no room")

// Doors are open until they are closed.
type Doors struct {
	agent   Agent
	log     *slog.Logger
	sockets []*socket
	servers []*http.Server
	doctor  chan struct{} // holds an entry while the doctor is in
}

// Open opens all doors in folder, which it makes if it is not there. Those that
// could be opened are open even if there is an error. A door that somebody else has
// made is in given by the name of its socket, and stays his: who may come in is his
// business, and so is its file.
func Open(folder string, given map[string]net.Listener, agent Agent, log *slog.Logger) (*Doors, error) {
	d := &Doors{agent: agent, log: log, doctor: make(chan struct{}, 1)}
	makeFolder := sync.OnceValue(func() error { return makeFolder(folder) })
	var errs []error
	for _, door := range []struct {
		name, group string
		handler     http.Handler
	}{
		{Status, everybody, gets{"/v1/status": d.status}},
		{Control, "birthmark-admin", orders{
			orders: map[string]func(context.Context, []byte) (any, error){"/v1/firmware/install": d.install, "/v1/firmware/verdict": d.judge},
			others: gets{"/v1/status": d.status, "/v1/metrics": d.metrics, "/v1/doctor": d.examine},
		}},
		{Telemetry, "birthmark-telemetry", newTeller(agent.Tell)},
	} {
		if l := given[door.name]; l != nil {
			log.Info("door open", "path", l.Addr().String(), "for", "whom its maker lets in")
			d.servers = append(d.servers, serve(l, door.handler, log))
			continue
		}
		if err := makeFolder(); err != nil {
			errs = []error{err} // the same for every door
			continue
		}
		s, err := listen(filepath.Join(folder, door.name), door.group)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		log.Info("door open", "path", s.path, "for", s.who)
		d.sockets = append(d.sockets, s)
		d.servers = append(d.servers, serve(s, door.handler, log))
	}
	return d, errors.Join(errs...)
}

// Close closes the doors at once, in the middle of an answer if need be, and removes
// their sockets.
func (d *Doors) Close() error {
	var errs []error
	for _, s := range d.servers {
		errs = append(errs, s.Close())
	}
	for _, s := range d.sockets {
		if err := s.remove(); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (d *Doors) status(context.Context) (string, []byte, error) { return inJSON(d.agent.Status()) }

func (d *Doors) metrics(context.Context) (string, []byte, error) {
	text, err := d.agent.Metrics()
	return metrics.ContentType, text, err
}

// examine has one doctor at a time: he uses the TPM and the network.
func (d *Doors) examine(ctx context.Context) (string, []byte, error) {
	select {
	case d.doctor <- struct{}{}:
		defer func() { <-d.doctor }()
	case <-ctx.Done():
		return "", nil, ctx.Err()
	}
	return inJSON(d.agent.Doctor(ctx))
}

func inJSON(v any) (string, []byte, error) {
	body, err := json.Marshal(v)
	return "application/json", append(body, '\n'), err
}
