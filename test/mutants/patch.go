package main

import (
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strings"
)

// A mutant is a patch with two lines on top: what it breaks, and who must notice.
type mutant struct {
	name   string
	breaks string
	red    test
	patch  []byte
}

// A test is what `go test` is told to run.
type test struct{ folder, pattern string }

func (t test) String() string { return "go test ./" + t.folder + " -run " + t.pattern }

var (
	breaksLine = regexp.MustCompile(`(?m)^Breaks: (.+)$`)
	redLine    = regexp.MustCompile(`(?m)^Red: go test \./([a-z0-9/]+) -run (\S+)$`)
)

// load reads the patches in a folder.
func load(tree fs.FS, folder string) ([]mutant, error) {
	files, err := fs.Glob(tree, path.Join(folder, "*.patch"))
	if err != nil {
		return nil, err
	}
	var all []mutant
	for _, file := range files {
		text, err := fs.ReadFile(tree, file)
		if err != nil {
			return nil, err
		}
		m, err := parse(strings.TrimSuffix(path.Base(file), ".patch"), text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all = append(all, m)
	}
	return all, nil
}

func parse(name string, text []byte) (mutant, error) {
	breaks, red := breaksLine.FindSubmatch(text), redLine.FindSubmatch(text)
	if breaks == nil || red == nil {
		return mutant{}, fmt.Errorf("it has to begin with lines such as %q and %q",
			"Breaks: the folder is not synced", "Red: go test ./pkg/store -run ^TestPowerCut")
	}
	if _, err := regexp.Compile(string(red[2])); err != nil {
		return mutant{}, err
	}
	return mutant{name, string(breaks[1]), test{string(red[1]), string(red[2])}, text}, nil
}
