package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"unicode"
)

// sources tells where the go command keeps what was linked.
type sources struct {
	GOROOT, GOMODCACHE string
}

func findSources() (sources, error) {
	var s sources
	out, err := exec.Command("go", "env", "-json", "GOROOT", "GOMODCACHE").Output()
	if err == nil {
		err = json.Unmarshal(out, &s)
	}
	if err != nil {
		return s, fmt.Errorf("cannot ask the go command for its folders: %w", err)
	}
	return s, nil
}

// licence is the SPDX identifier of a module's licence, by the text that came
// with it.
func (s sources) licence(m debug.Module) (string, error) {
	folder := filepath.Join(s.GOMODCACHE, escape(m.Path)+"@"+escape(m.Version))
	if m.Path == standardLibrary {
		folder = s.GOROOT
	}
	for _, name := range []string{"LICENSE", "LICENSE.md", "LICENSE.txt", "COPYING"} {
		text, err := os.ReadFile(filepath.Join(folder, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		if id := recognise(string(text)); id != "" {
			return id, nil
		}
		return "", fmt.Errorf("cannot recognise the licence of %s: read %s, then add it to test/sbom/licence.go", m.Path, filepath.Join(folder, name))
	}
	return "", fmt.Errorf("cannot find the licence of %s in %s", m.Path, folder)
}

// escape spells a module's path as folders of the module cache are: an upper-case
// letter is a mark and its lower case, for disks that confuse the two.
func escape(path string) string {
	var out strings.Builder
	for _, r := range path {
		if unicode.IsUpper(r) {
			out.WriteByte('!')
		}
		out.WriteRune(unicode.ToLower(r))
	}
	return out.String()
}

// recognise names the licences that what we link comes under, by sentences that
// only they have. It returns nothing for any other.
func recognise(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	has := func(sentences ...string) bool {
		for _, s := range sentences {
			if !strings.Contains(text, s) {
				return false
			}
		}
		return true
	}
	const bsd = "Redistribution and use in source and binary forms, with or without modification, are permitted provided that"
	switch {
	case has("under the terms of the Eclipse Public License v2.0 and Eclipse Distribution License v1.0"):
		return "EPL-2.0 OR BSD-3-Clause" // the latter is what SPDX calls the EDL
	case has("Apache License Version 2.0, January 2004", "Grant of Copyright License", "Grant of Patent License"):
		return "Apache-2.0"
	case has("Permission is hereby granted, free of charge, to any person obtaining a copy", "The above copyright notice and this permission notice shall be included in"):
		return "MIT"
	case has(bsd, "Neither the name"):
		return "BSD-3-Clause"
	case has(bsd, "Redistributions in binary form must reproduce"):
		return "BSD-2-Clause"
	}
	return ""
}
