package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// A lane is one program, or a few in a row, that does what those in other lanes do.
type lane struct {
	name string
	once func(ctx context.Context) (time.Duration, error)
	took []time.Duration
}

// race lets every lane have that many turns, one after another in turn: whatever
// else the machine does meanwhile, it does to all of them.
func race(ctx context.Context, turns int, lanes []*lane) error {
	for range turns {
		for _, l := range lanes {
			took, err := l.once(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", l.name, err)
			}
			l.took = append(l.took, took)
		}
	}
	return nil
}

func ms(d time.Duration) float64 { return d.Seconds() * 1000 }

// best is the time without what disturbs.
func (l *lane) best() time.Duration { return slices.Min(l.took) }

func (l *lane) median() time.Duration {
	took := slices.Sorted(slices.Values(l.took))
	return took[len(took)/2]
}

// ratio is how much of the other lane's time this one takes.
func (l *lane) ratio(other *lane) float64 { return float64(l.best()) / float64(other.best()) }
