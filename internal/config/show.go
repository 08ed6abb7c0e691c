package config

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// Show writes the settings in force as TOML that Load reads again. With origin,
// each is followed by where it came from.
func (l *Loaded) Show(w io.Writer, origin bool) error {
	var b bytes.Buffer
	for i, sec := range sections {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "[%s]\n", sec.name)
		for _, s := range sec.settings {
			fmt.Fprintf(&b, "%s = %s", s.key, s.value(&l.Config))
			if origin {
				fmt.Fprintf(&b, " # %s", l.Origin(s.name()))
			}
			b.WriteByte('\n')
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

// A Value is one setting in force.
type Value struct {
	Name   string `json:"name"` // in full, like "birth.url"
	Value  any    `json:"value"`
	Origin string `json:"origin"` // as [Loaded.Origin] says it
}

// Values are the settings in force, in the order of the reference.
func (l *Loaded) Values() []Value {
	var all []Value
	for _, sec := range sections {
		for _, s := range sec.settings {
			all = append(all, Value{s.name(), s.field(&l.Config).Interface(), l.Origin(s.name())})
		}
	}
	return all
}

// value is the setting in c as TOML.
func (s setting) value(c *Config) string {
	switch v := s.field(c).Interface().(type) {
	case string:
		return quote(v)
	case []string:
		var quoted []string
		for _, entry := range v {
			quoted = append(quoted, quote(entry))
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	case map[string]string:
		var pairs []string
		for _, name := range slices.Sorted(maps.Keys(v)) {
			pairs = append(pairs, quote(name)+" = "+quote(v[name]))
		}
		if pairs == nil {
			return "{}"
		}
		return "{ " + strings.Join(pairs, ", ") + " }"
	case int64:
		return strconv.FormatInt(v, 10)
	case fmt.Stringer: // a duration
		return quote(v.String())
	default:
		panic("config: a setting of type " + s.field(c).Type().String())
	}
}

// quote writes a TOML string.
func quote(text string) string {
	line, err := toml.Marshal(map[string]string{"v": text})
	if err != nil {
		panic("config: " + err.Error()) // a string can always be written
	}
	return strings.TrimSuffix(strings.TrimPrefix(string(line), "v = "), "\n")
}
