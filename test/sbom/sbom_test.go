package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// The binaries of `make build`.
var (
	binDevice = filepath.Join("..", "..", "bin", "birthmark")
	binLab    = filepath.Join("..", "..", "bin", "birthmark-lab")
)

var release = time.Unix(1_700_000_000, 0)

func describeAll(t *testing.T, paths ...string) ([]byte, bom) {
	t.Helper()
	text, b, err := describe("v1.2.3", release, paths)
	if err != nil {
		t.Fatal(err)
	}
	return text, b
}

// TestListIsTheBuildInformation asks the go command, not our reader, what is in
// each binary: nothing is missing in the list, and nothing is in it that is not
// in the binary.
func TestListIsTheBuildInformation(t *testing.T) {
	_, b := describeAll(t, binDevice, binLab)
	byRef := map[string]component{}
	for _, c := range b.Components {
		byRef[c.BOMRef] = c
	}
	everything := map[string]bool{}
	for _, path := range []string{binDevice, binLab} {
		var listed []string
		for _, d := range b.Dependencies {
			if d.Ref != "birthmark/"+filepath.Base(path) {
				continue
			}
			for _, ref := range d.DependsOn {
				c := byRef[ref]
				line := c.Name + " " + c.Version
				for _, p := range c.Properties {
					line += " " + p.Value
				}
				listed = append(listed, line)
				everything[ref] = true
			}
		}
		slices.Sort(listed)
		if want := goVersion(t, path); !slices.Equal(listed, want) {
			t.Errorf("%s: the list has\n%s\nand the go command says\n%s", path, strings.Join(listed, "\n"), strings.Join(want, "\n"))
		}
	}
	for _, c := range b.Components {
		if c.Type == "library" && !everything[c.BOMRef] {
			t.Errorf("%s is in the list and in no binary", c.BOMRef)
		}
	}
}

// goVersion is what `go version -m` says is in a binary.
func goVersion(t *testing.T, path string) []string {
	t.Helper()
	out, err := exec.Command("go", "version", "-m", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	first, rest, _ := strings.Cut(string(out), "\n")
	_, version, _ := strings.Cut(first, ": go")
	all := []string{"std " + version}
	for line := range strings.Lines(rest) {
		if f := strings.Fields(line); f[0] == "dep" {
			all = append(all, strings.Join(f[1:], " "))
		}
	}
	slices.Sort(all)
	return all
}

func TestSameBinariesGiveTheSameBytes(t *testing.T) {
	first, one := describeAll(t, binDevice, binLab)
	second, _ := describeAll(t, binLab, binDevice)
	if !bytes.Equal(first, second) {
		t.Error("two runs over the same binaries differ")
	}
	_, other := describeAll(t, binDevice)
	if one.SerialNumber == other.SerialNumber {
		t.Error("a list of other content has the same serial number")
	}
}

// TestFormat holds a list against what the schema of CycloneDX 1.6 demands of
// the parts that we use: every field known, every enumeration, pattern and
// reference kept.
func TestFormat(t *testing.T) {
	text, _ := describeAll(t, binDevice, binLab)
	for _, fault := range faults(text) {
		t.Error(fault)
	}
}

// TestFormatFaults proves that TestFormat can fail, one rule at a time.
func TestFormatFaults(t *testing.T) {
	good, _ := describeAll(t, binDevice)
	for _, c := range []struct{ old, new, want string }{
		{`"CycloneDX"`, `"SPDX"`, "bomFormat"},
		{`"1.6"`, `"1.7"`, "specVersion"},
		{`urn:uuid:`, `uuid:`, "serialNumber"},
		{`"version": 1,`, `"version": 0,`, "version"},
		{`"2023-11-14T22:13:20Z"`, `"14 November 2023"`, "timestamp"},
		{`"type": "library"`, `"type": "module"`, "type"},
		{`"purl": "pkg:golang/github.com/spf13`, `"purl": "github.com/spf13`, "purl"},
		{`"id": "MIT"`, `"id": "Expat"`, "licence"},
		{`"alg": "SHA-256"`, `"alg": "SHA256"`, "hash"},
		{`"bomFormat"`, `"color": 1, "bomFormat"`, "unknown field"},
		{`"ref": "birthmark"`, `"ref": "birthday"`, "birthday"},
		{`"bom-ref": "pkg:golang/golang.org/x/sync@`, `"bom-ref": "pkg:golang/golang.org/x/sys@`, ""},
	} {
		bad := strings.Replace(string(good), c.old, c.new, 1)
		found := strings.Join(faults([]byte(bad)), "\n")
		if bad == string(good) || found == "" || !strings.Contains(found, c.want) {
			t.Errorf("%s replaced by %s: got faults %q, want one about %q", c.old, c.new, found, c.want)
		}
	}
}

var (
	uuidPattern = regexp.MustCompile(`^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	hashPattern = regexp.MustCompile(`^[a-fA-F0-9]{64}$`) // of SHA-256; the schema allows other lengths for other algorithms
	purlPattern = regexp.MustCompile(`^pkg:golang/[a-z0-9._~/-]+@[A-Za-z0-9._%-]+$`)

	licencesWeKnow = []string{"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "MIT", "EPL-2.0 OR BSD-3-Clause"}
)

// faults is what is wrong with a list, a sentence each.
func faults(text []byte) (found []string) {
	fault := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	var b bom
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&b); err != nil {
		return []string{err.Error()}
	}
	if b.BOMFormat != "CycloneDX" {
		fault("bomFormat is %q", b.BOMFormat)
	}
	if b.SpecVersion != "1.6" {
		fault("specVersion is %q", b.SpecVersion)
	}
	if !uuidPattern.MatchString(b.SerialNumber) {
		fault("serialNumber is %q", b.SerialNumber)
	}
	if b.Version < 1 {
		fault("version is %d", b.Version)
	}
	if _, err := time.Parse(time.RFC3339, b.Metadata.Timestamp); err != nil {
		fault("timestamp: %v", err)
	}
	refs := map[string]bool{}
	for _, c := range append([]component{b.Metadata.Component}, b.Components...) {
		if refs[c.BOMRef] || c.BOMRef == "" {
			fault("bom-ref %q is not unique", c.BOMRef)
		}
		refs[c.BOMRef] = true
		for _, f := range componentFaults(c) {
			fault("%s: %s", c.BOMRef, f)
		}
	}
	described := map[string]bool{}
	for _, d := range b.Dependencies {
		if described[d.Ref] {
			fault("%s has two entries in dependencies", d.Ref)
		}
		described[d.Ref] = true
		for i, ref := range append([]string{d.Ref}, d.DependsOn...) {
			if !refs[ref] {
				fault("dependencies name %s, which is no component", ref)
			}
			if slices.Contains(d.DependsOn[:max(0, i-1)], ref) {
				fault("%s depends on %s twice", d.Ref, ref)
			}
		}
	}
	return found
}

func componentFaults(c component) (found []string) {
	fault := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	if c.Name == "" || c.Version == "" {
		fault("name %q, version %q", c.Name, c.Version)
	}
	switch c.Type {
	case "application":
	case "library":
		if !purlPattern.MatchString(c.PURL) {
			fault("purl is %q", c.PURL)
		}
		if c.Name != standardLibrary && (len(c.Properties) != 1 || !strings.HasPrefix(c.Properties[0].Value, "h1:")) {
			fault("properties %v, want its go.sum hash", c.Properties)
		}
	default:
		fault("type is %q", c.Type)
	}
	if len(c.Licenses) != 1 || !slices.Contains(licencesWeKnow, c.Licenses[0].name()) ||
		(c.Licenses[0].License == nil) == (c.Licenses[0].Expression == "") {
		fault("licence is %v", c.Licenses)
	}
	for _, h := range c.Hashes {
		if h.Alg != "SHA-256" || !hashPattern.MatchString(h.Content) {
			fault("hash is %v", h)
		}
	}
	return found
}

func TestUnknownLicenceIsNotGuessed(t *testing.T) {
	for _, text := range []string{
		"",
		"All rights reserved.",
		"GNU GENERAL PUBLIC LICENSE Version 3, 29 June 2007",
		"Apache License Version 2.0, January 2004",
		"Permission is hereby granted, free of charge, to any person obtaining a copy",
	} {
		if got := recognise(text); got != "" {
			t.Errorf("%q is recognised as %s", text, got)
		}
	}
}
