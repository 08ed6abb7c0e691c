package source

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	triesMost  = 8                // in a row, without progress
	progress   = 64 << 10         // bytes that renew the tries; one would keep a mean server's game going
	pauseBase  = time.Second      // span of the first pause
	pauseCap   = 30 * time.Second // span of the longest one
	patience   = time.Minute      // a server that asks for more is left alone: the caller decides
	retryLimit = 24 * time.Hour   // what is believed of a Retry-After
)

// pause is how long to wait after so many tries in a row: drawn from a span that doubles
// ("full jitter"), so the devices that a restarting server has lost in one moment do not
// come back in one moment.
func pause(tries int) time.Duration {
	return rand.N(min(pauseBase<<(tries-1), pauseCap))
}

// sleep waits for d; an error is why it was not left to.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return context.Cause(ctx)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// An allowance is a token bucket that holds a second's worth: rate bytes may come in
// every second, and what was left over of the last second may be made good.
type allowance struct {
	rate int64     // bytes per second; not positive: no bound
	paid time.Time // bytes were taken up to here
}

// take waits until n bytes may come in.
func (a *allowance) take(ctx context.Context, n int) error {
	if a.rate <= 0 {
		return nil
	}
	now := time.Now()
	if full := now.Add(-time.Second); a.paid.Before(full) {
		a.paid = full
	}
	a.paid = a.paid.Add(time.Duration(n) * time.Second / time.Duration(a.rate))
	return sleep(ctx, a.paid.Sub(now))
}
