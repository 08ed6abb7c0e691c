package rauc

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"strings"

	"birthmark/pkg/fota"
)

// busFiles are where the system bus has its rules, in the order in which they apply: see
// dbus-daemon(1), and the system.conf that comes with it.
var busFiles = []string{
	"usr/share/dbus-1/system.conf",
	"etc/dbus-1/system.conf",
	"usr/share/dbus-1/system.d/*.conf",
	"etc/dbus-1/system.d/*.conf",
	"etc/dbus-1/system-local.conf",
}

const busFileLimit = 1 << 20 // bytes; dbus-daemon reads no more of a file either

// checkBus refuses a bus that lets anybody but root speak to RAUC: he could say what
// starts next, and that it is good. The rules that come with RAUC do. Of the rules for
// everybody the last count; within a folder, the bus reads files in any order.
func checkBus(root string) error {
	open := map[string]string{} // the file that lets everybody, by context; "" if one forbids it
	for _, pattern := range busFiles {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return err
		}
		here := map[string]string{}
		for _, file := range files {
			rules, err := readRules(file)
			if err != nil {
				return unsafe("cannot know who may speak to RAUC: %w", err)
			}
			if rules.others {
				return unsafe("%s lets others than root be RAUC, or speak to it", file)
			}
			for context, allowed := range rules.everybody {
				if allowed {
					here[context] = file
				} else if here[context] == "" {
					here[context] = ""
				}
			}
		}
		maps.Copy(open, here)
	}
	file, forced := open["mandatory"]
	if !forced {
		file = open["default"]
	}
	if file != "" {
		return unsafe("%s lets anybody say to RAUC what starts next, and that it is good", file)
	}
	return nil
}

// busRules are what a file of the bus says about RAUC.
type busRules struct {
	everybody map[string]bool // whether everybody may speak to it, by context: default or mandatory
	others    bool            // somebody who is named, not root, may speak to it, or somebody may be it
}

// readRules reads a file of the bus. One that is not there, or is none and does not name
// RAUC, has no rules: packages bring all sorts, and the bus passes over them, too.
func readRules(file string) (busRules, error) {
	text, err := fota.ReadFile(file, busFileLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return busRules{}, nil
	}
	if err != nil {
		return busRules{}, err
	}
	rules, err := parseRules(string(text))
	switch {
	case err == nil:
		return rules, nil
	case bytes.Contains(text, []byte(busName)):
		return busRules{}, fmt.Errorf("%s has %w", file, err)
	default:
		return busRules{}, nil
	}
}

// busDepth is more than elements of a busconfig are nested.
const busDepth = 16

// What the bus's files consist of: of XML what busconfig uses, without a DTD of their own.
var (
	busToken     = regexp.MustCompile(`^(?s:[^<]+|<!--.*?-->|<\?.*?\?>|<!DOCTYPE[^<>\[]*>|<(/?)(\w+)((?:\s+\w+\s*=\s*(?:"[^"<]*"|'[^'<]*'))*)\s*(/?)>)`)
	busAttribute = regexp.MustCompile(`(\w+)\s*=\s*(?:"([^"]*)"|'([^']*)')`)
)

// parseRules reads dbus-daemon's busconfig. It is refused where it is not well-formed,
// since the bus then takes nothing of it. (encoding/xml would be half a megabyte more.)
func parseRules(text string) (busRules, error) {
	rules := busRules{everybody: map[string]bool{}}
	var policy map[string]string
	var within []string
	for rest := text; rest != ""; {
		token := busToken.FindStringSubmatch(rest)
		if token == nil {
			return busRules{}, fmt.Errorf("no XML from byte %d on", len(text)-len(rest))
		}
		rest = rest[len(token[0]):]
		end, name, single := token[1] != "", token[2], token[4] != ""
		switch last := len(within) - 1; {
		case name == "":
			continue
		case end && (last < 0 || within[last] != name):
			return busRules{}, fmt.Errorf("an end of %s that was not begun", name)
		case end:
			within = within[:last]
			continue
		case len(within) == busDepth:
			return busRules{}, fmt.Errorf("more than %d elements in each other", busDepth)
		case !single:
			within = append(within, name)
		}
		values := map[string]string{}
		for _, a := range busAttribute.FindAllStringSubmatch(token[3], -1) {
			values[a[1]] = a[2] + a[3]
			if strings.Contains(values[a[1]], "&") {
				values[a[1]] = "*" // spelt in another way, it may be anything
			}
		}
		switch name {
		case "policy":
			policy = values
		case "allow":
			rules.allow(policy, values)
		case "deny":
			rules.deny(policy, values)
		}
	}
	if len(within) != 0 {
		return busRules{}, fmt.Errorf("no end of %s", within[len(within)-1])
	}
	return rules, nil
}

// allow adds what a policy allows. Root may do everything.
func (r *busRules) allow(policy, rule map[string]string) {
	if user := policy["user"]; len(policy) == 1 && (user == "root" || user == "0") {
		return
	}
	context, sends := policy["context"], reaches(rule)
	everybody := context == "default" || context == "mandatory"
	r.others = r.others || owns(rule) || sends && !everybody
	if sends && everybody {
		r.everybody[context] = true
	}
}

// deny adds what a policy forbids everybody: nothing, if it leaves some messages to RAUC.
func (r *busRules) deny(policy, rule map[string]string) {
	if context := policy["context"]; len(rule) == 1 && rule["send_destination"] == busName && !r.everybody[context] {
		r.everybody[context] = false
	}
}

// owns reports whether a rule is about who may be RAUC.
func owns(rule map[string]string) bool {
	own, prefix := rule["own"], rule["own_prefix"]
	return own == "*" || own == busName || prefix != "" && covers(prefix)
}

// reaches reports whether a rule is about calls of RAUC's methods, or may be.
func reaches(rule map[string]string) bool {
	sends := false
	for name, value := range rule {
		may := true
		switch name {
		case "send_destination":
			may = value == busName
		case "send_destination_prefix":
			may = covers(value)
		case "send_interface":
			may = strings.HasPrefix(value, busName)
		case "send_type":
			may = value == "method_call"
		}
		if !may && value != "*" {
			return false
		}
		sends = sends || strings.HasPrefix(name, "send_")
	}
	return sends
}

// covers reports whether RAUC's name begins with another, word by word.
func covers(prefix string) bool {
	return prefix == "*" || strings.HasPrefix(busName+".", prefix+".")
}
