package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
)

// A scanner is govulncheck with a database.
type scanner struct {
	program string
	db      database
}

// look scans packages in folder, as they are built for the device.
func (s scanner) look(folder string, packages ...string) (findings, error) {
	// In its JSON mode govulncheck exits with 0 whatever it found.
	cmd := exec.Command(s.program, append([]string{"-C", folder, "-db", s.db.url(), "-format", "json"}, packages...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("govulncheck in %s: %w", folder, err)
	}
	return parse(out)
}

// A finding is one entry of the database that concerns a module we link.
type finding struct {
	id, module, version, fixed string
	function                   string // of it that is called; "" if none is
}

func (f finding) String() string {
	verdict := "not called"
	if f.function != "" {
		verdict = "CALLED: " + f.function
	}
	return fmt.Sprintf("%s %s %s (fixed in %s): %s", f.id, f.module, f.version, cmp.Or(f.fixed, "no version"), verdict)
}

// findings holds one finding for each entry.
type findings []finding

func (all findings) called(id string) bool {
	return slices.ContainsFunc(all, func(f finding) bool { return f.id == id && f.function != "" })
}

func (all findings) calls() int {
	n := 0
	for _, f := range all {
		if f.function != "" {
			n++
		}
	}
	return n
}

// parse reads govulncheck's stream of JSON messages. It reports an entry up to
// three times, as it comes nearer: the module is required, the package is
// imported, the function is called. The nearest is kept.
func parse(stream []byte) (findings, error) {
	nearest := map[string]finding{}
	looked := false
	for d := json.NewDecoder(bytes.NewReader(stream)); ; {
		var message struct {
			Config *struct {
				ScanLevel string `json:"scan_level"`
			}
			Finding *struct {
				OSV          string
				FixedVersion string `json:"fixed_version"`
				Trace        []struct{ Module, Version, Package, Function, Receiver string }
			}
		}
		err := d.Decode(&message)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read what govulncheck said: %w", err)
		}
		if c := message.Config; c != nil && c.ScanLevel == "symbol" {
			looked = true
		}
		f := message.Finding
		if f == nil || len(f.Trace) == 0 {
			continue
		}
		at := f.Trace[0] // the vulnerable end of the call chain
		function := at.Function
		if function != "" {
			function = at.Package + "." + function
		}
		if old := nearest[f.OSV]; old.function == "" {
			nearest[f.OSV] = finding{f.OSV, at.Module, at.Version, f.FixedVersion, function}
		}
	}
	if !looked {
		return nil, errors.New("govulncheck did not say that it looked at calls")
	}
	var all findings
	for _, f := range nearest {
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b finding) int { return cmp.Compare(a.id, b.id) })
	return all, nil
}
