// Sbom writes the bill of materials of both binaries: which modules are linked
// into which, in which version, by which licence. It asks the binaries, not
// go.mod: the list is of what is shipped.
//
//	go run ./test/sbom -version v1.2.3 -time 1700000000 -o bin/birthmark.cdx.json bin/birthmark bin/birthmark-lab
//
// The format is CycloneDX 1.6 (ECMA-424). The same binaries give the same bytes:
// everything is sorted, the time is the commit's, and the serial number is made
// of the content. The go command knows where the modules' licences lie; a licence
// that is not recognised is an error, for somebody has to read it first.
package main

import (
	"cmp"
	"debug/buildinfo"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sbom: "+err.Error())
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("sbom", flag.ContinueOnError)
	version := flags.String("version", "unknown", "version of the release")
	seconds := flags.Int64("time", 0, "time of the release, Unix seconds")
	out := flags.String("o", "", "file to write")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *out == "" || flags.NArg() == 0 {
		return errors.New("usage: sbom -version VERSION -time SECONDS -o FILE BINARY…")
	}
	text, found, err := describe(*version, time.Unix(*seconds, 0), flags.Args())
	if err != nil {
		return err
	}
	if err := os.WriteFile(*out, text, 0o644); err != nil {
		return err
	}
	printFigures(*out, found)
	return nil
}

// describe is the bill of materials of the binaries at paths.
func describe(version string, at time.Time, paths []string) ([]byte, bom, error) {
	where, err := findSources()
	if err != nil {
		return nil, bom{}, err
	}
	var binaries []binary
	for _, path := range paths {
		b, err := readBinary(path)
		if err != nil {
			return nil, bom{}, err
		}
		binaries = append(binaries, b)
	}
	slices.SortFunc(binaries, func(a, b binary) int { return cmp.Compare(a.name, b.name) })
	return write(version, at, binaries, where)
}

func printFigures(path string, b bom) {
	libraries, licences := 0, map[string]int{}
	for _, c := range b.Components {
		if c.Type == "library" {
			libraries++
			licences[c.Licenses[0].name()]++
		}
	}
	var counts []string
	for name, n := range licences {
		counts = append(counts, fmt.Sprintf("%d %s", n, name))
	}
	slices.Sort(counts)
	fmt.Printf("sbom: %s: %d binaries, %d libraries (%s), %s\n",
		path, len(b.Components)-libraries, libraries, strings.Join(counts, ", "), b.SerialNumber)
}

// A binary is a program and what the linker wrote into it about itself.
type binary struct {
	name   string
	sha256 string // hexadecimal
	info   *buildinfo.BuildInfo
}
