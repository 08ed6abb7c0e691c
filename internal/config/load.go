package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

const (
	configName  = "birthmark.toml"
	dropInLimit = 64 // files in one conf.d

	envPrefix    = "BIRTHMARK_"
	envSeparator = "__"
)

var layers = []string{"/usr/lib/birthmark", "/etc/birthmark"}

// Options say what to read.
type Options struct {
	Root string   // put before the folders of the layers; for tests and images
	File string   // if set, this file alone instead of the layers
	Env  []string // NAME=value, as from os.Environ
}

// A Loaded is a Config that knows where it came from.
type Loaded struct {
	Config Config
	Files  []string // that were read, in their order

	origins map[string]origin // by the setting's full name; none: the default
}

// An origin is where a value was set.
type origin struct {
	file string // or variable
	line int
}

func (o origin) String() string {
	if o.line == 0 {
		return o.file
	}
	return fmt.Sprintf("%s:%d", o.file, o.line)
}

// Origin says where the setting with a full name like "birth.url" was set:
// FILE:LINE, the name of a variable, or "default".
func (l *Loaded) Origin(name string) string {
	if o, ok := l.origins[name]; ok {
		return o.String()
	}
	return "default"
}

// Load reads the configuration. An error is an *[Error]: a file cannot be read, or
// does not say what it must. What the settings mean is for [Loaded.Check].
func Load(o Options) (*Loaded, error) {
	l := &Loaded{Config: Default(), origins: map[string]origin{}}
	files := []string{o.File}
	if o.File == "" {
		var err error
		if files, err = layerFiles(o.Root); err != nil {
			return nil, err
		}
	}
	for _, file := range files {
		if err := l.readFile(file); err != nil {
			return nil, err
		}
	}
	if err := l.readEnv(o.Env); err != nil {
		return nil, err
	}
	return l, nil
}

// layerFiles lists the files that are there, lowest layer first.
func layerFiles(root string) ([]string, error) {
	masked := map[string]bool{} // path below the layer's folder
	var all []string
	for _, layer := range slices.Backward(layers) { // the upper one masks
		dir := filepath.Join(root, layer)
		dropIns, err := listDropIns(filepath.Join(dir, "conf.d"))
		if err != nil {
			return nil, err
		}
		var files []string
		for _, file := range append([]string{filepath.Join(dir, configName)}, dropIns...) {
			below := strings.TrimPrefix(file, dir)
			if target, err := os.Readlink(file); err == nil && target == os.DevNull {
				masked[below] = true
			}
			_, err := os.Lstat(file)
			if there := !errors.Is(err, fs.ErrNotExist); there && !masked[below] {
				files = append(files, file)
			}
		}
		all = append(files, all...)
	}
	return all, nil
}

// listDropIns lists the files of a conf.d in the order of their names.
func listDropIns(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir) // sorted
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &Error{File: dir, Msg: reason(err)}
	}
	var files []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".toml") {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	if len(files) > dropInLimit {
		return nil, &Error{File: dir, Msg: fmt.Sprintf("%d files, limit %d: put settings together", len(files), dropInLimit)}
	}
	return files, nil
}

// readFile lays one file over what was read so far.
func (l *Loaded) readFile(file string) error {
	text, err := ReadFile(file)
	if err != nil {
		return &Error{File: file, Msg: reason(err)}
	}
	abs, err := filepath.Abs(file)
	if err != nil {
		return &Error{File: file, Msg: err.Error()}
	}
	l.Files = append(l.Files, file)
	return l.layer(file, filepath.Dir(abs), text)
}

// layer lays text over what was read so far. dir is what file names in it are
// relative to.
func (l *Loaded) layer(file, dir string, text []byte) error {
	if err := checkSize(file, text); err != nil {
		return err
	}
	var doc map[string]toml.Primitive
	meta, err := toml.Decode(string(text), &doc)
	if err != nil {
		return parseFault(file, err)
	}
	for _, e := range inOrder(&meta, doc) {
		sec, ok := findSection(e.name)
		if !ok {
			return &Error{File: file, Line: e.line, Msg: noSuchSection(e.name)}
		}
		var table map[string]toml.Primitive
		if err := meta.PrimitiveDecode(e.value, &table); err != nil || !e.table {
			return &Error{File: file, Line: e.line, Msg: fmt.Sprintf("%s is a section: write [%s]", sec.name, sec.name)}
		}
		for _, e := range inOrder(&meta, table) {
			s, ok := sec.find(e.name)
			if !ok {
				return &Error{File: file, Line: e.line, Msg: noSuchSetting(sec.name, e.name)}
			}
			field := s.field(&l.Config)
			err := meta.PrimitiveDecode(e.value, field.Addr().Interface())
			if err == nil && field.Kind() == reflect.Map && !e.table {
				err = errors.New("no table") // which the library passes over
			}
			if err != nil {
				return valueFault(file, e, field, err)
			}
			if name := field.String(); s.path && name != "" && !filepath.IsAbs(name) && !strings.HasPrefix(name, credentialPrefix) {
				field.SetString(filepath.Join(dir, name))
			}
			l.origins[s.name()] = origin{file, e.line}
		}
	}
	return nil
}

// parseFault is an error about a file as a whole.
func parseFault(file string, err error) error {
	var parse toml.ParseError
	if errors.As(err, &parse) {
		return &Error{File: file, Line: parse.Position.Line, Msg: parse.Message}
	}
	return &Error{File: file, Msg: err.Error()}
}

// valueFault is an error about the value of a setting: its text is not
// understood, or it is of another type than field.
func valueFault(file string, e entry, field reflect.Value, err error) error {
	var parse toml.ParseError
	if errors.As(err, &parse) {
		return &Error{File: file, Line: e.line, Msg: parse.Message}
	}
	form := `text in quotes`
	switch {
	case field.Type() == reflect.TypeFor[int64]():
		form = `a whole number, without quotes`
	case field.Kind() == reflect.Slice:
		form = `a list of texts, ["…", "…"]`
	case field.Kind() == reflect.Map:
		form = `a table of texts, { name = "…" }`
	}
	return &Error{File: file, Line: e.line, Msg: fmt.Sprintf("%s must be %s", e.name, form)}
}

// An entry is one key of a table, with its place in the file.
type entry struct {
	name  string
	value toml.Primitive
	line  int // 0 for a table that was only implied
	table bool
}

// inOrder lists a table in the order of the file.
func inOrder(meta *toml.MetaData, table map[string]toml.Primitive) []entry {
	var all []entry
	for _, name := range slices.Sorted(maps.Keys(table)) {
		e := entry{name: name, value: table[name]}
		// The library tells where something stands in errors only.
		var p probe
		var at toml.ParseError
		if errors.As(meta.PrimitiveDecode(e.value, &p), &at) {
			e.line = at.Position.Line
		}
		e.table = p.table
		all = append(all, e)
	}
	slices.SortStableFunc(all, func(a, b entry) int { return cmp.Compare(a.line, b.line) })
	return all
}

// A probe looks at a value and takes none.
type probe struct{ table bool }

func (p *probe) UnmarshalTOML(value any) error {
	_, p.table = value.(map[string]any)
	return errors.New("looked at")
}

// readEnv lays the environment over what was read so far.
func (l *Loaded) readEnv(env []string) error {
	for _, e := range slices.Sorted(slices.Values(env)) {
		variable, value, _ := strings.Cut(e, "=")
		rest, ours := strings.CutPrefix(variable, envPrefix)
		secName, key, ok := strings.Cut(strings.ToLower(rest), envSeparator)
		if !ours || !ok {
			continue
		}
		sec, ok := findSection(secName)
		if !ok {
			return &Error{File: variable, Msg: noSuchSection(secName)}
		}
		s, ok := sec.find(key)
		if !ok || s.variable() != variable {
			return &Error{File: variable, Msg: noSuchSetting(secName, key)}
		}
		if err := s.parse(&l.Config, value); err != nil {
			return &Error{File: variable, Msg: err.Error()}
		}
		l.origins[s.name()] = origin{file: variable}
	}
	return nil
}
