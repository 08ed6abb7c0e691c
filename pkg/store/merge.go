package store

import (
	"bytes"
	"encoding"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
)

// A member is one of a JSON object: its name, and both halves as they are
// written.
type member struct {
	name       string
	key, value []byte
}

// members reads the members of a JSON object in their order; false if text is
// anything else.
func members(text []byte) ([]member, bool) {
	if !json.Valid(text) {
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if start, err := d.Token(); err != nil || start != json.Delim('{') {
		return nil, false
	}
	var all []member
	for d.More() {
		begin := d.InputOffset()
		name, err := d.Token()
		if err != nil {
			return nil, false
		}
		key := bytes.TrimLeft(text[begin:d.InputOffset()], ", \t\r\n")
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, false
		}
		all = append(all, member{name.(string), key, value})
	}
	return all, true
}

// find returns the value of the member that encoding/json would take for name:
// the last one that is spelled so, whatever the case.
func find(all []member, name string) []byte {
	for _, m := range slices.Backward(all) {
		if strings.EqualFold(m.name, name) {
			return m.value
		}
	}
	return nil
}

// encode writes v as a JSON object for people to read, with those members of was,
// an earlier text of the same type, that the type does not know.
func encode(v any, was []byte) ([]byte, error) {
	now, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var w writer
	w.value(reflect.TypeOf(v), now, was)
	w.WriteByte('\n')
	return w.Bytes(), nil
}

// A writer merges what a value says now with what its text said before.
type writer struct {
	bytes.Buffer
	depth int
}

// value writes one value of type t. now is its compact JSON; was may be nil.
func (w *writer) value(t reflect.Type, now, was []byte) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case writesItself(t):
		w.Write(now)
	case t.Kind() == reflect.Struct && now[0] == '{':
		w.object(structMembers(t, now, was))
	case t.Kind() == reflect.Map && now[0] == '{':
		w.object(mapMembers(t.Elem(), now, was))
	case (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) && now[0] == '[':
		w.list(t.Elem(), now, was)
	default:
		w.Write(now)
	}
}

// A part is a member to be written: a value of a known type, or, without a type,
// bytes to be kept.
type part struct {
	key      []byte
	t        reflect.Type
	now, was []byte
}

// structMembers are the known members of a struct in the order of its fields, then
// the unknown ones in theirs.
func structMembers(t reflect.Type, now, was []byte) []part {
	fields := jsonFields(t)
	present, _ := members(now)
	before, _ := members(was)
	var parts []part
	for _, m := range present {
		parts = append(parts, part{m.key, fields[m.name], m.value, find(before, m.name)})
	}
	for i, m := range before {
		name, known := lookup(fields, m.name)
		switch {
		case !known:
			parts = append(parts, part{key: m.key, now: m.value})
		case find(present, name) == nil && find(before[i+1:], name) == nil && holdsUnknown(fields[name], m.value):
			// Left out because it is zero, but not all of it is ours.
			parts = append(parts, part{m.key, fields[name], []byte("{}"), m.value})
		}
	}
	return parts
}

func mapMembers(elem reflect.Type, now, was []byte) []part {
	present, _ := members(now)
	before, _ := members(was)
	var parts []part
	for _, m := range present {
		p := part{m.key, elem, m.value, nil}
		for _, b := range before {
			if b.name == m.name {
				p.was = b.value
			}
		}
		parts = append(parts, p)
	}
	return parts
}

// holdsUnknown reports whether text, of type t, holds members that t does not
// know, in itself or in the structs inside it.
func holdsUnknown(t reflect.Type, text []byte) bool {
	if t.Kind() != reflect.Struct || writesItself(t) {
		return false
	}
	return len(structMembers(t, []byte("{}"), text)) > 0
}

func (w *writer) object(parts []part) {
	w.WriteByte('{')
	w.depth++
	for i, p := range parts {
		if i > 0 {
			w.WriteByte(',')
		}
		w.newLine()
		w.Write(p.key)
		w.WriteString(": ")
		if p.t == nil {
			w.Write(p.now)
		} else {
			w.value(p.t, p.now, p.was)
		}
	}
	w.depth--
	if len(parts) > 0 {
		w.newLine()
	}
	w.WriteByte('}')
}

func (w *writer) list(elem reflect.Type, now, was []byte) {
	var present, before []json.RawMessage
	// now was written by encoding/json; of a was that is no list nothing is kept.
	_ = json.Unmarshal(now, &present)
	_ = json.Unmarshal(was, &before)
	pairs := pair(elem, present, before)
	w.WriteByte('[')
	w.depth++
	for i, now := range present {
		if i > 0 {
			w.WriteByte(',')
		}
		w.newLine()
		w.value(elem, now, pairs[i])
	}
	w.depth--
	if len(present) > 0 {
		w.newLine()
	}
	w.WriteByte(']')
}

// pair finds for each element of a list the one it was before: the one whose known
// part is the same, or else, in a list of the same length, the one in its place.
func pair(elem reflect.Type, present, before []json.RawMessage) [][]byte {
	pairs := make([][]byte, len(present))
	taken := make([]bool, len(before))
	known := make([]string, len(before))
	for i, b := range before {
		known[i] = knownPart(elem, b)
	}
	for i, now := range present {
		for j := range before {
			if !taken[j] && known[j] == string(now) {
				pairs[i], taken[j] = before[j], true
				break
			}
		}
	}
	if len(present) == len(before) {
		for i := range present {
			if pairs[i] == nil && !taken[i] {
				pairs[i] = before[i]
			}
		}
	}
	return pairs
}

// knownPart is text as this version would have written it.
func knownPart(t reflect.Type, text []byte) string {
	v := reflect.New(t)
	if json.Unmarshal(text, v.Interface()) != nil {
		return ""
	}
	known, _ := json.Marshal(v.Elem().Interface()) // "" pairs with nothing
	return string(known)
}

func (w *writer) newLine() {
	w.WriteByte('\n')
	for range w.depth {
		w.WriteByte('\t')
	}
}

var (
	jsonMarshaler = reflect.TypeFor[json.Marshaler]()
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()
)

// writesItself reports whether a type has a text of its own, with nothing in it
// for us to know.
func writesItself(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(jsonMarshaler) || p.Implements(textMarshaler)
}

// jsonFields are the types of a struct's fields by their names in JSON, those of
// embedded structs included.
func jsonFields(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	depth := map[string]int{}
	for _, f := range reflect.VisibleFields(t) {
		tag, tagged := f.Tag.Lookup("json")
		name, _, _ := strings.Cut(tag, ",")
		if tag == "-" || !f.IsExported() || f.Anonymous && name == "" && !writesItself(f.Type) {
			continue
		}
		if !tagged || name == "" {
			name = f.Name
		}
		if d, ok := depth[name]; !ok || len(f.Index) < d {
			fields[name], depth[name] = f.Type, len(f.Index)
		}
	}
	return fields
}

// lookup is the field that encoding/json stores a member in: the one of its name,
// or one that differs in case only.
func lookup(fields map[string]reflect.Type, name string) (field string, known bool) {
	if _, ok := fields[name]; ok {
		return name, true
	}
	for field := range fields {
		if strings.EqualFold(field, name) {
			return field, true
		}
	}
	return "", false
}
