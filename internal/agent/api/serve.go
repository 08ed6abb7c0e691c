package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	connLimit    = 16               // connections of a door at a time
	requestLimit = 5 * time.Second  // for a request to be there
	answerLimit  = 20 * time.Second // for it to be answered
	// headerLimit is in bytes; net/http allows 4 KiB more than it is told.
	headerLimit = 8<<10 - 4<<10
)

// serve lets the handler answer at l until the server is closed.
func serve(l net.Listener, h http.Handler, log *slog.Logger) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	s := &http.Server{
		Handler:        h,
		Protocols:      &protocols,
		ReadTimeout:    requestLimit,
		WriteTimeout:   answerLimit,
		MaxHeaderBytes: headerLimit,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		// Not even "OPTIONS *" is answered without us.
		DisableGeneralOptionsHandler: true,
	}
	s.SetKeepAlivesEnabled(false)
	go func() {
		err := s.Serve(&limited{Listener: l, slots: make(chan struct{}, connLimit), closed: make(chan struct{})})
		if !errors.Is(err, http.ErrServerClosed) {
			log.Error("a door is closed", "path", l.Addr().String(), "err", err)
		}
	}()
	return s
}

// A limited listener accepts so many connections at a time. More wait where they
// cost nothing.
type limited struct {
	net.Listener
	slots  chan struct{}
	once   sync.Once
	closed chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &conn{Conn: c, leave: sync.OnceFunc(func() { <-l.slots })}, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// A conn gives its place back when it is closed.
type conn struct {
	net.Conn
	leave func()
}

func (c *conn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// gets answers GET at its paths: letter for letter, without a query, without a body.
type gets map[string]func(context.Context) (contentType string, body []byte, err error)

func (g gets) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	get, ok := g[r.URL.EscapedPath()]
	switch {
	case !ok:
		refuse(w, http.StatusNotFound, "no such path")
		return
	case r.Method != http.MethodGet:
		w.Header().Set("Allow", http.MethodGet)
		refuse(w, http.StatusMethodNotAllowed, "only GET is answered here")
		return
	case r.URL.RawQuery != "" || r.ContentLength != 0:
		refuse(w, http.StatusBadRequest, "neither a query nor a body is understood here")
		return
	}
	contentType, body, err := get(r.Context())
	if err != nil {
		refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", contentType)
	_, _ = w.Write(body) // who asked has gone
}

// refuse answers with an error.
func refuse(w http.ResponseWriter, status int, why string) {
	body, err := json.Marshal(map[string]string{"error": why})
	if err != nil {
		panic("api: " + err.Error()) // text can always be written
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // who asked has gone
}
