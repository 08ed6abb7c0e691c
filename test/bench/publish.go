package main

import (
	"context"
	"errors"
	"os/exec"
	"time"
)

// publishing are the lanes of start-to-publish-ratio: from the start of a process to
// the broker's PUBACK of its first message, over mutual TLS, by the broker's log.
func (w *world) publishing() []*lane {
	return []*lane{
		{name: "birthmark run", once: w.agentPublishes},
		{name: "mosquitto_pub", once: w.peerPublishes},
	}
}

func (w *world) agentPublishes(ctx context.Context) (time.Duration, error) {
	w.broker.forget()
	a, err := w.startAgent()
	if err != nil {
		return 0, err
	}
	acked, err := w.broker.await(ctx, deviceID, 1)
	return acked.Sub(a.started), errors.Join(err, a.stop())
}

// message is as long as what the agent says first.
const message = `{"agent":"v0.1.0","cert":{"assurance":"claimed","generation":1,"not_after":"2026-03-01T00:00:00Z","serial":"00000000000000000000000000000000"},` +
	`"online":true,"outbox":{"bytes":0,"dropped":0,"messages":0},"session":1,"time":{"floor":"2025-12-01T00:00:00Z","now":"2025-12-01T00:00:00Z","trusted":true}}`

func (w *world) peerPublishes(ctx context.Context) (time.Duration, error) {
	w.broker.forget()
	cmd := exec.CommandContext(ctx, "mosquitto_pub", w.mosquitto("-t", "birthmark/v1/d/"+peerID+"/tele/bench", "-m", message)...)
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	acked, err := w.broker.await(ctx, peerID, 1)
	return acked.Sub(start), errors.Join(err, cmd.Wait())
}
