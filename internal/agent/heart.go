package agent

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"
)

// The parts of an agent that run for long, and how long each may be silent. A part
// says when it goes on with its work, and what is longer than anything that it can be
// busy with: every wait for a peer has a limit of its own, and ends before. So a part
// that is late has met something without a limit: a disk that answers nothing, a
// fault of ours.
const (
	loopPart     = "loop"
	linkPart     = "link"
	samplerPart  = "sampler"
	textfilePart = "textfile"
	updatePart   = "firmware"

	stepLimit  = 10 * time.Minute // a step: TPM and CA, with a minute or two each time
	startLimit = time.Minute      // from the end of a step to the next
	workLimit  = 10 * time.Second // a reading, or a file of numbers
)

// A heart knows when it must hear of each part again.
type heart struct {
	mu  sync.Mutex
	due map[string]time.Time
}

// beat says that a part is alive, and will say so again within that time.
func (h *heart) beat(part string, within time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.due == nil {
		h.due = map[string]time.Time{}
	}
	h.due[part] = time.Now().Add(within)
}

// rest says that a part has nothing to do until it says something.
func (h *heart) rest(part string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.due, part)
}

// pause is Pause of the loop.
func (a *Agent) pause(ctx context.Context, d time.Duration) bool {
	a.heart.beat(loopPart, d+startLimit)
	defer a.heart.beat(loopPart, stepLimit)
	return Pause(ctx, d)
}

// A Stuck part of an agent has not been heard of in time.
type Stuck struct {
	Part string
	For  time.Duration // since it is late
}

// Stuck are the parts that do not get on, by their names. Such an agent can only be
// started anew.
func (a *Agent) Stuck() []Stuck {
	a.heart.mu.Lock()
	defer a.heart.mu.Unlock()
	var stuck []Stuck
	for part, due := range a.heart.due {
		if late := time.Since(due); late > 0 {
			stuck = append(stuck, Stuck{part, late})
		}
	}
	slices.SortFunc(stuck, func(a, b Stuck) int { return strings.Compare(a.Part, b.Part) })
	return stuck
}
