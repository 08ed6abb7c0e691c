package broker

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// operatorName is the name of the one who reads everything and sends commands. The
// CA sees to it that no device has it.
const operatorName = "operator"

// An action is what one does with a topic.
type action string

const (
	publish action = "publish"
	read    action = "read" // subscribe and receive
)

// A rule allows an action on the topics that a filter covers. %u in the filter is
// the name of whoever acts, as in mosquitto.
type rule struct {
	operator bool // for the operator only; otherwise for everybody
	may      action
	filter   string
}

// rules are all that is allowed. Nobody may do what is not here: there is nothing
// outside of birthmark/v1, and no $SYS.
var rules = []rule{
	{false, publish, "birthmark/v1/d/%u/state"},
	{false, publish, "birthmark/v1/d/%u/caps"},
	{false, publish, "birthmark/v1/d/%u/twin/+"},
	{false, publish, "birthmark/v1/d/%u/res/+/+"},
	{false, publish, "birthmark/v1/d/%u/evt/+"},
	{false, publish, "birthmark/v1/d/%u/tele/+"},
	{false, publish, "birthmark/v1/d/%u/req/+/+"},
	{false, read, "birthmark/v1/d/%u/cmd/#"},
	{false, read, "birthmark/v1/d/%u/rsp/+/+"},
	{false, read, "birthmark/v1/g/+/cmd/#"},

	{true, read, "birthmark/v1/#"},
	{true, publish, "birthmark/v1/d/+/cmd/#"},
	{true, publish, "birthmark/v1/d/+/rsp/+/+"},
	{true, publish, "birthmark/v1/g/+/cmd/#"},
}

// nameForm is that of a device id: one level of a topic, without wildcards.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// A party is somebody with a certificate: its CN, a device id or operatorName.
type party string

// may reports whether p may do something with a topic, or read all topics of a
// filter.
func (p party) may(do action, topic string) bool {
	if do == publish && strings.ContainsAny(topic, "+#") {
		return false // MQTT 3.1.1 section 3.3.2.1; of a last will nobody else would see it
	}
	return slices.ContainsFunc(rules, func(r rule) bool {
		return r.may == do && (!r.operator || p == operatorName) && covers(strings.ReplaceAll(r.filter, "%u", string(p)), topic)
	})
}

// covers reports whether every topic that matches the filter narrow, which may be
// one topic, matches the filter wide. See MQTT 3.1.1 section 4.7.1.
func covers(wide, narrow string) bool {
	for {
		w, wideRest, wideMore := strings.Cut(wide, "/")
		n, narrowRest, narrowMore := strings.Cut(narrow, "/")
		switch {
		case w == "#":
			return true
		case n == "#", w != "+" && w != n:
			return false
		case !narrowMore:
			return !wideMore || wideRest == "#" // "a/#" covers "a", too
		case !wideMore:
			return false
		}
		wide, narrow = wideRest, narrowRest
	}
}

// ACL is the rules as mosquitto's acl_file. It goes by use_identity_as_username: %u
// is the certificate's CN.
func ACL() string {
	var b strings.Builder
	b.WriteString("# Who may publish (write) and receive (read) what. %u is the CN of the client's\n" +
		"# certificate. What is not here is denied.\n")
	acl(&b, "pattern", false)
	fmt.Fprintf(&b, "\nuser %s\n", operatorName)
	acl(&b, "topic", true)
	return b.String()
}

func acl(b *strings.Builder, word string, operator bool) {
	for _, r := range rules {
		if r.operator != operator {
			continue
		}
		access := "read"
		if r.may == publish {
			access = "write"
		}
		fmt.Fprintf(b, "%s %s %s\n", word, access, r.filter)
	}
}
