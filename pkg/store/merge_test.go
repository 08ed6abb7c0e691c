package store

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// A device is a value with everything in it that is merged.
type device struct {
	N     int              `json:"n"`
	Name  string           `json:"name,omitempty"`
	Owner owner            `json:"owner,omitzero"`
	Next  *owner           `json:"next,omitempty"`
	List  []owner          `json:"list,omitempty"`
	Map   map[string]entry `json:"map,omitempty"`
}

type owner struct {
	ID    string `json:"id"`
	Epoch int    `json:"epoch,omitempty"`
}

type entry struct {
	A int `json:"a"`
}

func TestUnknownFieldsAreKept(t *testing.T) {
	for _, tc := range []struct {
		name, was string
		change    func(*device)
		want      string
	}{
		{"beside a field that changes", `{"new": [1,  2.0e0], "n": 1}`,
			func(d *device) { d.N = 2 },
			"{\n\t\"n\": 2,\n\t\"new\": [1,  2.0e0]\n}\n"},
		{"in their order, with their escapes", `{"b\u0061": "\u00e9", "a": {"z": 1,"y":2}, "n": 1}`,
			func(d *device) { d.N = 2 },
			"{\n\t\"n\": 2,\n\t\"b\\u0061\": \"\\u00e9\",\n\t\"a\": {\"z\": 1,\"y\":2}\n}\n"},
		{"in a struct", `{"n": 1, "owner": {"id": "a", "new": 1}}`,
			func(d *device) { d.Owner.ID = "b" },
			"{\n\t\"n\": 1,\n\t\"owner\": {\n\t\t\"id\": \"b\",\n\t\t\"new\": 1\n\t}\n}\n"},
		{"in a struct that is set to zero", `{"n": 1, "owner": {"id": "a", "new": 1}}`,
			func(d *device) { d.Owner = owner{} },
			"{\n\t\"n\": 1,\n\t\"owner\": {\n\t\t\"new\": 1\n\t}\n}\n"},
		{"not in what a pointer let go of", `{"n": 1, "next": {"id": "a", "new": 1}}`,
			func(d *device) { d.Next = nil },
			"{\n\t\"n\": 1\n}\n"},
		{"behind a pointer", `{"n": 1, "next": {"id": "a", "new": 1}}`,
			func(d *device) { d.Next.Epoch = 2 },
			"{\n\t\"n\": 1,\n\t\"next\": {\n\t\t\"id\": \"a\",\n\t\t\"epoch\": 2,\n\t\t\"new\": 1\n\t}\n}\n"},
		{"in an element that moves", `{"n": 1, "list": [{"id": "a", "new": 1}, {"id": "b", "new": 2}]}`,
			func(d *device) { d.List = d.List[1:] },
			"{\n\t\"n\": 1,\n\t\"list\": [\n\t\t{\n\t\t\t\"id\": \"b\",\n\t\t\t\"new\": 2\n\t\t}\n\t]\n}\n"},
		{"in an element that changes in its place", `{"n": 1, "list": [{"id": "a", "new": 1}]}`,
			func(d *device) { d.List[0].ID = "c" },
			"{\n\t\"n\": 1,\n\t\"list\": [\n\t\t{\n\t\t\t\"id\": \"c\",\n\t\t\t\"new\": 1\n\t\t}\n\t]\n}\n"},
		{"in an entry of a map, case and all", `{"n": 1, "map": {"k": {"a": 1, "new": 1}, "K": {"a": 2, "new": 2}}}`,
			func(d *device) { d.Map["k"] = entry{3} },
			"{\n\t\"n\": 1,\n\t\"map\": {\n\t\t\"K\": {\n\t\t\t\"a\": 2,\n\t\t\t\"new\": 2\n\t\t},\n\t\t\"k\": {\n\t\t\t\"a\": 3,\n\t\t\t\"new\": 1\n\t\t}\n\t}\n}\n"},
		{"but not a known one in other letters", `{"N": 1, "nAmE": "x"}`,
			func(d *device) { d.Name = "y" },
			"{\n\t\"n\": 1,\n\t\"name\": \"y\"\n}\n"},
	} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, fileName), tc.was)
		s, err := Open[device](dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Update(func(d *device) error { tc.change(d); return nil }); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		if got, _ := os.ReadFile(s.path()); string(got) != tc.want {
			t.Errorf("%s:\n%s\nwant:\n%s", tc.name, got, tc.want)
		}
		s.Close()
	}
}

// lost tells which member of was, of type t, cannot be found in now: unknown ones
// must be there byte for byte, known ones are looked into.
func lost(t reflect.Type, was, now []byte) string {
	before, _ := members(was)
	after, _ := members(now)
	fields := jsonFields(t)
	next := 0
	for _, m := range before {
		name, known := lookup(fields, m.name)
		if known {
			if f := fields[name]; f.Kind() == reflect.Struct {
				if l := lost(f, find(before, name), find(after, name)); l != "" {
					return name + "." + l
				}
			}
			continue
		}
		for ; next < len(after); next++ {
			if string(after[next].key) == string(m.key) {
				break
			}
		}
		if next == len(after) || string(after[next].value) != string(m.value) {
			return fmt.Sprintf("%s: %s", m.key, m.value)
		}
		next++
	}
	return ""
}

func FuzzState(f *testing.F) {
	for _, seed := range []string{
		"", "null", "{}", `{"n": 1}`, `{"n": 1}{"n": 2}`, `{"n": 1, "new": {"a": [1, 2]}, "new": 2}`, `{"N": 1, "n": 2, "\u006e": 3}`,
		`{"owner": {"id": "a", "new": 1}, "OWNER": {"newer": 2}}`, `{"list": [{"id": "a", "new": 1}, null], "map": {"k": null, "k": {"b": 1}}}`,
		"{\"n\": 1, \"name\": \"\xff\"}", `{"next": {"epoch": 1e0}}`, " \n{\"n\" : 1 , \"a\":2}\t",
	} {
		f.Add([]byte(seed))
	}
	dir := f.TempDir()
	path := filepath.Join(dir, fileName)
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := open[device](dir, swiftDisk{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if s.Damaged() != "" {
			if kept, _ := os.ReadFile(s.Damaged()); string(kept) != string(text) {
				t.Fatalf("%q was kept aside, want %q", kept, text)
			}
			os.Remove(s.Damaged())
			return
		}
		want := s.Get()
		want.N++
		if err := s.Update(func(d *device) error { d.N++; return nil }); err != nil {
			if len(text) < fileLimit/8 { // what is written for people takes more room
				t.Fatalf("cannot write back %q: %v", text, err)
			}
			return
		}
		written, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decode[device](written)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("from %q came %q: %+v (%v), want %+v", text, written, got, err, want)
		}
		if l := lost(reflect.TypeFor[device](), text, written); l != "" {
			t.Errorf("from %q came %q: %s was lost", text, written, l)
		}
	})
}
