// Package lifecycle is the life of a device as one table: the states it can be
// in, what ends each state, and what comes next. It does no work itself.
//
// What is not in the table does not happen: a step that reports an event its
// state does not know is wrong, and [Next] says so instead of guessing. States
// are written to disk as they are spelled here, so a spelling is for ever.
//
// The table as a picture is in docs/lifecycle.md, generated from it. Renewing a
// certificate or updating firmware is not a state: the device stays in service.
package lifecycle

import "fmt"

// A State is where a device stands in its life. The zero State is Blank.
type State string

const (
	Blank       State = ""            // nothing is known yet but, perhaps, whose TPM this is
	Born        State = "born"        // holds the maker's certificate for its IDevID, or needs none
	Enrolled    State = "enrolled"    // holds an owner's certificate, not yet seen by the owner's broker
	Operational State = "operational" // in service: connected, or trying to be
)

// String is the state's name for people; Blank has a name too.
func (s State) String() string {
	if s == Blank {
		return "blank"
	}
	return string(s)
}

// An Event ends a state.
type Event string

const (
	Birthed  Event = "birthed"  // the maker's CA certified the IDevID, or the fleet has no such CA
	Issued   Event = "issued"   // the owner's CA certified an LDevID
	Accepted Event = "accepted" // the owner's broker accepted that certificate
)

// A row says that a device in From goes to To on On.
type row struct {
	From State
	On   Event
	To   State
	// Saved is what becomes durable in the same write as To.
	Saved string
}

// table is the whole life of a device. A pair that is not here is a bug in the
// step that reported it, never a state to be guessed.
var table = []row{
	{Blank, Birthed, Born, "the IDevID's certificate and chain, or that there is none"},
	{Born, Issued, Enrolled, "the LDevID: key, certificate and chain"},
	{Enrolled, Accepted, Operational, ""},
}

// Next returns the state that follows s on ev; s itself and an error when the
// table has no such row.
func Next(s State, ev Event) (State, error) {
	for _, r := range table {
		if r.From == s && r.On == ev {
			return r.To, nil
		}
	}
	return s, fmt.Errorf("no way out of state %q on event %q", s.String(), ev)
}

// Known reports whether s is a state of this version. Another one was written by
// a newer agent, or by nobody.
func Known(s State) bool {
	for _, r := range table {
		if s == r.From || s == r.To {
			return true
		}
	}
	return false
}
