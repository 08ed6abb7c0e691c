package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// unreachable is a broker in a network that is not there (RFC 5737).
const unreachable = "mqtts://192.0.2.1:8883"

// agentReady is the time from the start of the agent to READY=1 at the socket of its
// service manager (sd_notify(3)). The device is in service, its broker out of reach.
func (w *world) agentReady(ctx context.Context) (_ time.Duration, err error) {
	path := w.path("notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, l.Close(), os.Remove(path)) }()
	if err := l.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	defer context.AfterFunc(ctx, func() { _ = l.SetReadDeadline(time.Now()) })() // what fails then is Read
	a, err := w.startAgent("NOTIFY_SOCKET="+path, "BIRTHMARK_BROKER__URLS="+unreachable)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, a.stop()) }()
	state := make([]byte, 4096)
	for {
		n, err := l.Read(state)
		if err != nil {
			return 0, fmt.Errorf("the agent did not say READY=1: %w", err)
		}
		if strings.HasPrefix(string(state[:n]), "READY=1") {
			return time.Since(a.started), nil
		}
	}
}
