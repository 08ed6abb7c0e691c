package config

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// A setting is one field of a Config.
type setting struct {
	section, key string
	doc          string
	path         bool // the name of a file
	index        []int
}

// name is the setting's full one, "birth.url".
func (s setting) name() string { return s.section + "." + s.key }

// variable is the setting's name in the environment.
func (s setting) variable() string {
	return envPrefix + strings.ToUpper(s.section) + envSeparator + strings.ToUpper(s.key)
}

// field is the setting's value in c.
func (s setting) field(c *Config) reflect.Value {
	return reflect.ValueOf(c).Elem().FieldByIndex(s.index)
}

// A section is a table of settings.
type section struct {
	name, doc string
	settings  []setting
}

// sections are those of Config, in the order of its fields.
var sections = readSections()

func readSections() []section {
	var all []section
	for _, outer := range fieldsOf(reflect.TypeFor[Config]()) {
		sec := section{name: outer.Tag.Get("toml"), doc: outer.Tag.Get("doc")}
		for _, f := range fieldsOf(outer.Type) {
			sec.settings = append(sec.settings, setting{
				section: sec.name, key: f.Tag.Get("toml"), doc: f.Tag.Get("doc"),
				path: f.Tag.Get("path") == "yes", index: []int{outer.Index[0], f.Index[0]},
			})
		}
		all = append(all, sec)
	}
	return all
}

func fieldsOf(t reflect.Type) []reflect.StructField { return reflect.VisibleFields(t) }

func findSection(name string) (section, bool) {
	i := slices.IndexFunc(sections, func(s section) bool { return s.name == name })
	if i < 0 {
		return section{}, false
	}
	return sections[i], true
}

func (s section) find(key string) (setting, bool) {
	i := slices.IndexFunc(s.settings, func(s setting) bool { return s.key == key })
	if i < 0 {
		return setting{}, false
	}
	return s.settings[i], true
}

// parse sets a value from the text of a variable: lists are separated by commas,
// tables are lists of name=value.
func (s setting) parse(c *Config, text string) error {
	switch v := s.field(c).Addr().Interface().(type) {
	case *string:
		*v = text
	case *int64:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return fmt.Errorf("%q is no number", text)
		}
		*v = n
	case encoding.TextUnmarshaler:
		return v.UnmarshalText([]byte(text))
	case *[]string:
		*v = splitList(text)
	case *map[string]string:
		for _, entry := range splitList(text) {
			name, value, ok := strings.Cut(entry, "=")
			if !ok {
				return fmt.Errorf("%q is not of the form name=value", entry)
			}
			if *v == nil {
				*v = map[string]string{}
			}
			(*v)[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	default:
		panic("config: a setting of type " + s.field(c).Type().String())
	}
	return nil
}

func splitList(text string) []string {
	var list []string
	for entry := range strings.SplitSeq(text, ",") {
		if entry = strings.TrimSpace(entry); entry != "" {
			list = append(list, entry)
		}
	}
	return list
}
