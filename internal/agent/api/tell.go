package api

import (
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	objectLimit = 16 << 10 // bytes of a message
	depthLimit  = 16       // objects and lists within each other

	tellRate    = 10 // messages a second
	tellBurst   = 50
	durableCost = 10 // messages that one durable message counts for: it is a write to the disk
)

// ownName is the agent's own reading.
const ownName = "system"

// isName reports whether name is 1 to 64 of A-Z a-z 0-9 _ -. A regular expression
// would cost a millisecond at every start.
func isName(name string) bool {
	const set = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
	return name != "" && len(name) <= 64 && strings.Trim(name, set) == ""
}

// A teller answers POST /v1/tele/NAME.
type teller struct {
	tell  func(Message) error
	quota *bucket
}

func newTeller(tell func(Message) error) *teller {
	return &teller{tell: tell, quota: newBucket(tellRate, tellBurst)}
}

func (t *teller) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, ok := strings.CutPrefix(r.URL.EscapedPath(), "/v1/tele/")
	cost := 1.0
	switch {
	case !ok:
		refuse(w, http.StatusNotFound, "no such path")
		return
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		refuse(w, http.StatusMethodNotAllowed, "only POST is answered here")
		return
	case !isName(name):
		refuse(w, http.StatusBadRequest, "the name is not 1 to 64 of A-Z a-z 0-9 _ -")
		return
	case name == ownName:
		refuse(w, http.StatusBadRequest, `"`+ownName+`" is the agent's own`)
		return
	case r.URL.RawQuery == "durable":
		cost = durableCost
	case r.URL.RawQuery != "":
		refuse(w, http.StatusBadRequest, "the only query that is understood is ?durable")
		return
	}
	// Also what is not taken counts: it was read.
	if wait := t.quota.take(cost); wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
		refuse(w, http.StatusTooManyRequests, "too many messages")
		return
	}
	object, err := io.ReadAll(http.MaxBytesReader(w, r.Body, objectLimit))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		refuse(w, http.StatusRequestEntityTooLarge, "a message has at most "+strconv.Itoa(objectLimit)+" bytes")
		return
	case err != nil:
		refuse(w, http.StatusBadRequest, "the body did not arrive whole")
		return
	}
	if why := faultOf(object); why != "" {
		refuse(w, http.StatusBadRequest, why)
		return
	}
	err = t.tell(Message{Name: name, Object: object, Durable: cost > 1})
	switch {
	case errors.Is(err, ErrNoRoom):
		refuse(w, http.StatusInsufficientStorage, err.Error())
	case err != nil:
		refuse(w, http.StatusInternalServerError, err.Error())
	default:
		w.WriteHeader(http.StatusAccepted)
	}
}

// faultOf says why text cannot be a message; "" if it can.
func faultOf(text []byte) string {
	var members map[string]json.RawMessage
	switch {
	case !utf8.Valid(text):
		return "the body is not UTF-8"
	case depth(text) > depthLimit: // first, since the decoder would go on to 10,000
		return "the body has more than " + strconv.Itoa(depthLimit) + " levels"
	case json.Unmarshal(text, &members) != nil || members == nil:
		return "the body is not a JSON object"
	case members["seq"] != nil:
		return `the member "seq" is the agent's own`
	}
	return ""
}

// depth is how deep objects and lists of a JSON text are within each other. Of other
// text it is some number.
func depth(text []byte) (deepest int) {
	level, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			level++
			deepest = max(deepest, level)
		case c == '}' || c == ']':
			level--
		}
	}
	return deepest
}

// A bucket lets so many things happen a second, and some at once after a pause.
type bucket struct {
	rate, burst float64

	mu     sync.Mutex
	tokens float64
	at     time.Time
}

func newBucket(rate, burst float64) *bucket {
	return &bucket{rate: rate, burst: burst, tokens: burst, at: time.Now()}
}

// take takes n tokens or, if there are not as many, none, and returns how long it
// will be until there are.
func (b *bucket) take(n float64) (wait time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.tokens = min(b.burst, b.tokens+now.Sub(b.at).Seconds()*b.rate)
	b.at = now
	if b.tokens < n {
		return time.Duration((n - b.tokens) / b.rate * float64(time.Second))
	}
	b.tokens -= n
	return 0
}
