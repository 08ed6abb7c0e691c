// Package installer is the root side of an update: what may write a slot of the disk,
// behind a socket that only the agent's user and root may use.
//
// The agent has the network and no rights, the installer has rights and no network. It
// is started by systemd when somebody connects, answers one request a connection, one
// connection at a time, and ends when nobody has come for a while.
//
// A request is one line of JSON, at most 4 KiB, and so is its answer:
//
//	{"verb":"status"}  →  {"version":"0.3.0","protocol":1}
//	anything else      →  {"error":"…"}
//
// This version knows no other verb. A member that is not known or comes twice, a
// second line, and a request that is not there within 5 s are refused; a peer who may
// not ask is told so before anything of his is read.
//
// The peer is who the kernel says (SO_PEERCRED, unix(7)), so a Server must not be in a
// user namespace of its own.
package installer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"syscall"
	"time"
)

// Protocol is the version of what is spoken at the socket.
const Protocol = 1

const (
	requestLimit = 4 << 10         // bytes, the end of the line included
	peerLimit    = 5 * time.Second // for a peer, from connecting to taking the answer
)

// A Server answers the agent.
type Server struct {
	Version string        // of this program
	Users   []uint32      // who may ask, besides root
	Idle    time.Duration // Serve ends when nobody has come for so long
	Log     *slog.Logger
}

// Serve answers at l until nobody has come for a while or ctx ends; both are no error.
// It closes l.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
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
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return fmt.Errorf("cannot take a connection: %w", err)
		}
		if err := s.answer(ctx, c); err != nil {
			s.Log.Warn("a request was not answered", "err", err)
		}
	}
}

// An answer is one line of JSON.
type answer struct {
	Version  string `json:"version,omitempty"`
	Protocol int    `json:"protocol,omitempty"`
	Error    string `json:"error,omitempty"`
}

// answer serves one connection. An error says that the peer did not get an answer, or
// was refused.
func (s *Server) answer(ctx context.Context, c *net.UnixConn) error {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := c.SetDeadline(time.Now().Add(peerLimit)); err != nil {
		return err
	}
	a, refused := s.decide(c)
	if refused != nil {
		a = answer{Error: refused.Error()}
	}
	line, err := json.Marshal(a)
	if err != nil {
		return err
	}
	_, err = c.Write(append(line, '\n'))
	return errors.Join(refused, err)
}

// decide reads the request of who may make one.
func (s *Server) decide(c *net.UnixConn) (answer, error) {
	uid, err := peer(c)
	if err != nil {
		return answer{}, err
	}
	if !s.may(uid) {
		return answer{}, fmt.Errorf("user %d may not ask", uid)
	}
	line, err := readLine(c)
	if err != nil {
		return answer{}, err
	}
	r, err := parse(line)
	if err != nil {
		return answer{}, err
	}
	if r.verb != "status" {
		return answer{}, fmt.Errorf("no verb %.20q is known", r.verb)
	}
	return answer{Version: s.Version, Protocol: Protocol}, nil
}

// may says whether a user may ask.
func (s *Server) may(uid uint32) bool { return uid == 0 || slices.Contains(s.Users, uid) }

// peer is the user at the other end.
func peer(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *syscall.Ucred
	var errCred error
	err = raw.Control(func(fd uintptr) {
		cred, errCred = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err = errors.Join(err, errCred); err != nil {
		return 0, fmt.Errorf("cannot tell who asks: %w", err)
	}
	return cred.Uid, nil
}

// readLine reads the one line that a peer may send.
func readLine(r io.Reader) ([]byte, error) {
	b := bufio.NewReaderSize(r, requestLimit)
	line, err := b.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, fmt.Errorf("a request has at most %d bytes", requestLimit)
	case err != nil:
		return nil, fmt.Errorf("no whole request came: %w", err)
	case b.Buffered() > 0:
		return nil, errors.New("a connection is for one request")
	}
	return line, nil
}

// A request is what a peer asks.
type request struct{ verb string }

// parse reads a request: one object, no member but those of a request, none twice.
// encoding/json by itself would take "Verb" for "verb", and the last of two.
func parse(line []byte) (r request, err error) {
	d := json.NewDecoder(bytes.NewReader(line))
	members := map[string]any{"verb": &r.verb}
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return r, errors.New("a request is a JSON object")
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return r, fmt.Errorf("the request is no JSON: %w", err)
		}
		into, ok := members[name.(string)] // or Token had failed
		if !ok {
			return r, fmt.Errorf("member %.20q is not known, or comes twice", name)
		}
		delete(members, name.(string))
		if err := d.Decode(into); err != nil {
			return r, fmt.Errorf("member %q: %w", name, err)
		}
	}
	if _, err := d.Token(); err != nil {
		return r, fmt.Errorf("the request is no JSON: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return r, errors.New("there is something behind the request")
	}
	return r, nil
}
