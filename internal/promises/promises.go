// Package promises holds lists of promises in docs/ against tests.
//
// A list is a table of Markdown whose rows are
//
//	| NUMBER | what is promised | ROOM, ROOM… |
//
// and in each of those rooms a test hands [Keep] a function per row. A row that
// nobody tests fails, as does a test that no row asks for. So the list is what the
// tests say, and their output is the list.
package promises

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A row is one promise.
type row struct {
	number int
	text   string
	rooms  []string
}

// Keep runs a subtest for every row of docs/NAME that names the room that the test
// is in.
func Keep(t *testing.T, name string, tests map[int]func(*testing.T)) {
	t.Helper()
	top, room, err := whereabouts()
	if err != nil {
		t.Fatal(err)
	}
	rows, err := read(filepath.Join(top, "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	asked := map[int]bool{}
	for _, r := range rows {
		if !slices.Contains(r.rooms, room) {
			continue
		}
		asked[r.number] = true
		test := tests[r.number]
		if test == nil {
			t.Errorf("docs/%s: row %d (%s) has no test in %s", name, r.number, r.text, room)
			continue
		}
		t.Run(fmt.Sprintf("%02d %s", r.number, r.text), test)
	}
	for number := range tests {
		if !asked[number] {
			t.Errorf("docs/%s: row %d does not name %s, which tests it", name, number, room)
		}
	}
}

// whereabouts finds the module's folder above the one that a test runs in, and the
// way down again.
func whereabouts() (top, room string, err error) {
	here, err := os.Getwd()
	if err != nil {
		return "", "", err
	}
	for top = here; ; top = filepath.Dir(top) {
		if _, err := os.Stat(filepath.Join(top, "go.mod")); err == nil {
			break
		}
		if top == filepath.Dir(top) {
			return "", "", fmt.Errorf("no go.mod above %s", here)
		}
	}
	room, err = filepath.Rel(top, here)
	return top, filepath.ToSlash(room), err
}

// read returns the rows of a list, which are numbered from 1 without a gap.
func read(file string) (rows []row, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(line, "| \n"), "|")
		number, err := strconv.Atoi(strings.TrimSpace(cells[0]))
		if !strings.HasPrefix(line, "|") || err != nil {
			continue
		}
		if len(cells) != 3 || number != len(rows)+1 {
			return nil, fmt.Errorf("%s: %q is not row %d in 3 columns", file, strings.TrimSpace(line), len(rows)+1)
		}
		r := row{number: number, text: strings.TrimSpace(cells[1])}
		for room := range strings.SplitSeq(cells[2], ",") {
			r.rooms = append(r.rooms, strings.TrimSpace(room))
		}
		rows = append(rows, r)
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("%s: no rows", file)
	}
	return rows, nil
}
