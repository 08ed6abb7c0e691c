package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"time"
)

// A broker is Debian's mosquitto, watched through its own log.
type broker struct {
	cmd  *exec.Cmd
	acks chan ack
	done chan struct{} // closed when it ended
	last string        // what it said last; read after done
}

// An ack is a PUBACK that the broker sent.
type ack struct {
	client string
	n      int // 1 for the first since the client connected
	at     time.Time
}

// startBroker starts mosquitto. It is there once it says so; a client that is
// faster waits.
func startBroker(ctx context.Context, program, conf string) (*broker, error) {
	b := &broker{cmd: exec.CommandContext(ctx, program, "-v", "-c", conf), acks: make(chan ack, 1024), done: make(chan struct{})}
	stderr, err := b.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := b.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start the broker: %w", err)
	}
	running := make(chan struct{})
	go func() {
		b.watch(bufio.NewScanner(stderr), running)
		_ = b.cmd.Wait() // it was killed, or await says that it ended
		close(b.done)
	}()
	select {
	case <-running:
		return b, nil
	case <-b.done:
		return nil, fmt.Errorf("the broker ended by itself: %s", b.last)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

var (
	connected    = regexp.MustCompile(`^\d+: New client connected from \S+ as (\S+) `)
	acknowledged = regexp.MustCompile(`^\d+: Sending PUBACK to (\S+) `)
	isRunning    = regexp.MustCompile(`^\d+: mosquitto version \S+ running`)
)

// watch reads the broker's log to its end, and notes when it acknowledged what.
func (b *broker) watch(log *bufio.Scanner, running chan<- struct{}) {
	sent := map[string]int{}
	for log.Scan() {
		at := time.Now()
		b.last = log.Text()
		if m := acknowledged.FindStringSubmatch(b.last); m != nil {
			sent[m[1]]++
			select {
			case b.acks <- ack{m[1], sent[m[1]], at}:
			default: // nobody is interested
			}
		} else if m := connected.FindStringSubmatch(b.last); m != nil {
			sent[m[1]] = 0
		} else if isRunning.MatchString(b.last) {
			close(running)
		}
	}
}

// await is when the broker acknowledged the n-th message of a client's session.
func (b *broker) await(ctx context.Context, client string, n int) (time.Time, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("the broker acknowledged nothing"))
	defer cancel()
	for {
		select {
		case a := <-b.acks:
			if a.client == client && a.n == n {
				return a.at, nil
			}
		case <-b.done:
			return time.Time{}, fmt.Errorf("the broker ended by itself: %s", b.last)
		case <-ctx.Done():
			return time.Time{}, context.Cause(ctx)
		}
	}
}

func (b *broker) stop() {
	_ = b.cmd.Process.Kill() // it may have ended by itself
	<-b.done
}

// forget drops what was acknowledged so far.
func (b *broker) forget() {
	for {
		select {
		case <-b.acks:
		default:
			return
		}
	}
}
