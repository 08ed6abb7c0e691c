package tpm

import (
	"context"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// A Clock is a TPM's own count of time and of its starts (TPM 2.0 Part 1, 36). It
// knows nothing of the date unless somebody set it.
type Clock struct {
	On       time.Duration `json:"on_ns"`    // since power came
	Total    time.Duration `json:"total_ns"` // with power, over all starts since TPM2_Clear; or what it was set to
	Resets   uint32        `json:"resets"`   // starts since TPM2_Clear
	Restarts uint32        `json:"restarts"` // of those that kept its state, such as after a suspend, since then
	Safe     bool          `json:"safe"`     // Total was never higher
}

// Clock reads the TPM's clock and counts. It is for people to read: the answer is
// not authenticated.
func (r *Root) Clock(ctx context.Context) (c Clock, err error) {
	err = r.run(ctx, func() error {
		answer, err := execute(r, tpm2.ReadClock{})
		if err != nil {
			return err
		}
		now := answer.CurrentTime
		c = Clock{
			On:       milliseconds(now.Time),
			Total:    milliseconds(now.ClockInfo.Clock),
			Resets:   now.ClockInfo.ResetCount,
			Restarts: now.ClockInfo.RestartCount,
			Safe:     bool(now.ClockInfo.Safe),
		}
		return nil
	})
	if err != nil {
		return c, fmt.Errorf("cannot read the TPM's clock: %w", err)
	}
	return c, nil
}

// milliseconds stops at the 292 years that a time.Duration holds.
func milliseconds(n uint64) time.Duration {
	const most = uint64(1<<63-1) / uint64(time.Millisecond)
	return time.Duration(min(n, most)) * time.Millisecond
}
